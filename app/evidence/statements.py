"""Signed documents as bytes: written once, and read only in the form they are written in."""

import datetime
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from app.evidence import schemas, schemas_v1
from app.evidence._fields import Strict
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.formats import EntryStatement, SignedEnvelope
from app.evidence.signing import read_payload
from app.strict_json import read_object

RECORD_ISSUED = "record.issued"

RecordStatement = schemas.RecordStatement | schemas_v1.RecordStatement

# The type that an envelope's signature covers says by which version its payload is read.
_VERSIONS: Mapping[str, TypeAdapter[Any]] = {
    schemas.STATEMENT_TYPE: schemas.RECORD_STATEMENT,
    schemas_v1.STATEMENT_TYPE: schemas_v1.RECORD_STATEMENT,
}
RECORD_TYPES = tuple(_VERSIONS)

Document = TypeVar("Document", bound=Strict)


def write_document(document: BaseModel) -> bytes:
    """Return the canonical bytes of a document that will be signed or hashed."""
    return canonical_json(document.model_dump(mode="json"))


def read_record(payload: bytes, payload_type: str = schemas.STATEMENT_TYPE) -> RecordStatement:
    """Return the record statement that `payload` holds, in the version that its type names.

    Raises:
        ValueError: It contradicts the schema, or is not in the one form that `write_document`
            gives: then two readers might take it for two things.
    """
    read_object(payload)
    statement: RecordStatement = _VERSIONS[payload_type].validate_json(payload, strict=True)
    _require_normal_form(payload, statement)
    return statement


def read_signed_record(envelope: SignedEnvelope) -> tuple[RecordStatement, bytes]:
    """Return the record statement in an envelope and its bytes; the signature is not looked at.

    Raises:
        ValueError: It holds something else, or a statement that contradicts its schema.
    """
    payload = read_payload(envelope, *RECORD_TYPES)
    return read_record(payload, envelope.payloadType), payload


def read_document(kind: type[Document], payload: bytes) -> Document:
    """Return a document of another kind; raises as `read_record` does."""
    read_object(payload)
    document = kind.model_validate_json(payload, strict=True)
    _require_normal_form(payload, document)
    return document


def read_entry(body: bytes) -> EntryStatement:
    """Return what the body of a log entry says.

    Without a look at its form, unlike the others: events may carry numbers that Python writes
    differently after reading them, and the hash covers the bytes.

    Raises:
        ValueError: It is no entry.
    """
    read_object(body)
    return EntryStatement.model_validate_json(body, strict=True)


def record_subject(statement: RecordStatement) -> dict[str, Any]:
    """Return what the log entry of a record is about."""
    return {"model_id": str(statement.model.id), "request_id": str(statement.request.id)}


def record_payload(statement: RecordStatement, payload: bytes) -> dict[str, Any]:
    """Return what the log entry of a record says; the digest binds the whole statement."""
    return {
        "kind": statement.kind,
        "record_id": str(statement.id),
        "statement_sha256": sha256_hex(payload),
    }


def record_entry(
    statement: RecordStatement, payload: bytes, *, index: int, time: datetime.datetime
) -> bytes:
    """Return the body that the log entry of a record has, given its place and time."""
    entry = EntryStatement(
        index=index,
        time=time,
        event=RECORD_ISSUED,
        subject=record_subject(statement),
        payload=record_payload(statement, payload),
    )
    return write_document(entry)


def _require_normal_form(payload: bytes, document: BaseModel) -> None:
    if write_document(document) != payload:
        raise ValueError("the JSON is not in the canonical form that this service writes")
