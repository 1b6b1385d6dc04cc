"""The audit log and the signed records: append, sign, issue, find, deliver."""

import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.errors import (
    AuditEntryNotFoundError,
    NoCertificateError,
    RecordNotFoundError,
    RequestNotFoundError,
)
from app.evidence import repository
from app.evidence._fields import write_time
from app.evidence.auditing import LogReport, verify_log
from app.evidence.canonical import GENESIS, canonical_json, chain_hash, leaf_hash
from app.evidence.formats import CHECKPOINT_TYPE, Bundle, CheckpointStatement, SignedEnvelope
from app.evidence.models import AuditEntry, EvidenceRecord, RecordKind
from app.evidence.schemas import STATEMENT_TYPE
from app.evidence.signing import Signer
from app.evidence.statements import (
    RECORD_ISSUED,
    RecordStatement,
    read_document,
    read_record,
    record_payload,
    record_subject,
    write_document,
)
from app.unlearning.models import UnlearningRequest

__all__ = [
    "LogReport",
    "append",
    "bundle",
    "find_certificate",
    "find_record",
    "issue_record",
    "sign_checkpoint",
    "verify_log",
]


def append(
    session: Session, event: str, *, subject: Mapping[str, Any], payload: Mapping[str, Any]
) -> AuditEntry:
    """Add an entry to the log, in the transaction that does what the entry says.

    The head's row lock is held until that transaction ends, so that indices have no gaps and follow
    the order of commits: take every other lock before. Nothing personal belongs in an entry, since
    entries cannot be removed.

    Raises:
        ValueError: `subject` or `payload` is not JSON (NaN, a key that is no string, ...).
    """
    head = repository.lock_head(session)
    time = repository.database_time(session)
    body = canonical_json(
        {
            "index": head.size,
            "time": write_time(time),
            "event": event,
            "subject": dict(subject),
            "payload": dict(payload),
        }
    )
    leaf = leaf_hash(body)
    entry = AuditEntry(
        index=head.size,
        body=body,
        leaf_hash=leaf,
        chain_hash=chain_hash(head.chain_hash, leaf),
        created_at=time,
    )
    session.add(entry)
    # Before the head moves: the database lets it move only to an entry that is there.
    session.flush()
    head.size, head.chain_hash = head.size + 1, entry.chain_hash
    session.flush()
    return entry


def sign_checkpoint(session: Session, signer: Signer, origin: str) -> SignedEnvelope:
    """Return a signed statement of the log's size and hash, in a DSSE envelope."""
    head = repository.read_head(session)
    checkpoint = CheckpointStatement(
        origin=origin,
        size=head.size,
        chain_hash=head.chain_hash.hex(),
        time=repository.database_time(session),
    )
    return signer.sign_envelope(CHECKPOINT_TYPE, write_document(checkpoint))


def issue_record(
    session: Session,
    signer: Signer,
    origin: str,
    *,
    kind: RecordKind,
    request: UnlearningRequest,
    statement: Mapping[str, Any],
) -> EvidenceRecord:
    """Sign a record about an ended request, log it, and sign the log up to it.

    Raises:
        ValueError: The statement breaks its schema (`app.evidence.schemas`), or contradicts `kind`
            or `request`. Nothing was signed or logged.
    """
    # Read as any verifier will read it: what is signed is sure to verify.
    payload = canonical_json(statement)
    parsed = read_record(payload)
    _require_agreement(parsed, kind, request)
    envelope = signer.sign_envelope(STATEMENT_TYPE, payload)
    entry = append(
        session,
        RECORD_ISSUED,
        subject=record_subject(parsed),
        payload=record_payload(parsed, payload),
    )
    record = EvidenceRecord(
        id=parsed.id,
        request_id=request.id,
        kind=kind,
        envelope=write_document(envelope),
        entry_index=entry.index,
        checkpoint=sign_checkpoint(session, signer, origin).model_dump(mode="json"),
    )
    session.add(record)
    session.flush()
    return record


def bundle(session: Session, record: EvidenceRecord) -> dict[str, Any]:
    """Return a record with all that is needed to verify it offline."""
    entry = _entry(session, record.entry_index)
    previous = GENESIS if entry.index == 0 else _entry(session, entry.index - 1).chain_hash
    found = Bundle(
        format="lethe.bundle/v1",
        envelope=read_document(SignedEnvelope, record.envelope),
        entry=entry.body.decode(),
        previous_chain_hash=previous.hex(),
        checkpoint=SignedEnvelope.model_validate(record.checkpoint),
    )
    return found.model_dump(mode="json")


def _entry(session: Session, index: int) -> AuditEntry:
    entry = repository.find_entry(session, index)
    if entry is None:
        raise AuditEntryNotFoundError(
            f"the audit log lacks entry {index}, which a record refers to",
            remedy="The log was damaged: tell the operator, who has to restore the database.",
        )
    return entry


def find_record(session: Session, request_id: uuid.UUID) -> EvidenceRecord:
    """Return the signed record of an unlearning request, whatever its kind.

    Raises:
        RequestNotFoundError: No such request.
        RecordNotFoundError: The request has not ended, or was cancelled.
    """
    request = repository.find_request(session, request_id)
    if request is None:
        raise RequestNotFoundError(
            f"no unlearning request {request_id}",
            field="request_id",
            remedy="GET /v1/unlearning-requests lists those there are.",
        )
    record = repository.find_record(session, request_id)
    if record is None:
        raise RecordNotFoundError(
            f"unlearning request {request_id} is {request.state} and has no record",
            field="request_id",
            remedy="A record is signed when a request is completed, refused or failed; ask then.",
        )
    return record


def find_certificate(session: Session, request_id: uuid.UUID) -> EvidenceRecord:
    """Return the record of a request if it is a certificate.

    Raises:
        RequestNotFoundError: No such request.
        RecordNotFoundError: The request has not ended, or was cancelled.
        NoCertificateError: It ended in something that guarantees nothing.
    """
    record = find_record(session, request_id)
    if record.kind != RecordKind.CERTIFICATE:
        raise NoCertificateError(
            f"unlearning request {request_id} ended in a record of kind {record.kind}, which "
            "guarantees nothing",
            field="request_id",
            remedy=f"GET /v1/unlearning-requests/{request_id}/record returns that record.",
        )
    return record


def _require_agreement(
    statement: RecordStatement, kind: RecordKind, request: UnlearningRequest
) -> None:
    """Refuse a statement that is about something else than what it is issued for."""
    pairs = {
        "kind": (statement.kind, str(kind)),
        "request.id": (statement.request.id, request.id),
        "request.n_forget": (statement.request.n_forget, request.sample_count),
        "request.sample_commitment": (
            statement.request.sample_commitment,
            request.sample_commitment,
        ),
        "model.id": (statement.model.id, request.model_id),
        "method": (str(statement.method), request.method),
        "times.received": (statement.times.received, request.created_at),
    }
    for field, (stated, actual) in pairs.items():
        if stated != actual:
            raise ValueError(f"statement {field}: says {stated}, but the request is {actual}")
