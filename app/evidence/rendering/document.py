"""What a document consists of, before it becomes HTML or PDF."""

from dataclasses import dataclass


class Code(str):
    """Text that is compared letter by letter: digests, identifiers."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or more."""

    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a part of a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """Sentences that stand side by side."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of the same kind, under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Paragraph | Heading | Items | Facts | Table


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the document under a title."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A record, ready to be laid out.

    Attributes:
        title: What it is, by its kind.
        certifies: Whether it is a certificate; where not, that is shown before all else.
        subject: Which request and model, in one line.
        verdict: The record's own words, unaltered.
        sections: The rest, the most important first.
    """

    title: str
    certifies: bool
    subject: str
    verdict: str
    sections: tuple[Section, ...]


def visible(text: str) -> str:
    """Return text without characters that show nothing, or that change what stands beside them.

    Names come from clients: a control character or a change of direction is shown by its number.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
