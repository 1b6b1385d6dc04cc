"""A record as one HTML file that needs nothing else: no script, no image, no other address."""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from app.evidence.rendering import view
from app.evidence.rendering.document import Code, visible

_FOLDER = "templates"


def render_html(bundle: Mapping[str, Any]) -> bytes:
    """Return the record in a bundle as a page for people, in UTF-8. Signatures are not verified.

    Raises:
        UnreadableBundleError: It is no bundle, or its parts contradict each other.
    """
    template, style = _load()
    page = template.render(
        document=view.describe(bundle),
        notice=view.NOTICE,
        no_certificate=view.NO_CERTIFICATE,
        policy=content_policy(),
        style=Markup(style),  # noqa: S704 - the package's own file
    )
    return page.encode()


def content_policy() -> str:
    """Return what the page may load: its one style sheet, by its digest, and nothing else."""
    _, style = _load()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'"


@cache
def _load() -> tuple[Template, str]:
    """Return the page's template and its style sheet, exactly as the digest is taken of it."""
    environment = Environment(
        loader=PackageLoader("app.evidence.rendering", _FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    loader = environment.loader
    assert loader is not None  # noqa: S101 - set above
    style, _, _ = loader.get_source(environment, "record.css")
    return environment.get_template("record.html"), style


def _shown(text: str) -> Markup:
    """Return a value as it is shown: isolated, so that its direction stays its own affair."""
    name = "code" if isinstance(text, Code) else "bdi"
    return Markup("<{0}>{1}</{0}>").format(Markup(name), escape(visible(text)))  # noqa: S704
