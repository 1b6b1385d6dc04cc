"""The queries behind the audit log and the signed records."""

import datetime
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.evidence.models import AuditEntry, AuditHead, EvidenceRecord
from app.unlearning.models import UnlearningRequest

# What the database holds, not what this session remembers of it.
_FROM_DISK: dict[str, Any] = {"yield_per": 1000, "populate_existing": True}


def lock_head(session: Session) -> AuditHead:
    """Return the end of the log, locked until this transaction ends.

    `populate_existing`: the session may hold the row as it was before it waited for the lock.
    """
    statement = select(AuditHead).with_for_update().execution_options(populate_existing=True)
    return session.scalars(statement).one()


def read_head(session: Session) -> AuditHead:
    """Return the end of the log as committed (or as this transaction extended it)."""
    statement = select(AuditHead).execution_options(populate_existing=True)
    return session.scalars(statement).one()


def database_time(session: Session) -> datetime.datetime:
    """Return the database's clock now, not when the transaction began."""
    now: datetime.datetime = session.scalars(select(func.clock_timestamp())).one()
    return now


def entries(session: Session, *, start: int, limit: int) -> Sequence[AuditEntry]:
    """Return up to `limit` entries from index `start` on, in order."""
    return session.scalars(
        select(AuditEntry).where(AuditEntry.index >= start).order_by(AuditEntry.index).limit(limit)
    ).all()


def stream_entries(session: Session, end: int) -> Iterator[AuditEntry]:
    """Return the entries before index `end`, in order, a batch in memory at a time."""
    statement = select(AuditEntry).where(AuditEntry.index < end).order_by(AuditEntry.index)
    yield from session.scalars(statement.execution_options(**_FROM_DISK))


def stream_records(session: Session) -> Iterator[tuple[EvidenceRecord, AuditEntry | None]]:
    """Return the records with their entries, in log order."""
    statement = (
        select(EvidenceRecord, AuditEntry)
        .outerjoin(AuditEntry, AuditEntry.index == EvidenceRecord.entry_index)
        .order_by(EvidenceRecord.entry_index)
    )
    rows = session.execute(statement.execution_options(**_FROM_DISK))
    yield from ((record, entry) for record, entry in rows)


def find_entry(session: Session, index: int) -> AuditEntry | None:
    """Return one entry, if the log has it."""
    return session.get(AuditEntry, index)


def find_request(session: Session, request_id: uuid.UUID) -> UnlearningRequest | None:
    """Return the unlearning request that a record is asked for."""
    return session.get(UnlearningRequest, request_id)


def find_record(session: Session, request_id: uuid.UUID) -> EvidenceRecord | None:
    """Return the record of an unlearning request, if one was issued."""
    return session.scalars(
        select(EvidenceRecord).where(EvidenceRecord.request_id == request_id)
    ).one_or_none()
