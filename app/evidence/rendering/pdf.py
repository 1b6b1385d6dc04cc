"""A record as a PDF, laid out by reportlab."""

import io
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import resources
from typing import Any
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import Flowable, LongTable, Paragraph, SimpleDocTemplate, Spacer

from app.evidence.rendering import document, view

# Of the fonts that come with reportlab, none has ε and δ.
_REGULAR, _BOLD, _FIXED = "DejaVuSans", "DejaVuSans-Bold", "Courier"
_MARGIN = 20 * mm
_PADDING = 6  # of reportlab's frames
_WIDTH = A4[0] - 2 * _MARGIN - 2 * _PADDING
_ALARM = colors.HexColor("#8c1d18")
_GREY = colors.HexColor("#999999")
# reportlab does not lay out scripts that run from right to left.
_RIGHT_TO_LEFT = frozenset({"R", "AL", "AN"})


def render_pdf(bundle: Mapping[str, Any]) -> bytes:
    """Return the record in a bundle as a PDF for people. Signatures are not verified.

    The same bundle gives the same bytes: no time of making, no random identifier.

    Raises:
        UnreadableBundleError: It is no bundle, or its parts contradict each other.
    """
    described = view.describe(bundle)
    content = io.BytesIO()
    title = described.title if described.certifies else f"{view.NO_CERTIFICATE}: {described.title}"
    layout = SimpleDocTemplate(
        content,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN,
        title=title,
        author="",
        lang="en",
        invariant=True,
    )
    foot = partial(_draw_foot, f"{title} · for reading, not the evidence", _styles()["foot"])
    layout.build(_story(described), onFirstPage=foot, onLaterPages=foot)
    return content.getvalue()


def _story(described: document.Document) -> list[Flowable]:
    styles = _styles()
    story = [
        _text(described.title, styles["title"]),
        _text(described.subject, styles["body"]),
        _text(view.NOTICE, styles["notice"]),
    ]
    if not described.certifies:
        story.append(_text(view.NO_CERTIFICATE.upper(), styles["none"]))
    story += [_text("Verdict", styles["section"]), _text(described.verdict, styles["verdict"])]
    for section in described.sections:
        story.append(_text(section.title, styles["section"]))
        for block in section.blocks:
            story += _block(block)
    return story


def _block(block: document.Block) -> list[Flowable]:
    styles = _styles()
    match block:
        case document.Paragraph(text):
            return [_text(text, styles["body"])]
        case document.Heading(text):
            return [_text(text, styles["heading"])]
        case document.Items(texts):
            return [_text(text, styles["item"], bullet="•") for text in texts]
        case document.Facts(rows):
            return [_table(rows, (0.34, 0.66)), Spacer(0, 2 * mm)]
        case document.Table(head, rows):
            share = 0.56 / (len(head) - 1)
            widths = (0.44, *(share for _ in head[1:]))
            return [_table(rows, widths, head), Spacer(0, 2 * mm)]


def _table(
    rows: tuple[tuple[str, ...], ...], shares: tuple[float, ...], head: tuple[str, ...] = ()
) -> Flowable:
    styles = _styles()
    lines = [[_text(cell, styles["cell"]) for cell in row] for row in rows]
    if head:
        lines.insert(0, [_text(cell, styles["head"]) for cell in head])
    return LongTable(
        lines,
        colWidths=[share * _WIDTH for share in shares],
        repeatRows=1 if head else 0,
        # A client's text may be longer than a page.
        splitInRow=1,
        style=[
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LINEBELOW", (0, 0), (-1, -1), 0.25, _GREY),
            ("LEFTPADDING", (0, 0), (-1, -1), 0),
            ("RIGHTPADDING", (0, 0), (-1, -1), 6),
            ("TOPPADDING", (0, 0), (-1, -1), 2),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
        ],
    )


def _text(text: str, style: ParagraphStyle, bullet: str | None = None) -> Flowable:
    """Return a paragraph. Its text is escaped: in reportlab's markup, a name could load files."""
    if isinstance(text, document.Code) and text.isascii():
        style = _styles()["code"]
    return Paragraph(escape(_drawable(text)), style, bulletText=bullet)


def _drawable(text: str) -> str:
    """Return text whose every character the font has, and draws where it belongs."""
    known: Mapping[int, int] = pdfmetrics.getFont(_REGULAR).face.charToGlyph
    return "".join(
        char
        if ord(char) in known and unicodedata.bidirectional(char) not in _RIGHT_TO_LEFT
        else char.encode("ascii", "backslashreplace").decode()
        for char in document.visible(text)
    )


def _draw_foot(words: str, style: ParagraphStyle, canvas: Any, _layout: Any) -> None:
    """Write on every page what it is not: pages are copied one by one."""
    canvas.saveState()
    canvas.setFont(style.fontName, style.fontSize)
    canvas.setFillColor(style.textColor)
    canvas.drawString(_MARGIN, _MARGIN / 2, words)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN / 2, str(canvas.getPageNumber()))
    canvas.restoreState()


@cache
def _styles() -> Mapping[str, ParagraphStyle]:
    """Return the styles, having registered the fonts they use."""
    fonts = resources.files("app.evidence.rendering") / "fonts"
    for name in (_REGULAR, _BOLD):
        pdfmetrics.registerFont(TTFont(name, io.BytesIO((fonts / f"{name}.ttf").read_bytes())))
    style: Callable[..., ParagraphStyle] = partial(
        ParagraphStyle, fontName=_REGULAR, fontSize=9, leading=12.5, splitLongWords=1
    )
    return {
        "title": style("title", fontName=_BOLD, fontSize=16, leading=20, spaceAfter=4),
        "section": style(
            "section", fontName=_BOLD, fontSize=12, leading=16, spaceBefore=12, keepWithNext=1
        ),
        "heading": style("heading", fontName=_BOLD, spaceBefore=6, keepWithNext=1),
        "body": style("body", spaceAfter=3),
        "notice": style(
            "notice",
            backColor=colors.HexColor("#f3f3f3"),
            borderPadding=5,
            spaceBefore=8,
            spaceAfter=8,
        ),
        "none": style(
            "none",
            fontName=_BOLD,
            fontSize=18,
            leading=22,
            textColor=_ALARM,
            borderColor=_ALARM,
            borderWidth=2,
            borderPadding=6,
            spaceBefore=18,
            spaceAfter=6,
        ),
        "verdict": style(
            "verdict",
            fontName=_BOLD,
            fontSize=10,
            leading=14,
            borderColor=colors.black,
            borderWidth=0.5,
            borderPadding=6,
            spaceBefore=8,
            spaceAfter=8,
        ),
        "item": style("item", leftIndent=10, bulletIndent=0),
        "cell": style("cell"),
        "head": style("head", fontName=_BOLD),
        # So that the 64 digits of a digest stand in one line.
        "code": style("code", fontName=_FIXED, fontSize=7.8),
        "foot": style("foot", fontSize=7, textColor=_GREY),
    }
