"""The queries behind the audit log, its tree and the signed records."""

import datetime
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.evidence.models import (
    AnchorKind,
    AuditAnchor,
    AuditCheckpoint,
    AuditEntry,
    AuditLog,
    EvidenceRecord,
)
from app.evidence.transparency.merkle import Fetch, Hash, NodeId
from app.unlearning.models import UnlearningRequest

HASH_BYTES = 32

# What the database holds, not what this session remembers of it.
_FROM_DISK: dict[str, Any] = {"yield_per": 1000, "populate_existing": True}


def lock_open_log(session: Session) -> AuditLog | None:
    """Return the open log, locked until this transaction ends.

    `populate_existing`: the session may hold the row as it was before it waited for the lock.
    """
    statement = select(AuditLog).where(AuditLog.closed_at.is_(None)).with_for_update()
    return session.scalars(statement.execution_options(populate_existing=True)).one_or_none()


def open_log(session: Session) -> AuditLog:
    """Return the open log as committed (or as this transaction extended it)."""
    statement = select(AuditLog).where(AuditLog.closed_at.is_(None))
    return session.scalars(statement.execution_options(populate_existing=True)).one()


def find_log(session: Session, log_id: int) -> AuditLog | None:
    """Return a log by its number, open or closed."""
    return session.get(AuditLog, log_id, populate_existing=True)


def find_log_of(session: Session, origin: str) -> AuditLog | None:
    """Return a log by its origin, open or closed."""
    return session.scalars(select(AuditLog).where(AuditLog.origin == origin)).one_or_none()


def logs(session: Session) -> Sequence[AuditLog]:
    """Return every log, in the order of their opening."""
    return session.scalars(
        select(AuditLog).order_by(AuditLog.id).execution_options(populate_existing=True)
    ).all()


def next_log_id(session: Session) -> int:
    """Return the number of the log that is opened next."""
    return (session.scalar(select(func.max(AuditLog.id))) or 0) + 1


def database_time(session: Session) -> datetime.datetime:
    """Return the database's clock: all of a deployment's processes agree on it."""
    time: datetime.datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return time


def fetch_nodes(session: Session, log_id: int) -> Fetch:
    """Return a function that reads nodes of a log's tree, each from the entry that completed it."""

    def fetch(wanted: Collection[NodeId]) -> Mapping[NodeId, Hash]:
        places = {node: ((node[1] + 1) << node[0]) - 1 for node in wanted}
        rows = session.execute(
            select(AuditEntry.index, AuditEntry.subtrees).where(
                AuditEntry.log_id == log_id, AuditEntry.index.in_(set(places.values()))
            )
        )
        subtrees: dict[int, bytes] = dict(rows.all())
        found = {}
        for (level, index), place in places.items():
            start = HASH_BYTES * level
            node = subtrees.get(place, b"")[start : start + HASH_BYTES]
            if len(node) == HASH_BYTES:
                found[level, index] = node
        return found

    return fetch


def entries(session: Session, log_id: int, *, start: int, limit: int) -> Sequence[AuditEntry]:
    """Return the entries of a log from an index on."""
    statement = (
        select(AuditEntry)
        .where(AuditEntry.log_id == log_id, AuditEntry.index >= start)
        .order_by(AuditEntry.index)
        .limit(limit)
    )
    return session.scalars(statement).all()


def stream_records(session: Session) -> Iterator[tuple[EvidenceRecord, AuditEntry | None]]:
    """Return the records with their entries, in log order."""
    statement = (
        select(EvidenceRecord, AuditEntry)
        .outerjoin(
            AuditEntry,
            (AuditEntry.log_id == EvidenceRecord.log_id)
            & (AuditEntry.index == EvidenceRecord.entry_index),
        )
        .order_by(EvidenceRecord.log_id, EvidenceRecord.entry_index)
    )
    rows = session.execute(statement.execution_options(**_FROM_DISK))
    yield from ((record, entry) for record, entry in rows)


def find_entry(session: Session, log_id: int, index: int) -> AuditEntry | None:
    """Return one entry, if the log has it."""
    return session.get(AuditEntry, (log_id, index))


def find_request(session: Session, request_id: uuid.UUID) -> UnlearningRequest | None:
    """Return the unlearning request that a record is asked for."""
    return session.get(UnlearningRequest, request_id)


def find_record(session: Session, request_id: uuid.UUID) -> EvidenceRecord | None:
    """Return the record of an unlearning request, if one was issued."""
    return session.scalars(
        select(EvidenceRecord).where(EvidenceRecord.request_id == request_id)
    ).one_or_none()


def newest_checkpoint(session: Session, log_id: int) -> AuditCheckpoint | None:
    """Return the checkpoint of a log that covers most."""
    return session.scalars(
        select(AuditCheckpoint)
        .where(AuditCheckpoint.log_id == log_id)
        .order_by(AuditCheckpoint.size.desc())
        .limit(1)
    ).one_or_none()


def covering_checkpoint(session: Session, log_id: int, index: int) -> AuditCheckpoint | None:
    """Return the earliest checkpoint that covers an entry; a timestamped one, if there is any."""
    covering = (
        select(AuditCheckpoint)
        .where(AuditCheckpoint.log_id == log_id, AuditCheckpoint.size > index)
        .order_by(AuditCheckpoint.size)
        .limit(1)
    )
    stamped = covering.join(
        AuditAnchor,
        (AuditAnchor.log_id == AuditCheckpoint.log_id)
        & (AuditAnchor.size == AuditCheckpoint.size)
        & (AuditAnchor.kind == AnchorKind.TIMESTAMP),
    )
    found = session.scalars(stamped).first()
    return found if found is not None else session.scalars(covering).first()


def add_checkpoint(session: Session, *, log_id: int, size: int, root: bytes, note: str) -> bool:
    """Store a checkpoint; False if another process has stored one of that size."""
    inserted = session.execute(
        insert(AuditCheckpoint)
        .values(log_id=log_id, size=size, root=root, note=note)
        .on_conflict_do_nothing()
        .returning(AuditCheckpoint.size)
    )
    return inserted.scalar_one_or_none() is not None


def find_checkpoint(session: Session, log_id: int, size: int) -> AuditCheckpoint | None:
    """Return the checkpoint of a log at a size."""
    return session.get(AuditCheckpoint, (log_id, size))


def find_timestamp(session: Session, log_id: int, size: int) -> bytes | None:
    """Return the first RFC 3161 timestamp of a checkpoint."""
    return session.scalars(
        select(AuditAnchor.content)
        .where(
            AuditAnchor.log_id == log_id,
            AuditAnchor.size == size,
            AuditAnchor.kind == AnchorKind.TIMESTAMP,
        )
        .order_by(AuditAnchor.created_at)
        .limit(1)
    ).first()
