"""Signed documents as bytes: written once, and read only in the form they are written in."""

import datetime
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from app.evidence._fields import Strict
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.formats import EntryStatement, SignedEnvelope
from app.evidence.keys.signing import read_payload
from app.evidence.records import intoto, schemas, schemas_v1, schemas_v2
from app.strict_json import read_object

RECORD_ISSUED = "record.issued"
_NOT_NORMAL = "the JSON is not in the canonical form that this service writes"

STATEMENT_TYPE = schemas.STATEMENT_TYPE

RecordStatement = schemas.RecordStatement | schemas_v2.RecordStatement | schemas_v1.RecordStatement

# The type that an envelope's signature covers says by which version its payload is read. Before
# version 3 the payload is the record itself.
_BARE: Mapping[str, TypeAdapter[Any]] = {
    schemas_v2.STATEMENT_TYPE: schemas_v2.RECORD_STATEMENT,
    schemas_v1.STATEMENT_TYPE: schemas_v1.RECORD_STATEMENT,
}
RECORD_TYPES = (STATEMENT_TYPE, *_BARE)

Document = TypeVar("Document", bound=Strict)


def write_document(document: BaseModel) -> bytes:
    """Return the canonical bytes of a document that will be signed or hashed."""
    return canonical_json(document.model_dump(mode="json"))


def write_record(record: schemas.RecordStatement | Mapping[str, Any]) -> bytes:
    """Return the canonical bytes of the in-toto statement around a record of the newest version.

    Args:
        record: The record, or its JSON, which is checked as that of any other source.

    Raises:
        ValueError: It contradicts the schema, or is not spelled as this service spells it.
    """
    if isinstance(record, Mapping):
        content = canonical_json(record)
        record = schemas.RECORD_STATEMENT.validate_json(content, strict=True)
        _require_normal_form(content, record)
    return canonical_json(intoto.wrap(record.model_dump(mode="json")))


def read_record(payload: bytes, payload_type: str = STATEMENT_TYPE) -> RecordStatement:
    """Return the record that a signed payload holds, in the version that its type names.

    Raises:
        ValueError: It contradicts the schema (an in-toto statement also, if its own fields
            contradict its predicate), or is not in the one form that this service writes: then two
            readers might take it for two things.
    """
    read_object(payload)
    if payload_type == STATEMENT_TYPE:
        record = intoto.Statement.model_validate_json(payload, strict=True).predicate
        if write_record(record) != payload:
            raise ValueError(_NOT_NORMAL)
        return record
    old: RecordStatement = _BARE[payload_type].validate_json(payload, strict=True)
    _require_normal_form(payload, old)
    return old


def read_signed_record(envelope: SignedEnvelope) -> tuple[RecordStatement, bytes]:
    """Return the record statement in an envelope and its bytes; the signature is not looked at.

    Raises:
        ValueError: It holds something else, or a statement that contradicts its schema.
    """
    payload = read_payload(envelope, *RECORD_TYPES)
    return read_record(payload, envelope.payloadType), payload


def statement_sha256(envelope: bytes) -> str:
    """Return the digest of the record statement in a stored envelope, as its log entry names it.

    Raises:
        ValueError: It is no envelope of a record.
    """
    stored = read_document(SignedEnvelope, envelope)
    return sha256_hex(read_payload(stored, *RECORD_TYPES))


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
        raise ValueError(_NOT_NORMAL)
