"""The audit log and the signed records: append, issue, find, prove, deliver."""

import base64
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.errors import (
    AuditEntryNotFoundError,
    InconsistentLogError,
    InvalidInputError,
    NoCertificateError,
    RecordNotFoundError,
    RequestNotFoundError,
)
from app.evidence import repository
from app.evidence.formats import Bundle, ConsistencyProof, SignedEnvelope
from app.evidence.keys import keyring
from app.evidence.keys.signing import Signer
from app.evidence.log import NewEntry, append, append_many, close_log, lock_open_log, open_log
from app.evidence.models import (
    AuditCheckpoint,
    AuditEntry,
    AuditLog,
    EvidenceRecord,
    KeyRole,
    RecordKind,
)
from app.evidence.records.schemas import STATEMENT_TYPE
from app.evidence.records.statements import (
    RECORD_ISSUED,
    RecordStatement,
    read_document,
    read_record,
    record_payload,
    record_subject,
    write_document,
    write_record,
)
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.merkle import MissingNodeError, consistency_proof, inclusion_proof
from app.evidence.transparency.notes import LogProof
from app.unlearning.models import UnlearningRequest

__all__ = [
    "NewEntry",
    "append",
    "append_many",
    "bundle",
    "checkpoint_covering",
    "close_log",
    "find_certificate",
    "find_entry",
    "find_log",
    "find_record",
    "issue_record",
    "open_log",
    "prove_consistency",
    "prove_inclusion",
]


def issue_record(
    session: Session,
    signer: Signer,
    *,
    kind: RecordKind,
    request: UnlearningRequest,
    statement: Mapping[str, Any],
) -> EvidenceRecord:
    """Sign a record about an ended request, and log it.

    The checkpoint that covers it is signed once this transaction is committed: `Notary.sign`.

    Raises:
        ValueError: The statement breaks its schema (`app.evidence.records.schemas`), or contradicts
            `kind` or `request`. Nothing was signed or logged.
        SigningKeyError: The key is not one that the log knows.
    """
    # Read as any verifier will read it: what is signed is sure to verify.
    payload = write_record(statement)
    parsed = read_record(payload, STATEMENT_TYPE)
    _require_agreement(parsed, kind, request)
    # With the log locked, so that no key is revoked between the answer and the signature.
    key = keyring.require_active(session, KeyRole.RECORDS, signer, lock_open_log(session))
    envelope = key.sign_envelope(STATEMENT_TYPE, payload)
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
        log_id=entry.log_id,
        entry_index=entry.index,
    )
    session.add(record)
    session.flush()
    return record


def bundle(
    session: Session, record: EvidenceRecord, notary: Notary, *, since: int | None = None
) -> dict[str, Any]:
    """Return a record with all that is needed to verify it offline.

    Args:
        session: Its transaction has not appended to the log.
        record: Committed.
        notary: Signs a checkpoint where none covers the record yet.
        since: Size of a checkpoint that the caller has kept: proves that the bundle's checkpoint
            belongs to the same log.

    Raises:
        InvalidInputError: The log has no such size.
        InconsistentLogError: The log is damaged.
    """
    entry = find_entry(session, record.log_id, record.entry_index)
    checkpoint = checkpoint_covering(session, entry, notary)
    hashes = _inclusion(session, entry, checkpoint)
    consistency = None
    if since is not None:
        log = find_log(session, record.log_id)
        first, second = sorted((since, checkpoint.size))
        proof = prove_consistency(session, log, first, second, field="since")
        consistency = ConsistencyProof(
            size=since, hashes=tuple(base64.b64encode(value).decode() for value in proof)
        )
    timestamp = repository.find_timestamp(session, checkpoint.log_id, checkpoint.size)
    found = Bundle(
        format="lethe.bundle/v2",
        envelope=read_document(SignedEnvelope, record.envelope),
        entry=entry.body.decode(),
        proof=LogProof(entry.index, hashes, checkpoint.note).text(),
        consistency=consistency,
        timestamp=None if timestamp is None else base64.b64encode(timestamp).decode(),
    )
    return found.model_dump(mode="json")


def checkpoint_covering(session: Session, entry: AuditEntry, notary: Notary) -> AuditCheckpoint:
    """Return a stored checkpoint that covers an entry, or a new one.

    Raises:
        InconsistentLogError: None can be signed: the log is damaged, or closed without a last one.
    """
    found = repository.covering_checkpoint(session, entry.log_id, entry.index)
    if found is None:
        found = notary.sign()
    if found.log_id != entry.log_id or found.size <= entry.index:
        raise InconsistentLogError(
            f"no checkpoint covers entry {entry.index} of log {entry.log_id}",
            remedy="Look with `lethe audit verify` at what is wrong with the log.",
        )
    return found


def prove_inclusion(
    session: Session, entry: AuditEntry, checkpoint: AuditCheckpoint
) -> tuple[tuple[bytes, ...], str]:
    """Return the inclusion proof of an entry, as hashes and as a C2SP tlog-proof.

    Raises:
        InconsistentLogError: The log is damaged.
    """
    hashes = _inclusion(session, entry, checkpoint)
    return hashes, LogProof(entry.index, hashes, checkpoint.note).text()


def prove_consistency(
    session: Session, log: AuditLog, first: int, second: int, *, field: str
) -> tuple[bytes, ...]:
    """Return the proof that the log of `second` entries continues that of `first`.

    Raises:
        InvalidInputError: The log has not so many entries, or `first` is the larger.
        InconsistentLogError: The log is damaged.
    """
    if not 0 <= first <= second <= log.size:
        raise InvalidInputError(
            f"{field}: the log has {log.size} entries, so it cannot prove that {second} continue"
            f" {first}",
            field=field,
            remedy="Send sizes of checkpoints in their order. If a checkpoint of a larger log"
            " verifies, the log was cut off since: keep it, and tell the operator.",
        )
    try:
        return consistency_proof(first, second, repository.fetch_nodes(session, log.id))
    except MissingNodeError as error:
        raise _damaged(log.id, error) from error


def find_log(session: Session, log_id: int | None) -> AuditLog:
    """Return one of the service's logs, the open one if none is named.

    Raises:
        InvalidInputError: There is none of this number.
    """
    log = repository.open_log(session) if log_id is None else repository.find_log(session, log_id)
    if log is None:
        numbers = [one.id for one in repository.logs(session)]
        raise InvalidInputError(
            f"log: there is no log {log_id}", field="log", remedy=f"Choose from {numbers}."
        )
    return log


def find_entry(session: Session, log_id: int, index: int) -> AuditEntry:
    """Return an entry.

    Raises:
        AuditEntryNotFoundError: The log has none of this index.
    """
    entry = repository.find_entry(session, log_id, index)
    if entry is None:
        raise AuditEntryNotFoundError(
            f"log {log_id} has no entry {index}",
            field="index",
            remedy="Ask for an index below the checkpoint's size. Where a record refers to it, the"
            " log was damaged: the operator looks with `lethe audit verify`.",
        )
    return entry


def _inclusion(
    session: Session, entry: AuditEntry, checkpoint: AuditCheckpoint
) -> tuple[bytes, ...]:
    try:
        return inclusion_proof(
            entry.index, checkpoint.size, repository.fetch_nodes(session, entry.log_id)
        )
    except MissingNodeError as error:
        raise _damaged(entry.log_id, error) from error


def _damaged(log_id: int, error: MissingNodeError) -> InconsistentLogError:
    return InconsistentLogError(
        f"the audit log {log_id} is damaged: {error}",
        remedy="The operator looks with `lethe audit verify`, and restores the database.",
    )


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
