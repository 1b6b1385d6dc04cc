"""Records as documents for people. A rendering is no evidence: the bundle is what verifies."""

from app.evidence.rendering._bundle import UnreadableBundleError
from app.evidence.rendering.html import content_policy, render_html
from app.evidence.rendering.pdf import render_pdf

__all__ = ["UnreadableBundleError", "content_policy", "render_html", "render_pdf"]
