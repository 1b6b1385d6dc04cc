"""What a document for people says about a record.

Everything in it is copied from the bundle, numbers digit by digit: a rounded bound would claim more
than was proved. Nothing here verifies a signature, and the document says so.
"""

from collections.abc import Mapping
from typing import Any

from app.evidence.rendering._bundle import take_apart
from app.evidence.rendering._sections import sections_of
from app.evidence.rendering.document import Document

NO_CERTIFICATE = "No certificate"
NOTICE = (
    "This document is for reading. It is not the evidence: it copies what a record bundle says, "
    "and whoever made it checked no signature. Anybody can make a document that looks like this "
    "one. The evidence is the bundle, the JSON file that this was made from, together with keys "
    "that you have from the operator by another way."
)

_TITLES = {
    "certificate": "Certificate of unlearning, reading copy",
    "conditional": "Record of an unlearning whose bounds are conditional",
    "estimate": "Record of an unlearning by an estimate",
    "refusal": "Record of a refused unlearning request",
    "failure": "Record of a failed unlearning request",
}


def describe(bundle: Mapping[str, Any]) -> Document:
    """Return the document about the record in a bundle, of any kind and version.

    Raises:
        UnreadableBundleError: It is no bundle, its statement contradicts the schema, or its parts
            do not belong together. Signatures are not looked at.
    """
    parts = take_apart(bundle)
    record = parts.record
    return Document(
        title=_TITLES[record.kind],
        certifies=record.kind == "certificate",
        subject=f"Unlearning request {record.request.id} on the model {record.model.name}",
        verdict=record.verdict,
        sections=tuple(sections_of(parts)),
    )
