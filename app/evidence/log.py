"""Writing the log: entries in commit order, each with the nodes of the tree that it completes."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from app.errors import LogClosedError
from app.evidence import repository
from app.evidence._fields import write_time
from app.evidence.canonical import canonical_json
from app.evidence.models import AuditEntry, AuditLog
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.tenants.scope import tenant_of


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What an entry will say. Nothing personal: entries cannot be removed.

    Attributes:
        event: What happened, e.g. `unlearning-request.received`.
        subject: Ids of what it happened to.
        payload: Particulars.
    """

    event: str
    subject: Mapping[str, Any]
    payload: Mapping[str, Any]


def append(
    session: Session, event: str, *, subject: Mapping[str, Any], payload: Mapping[str, Any]
) -> AuditEntry:
    """Add an entry to the open log, in the transaction that does what the entry says.

    The log's row lock is held until that transaction ends, so that indices have no gaps and follow
    the order of commits: take every other lock before. Nothing personal belongs in an entry, since
    entries cannot be removed.

    Raises:
        ValueError: `subject` or `payload` is not JSON (NaN, a key that is no string, ...).
    """
    return append_many(session, [NewEntry(event, subject, payload)])[0]


def append_many(session: Session, entries: Sequence[NewEntry]) -> list[AuditEntry]:
    """Add entries in their order, as `append` does, with one statement for all of them.

    Raises:
        ValueError: One of them is not JSON; none was added.
    """
    # Whose they are may have to be looked up: before the lock, for which all writers wait.
    owners = [tenant_of(session, entry.subject) for entry in entries]
    return _append(session, lock_open_log(session), entries, owners)


def close_log(session: Session, payload: Mapping[str, Any]) -> AuditLog:
    """End the open log with an entry that says why; nothing is ever added to it again.

    Call `open_log` in the same transaction: a service without an open log stands still.
    """
    log = lock_open_log(session)
    _append(session, log, [NewEntry("log.closed", {"origin": log.origin}, payload)], [None])
    log.closed_at = repository.database_time(session)
    session.flush()
    return log


def open_log(session: Session, origin: str, payload: Mapping[str, Any]) -> AuditLog:
    """Begin a new log, whose first entry says what came before it."""
    log = AuditLog(id=repository.next_log_id(session), origin=origin, size=0, frontier=b"")
    session.add(log)
    session.flush()
    _append(session, log, [NewEntry("log.opened", {"origin": origin}, payload)], [None])
    return log


def lock_open_log(session: Session) -> AuditLog:
    """Return the open log, locked until this transaction ends.

    Raises:
        LogClosedError: There is none.
    """
    # One that was closed while we waited for its lock is passed over without a look at the one that
    # was opened in its place: look again.
    for _ in range(3):
        if (log := repository.lock_open_log(session)) is not None:
            return log
    raise LogClosedError(
        "the audit log is closed and no other was opened",
        remedy="The database was damaged: restore it, or ask for help with its table audit_log.",
    )


def _append(
    session: Session,
    log: AuditLog,
    entries: Sequence[NewEntry],
    owners: Sequence[uuid.UUID | None],
) -> list[AuditEntry]:
    time = repository.database_time(session)
    frontier = Frontier.from_bytes(log.size, log.frontier)
    written = []
    for entry, owner in zip(entries, owners, strict=True):
        body = canonical_json(
            {
                "index": frontier.size,
                "time": write_time(time),
                "event": entry.event,
                "subject": dict(entry.subject),
                "payload": dict(entry.payload),
            }
        )
        index = frontier.size
        frontier, completed = frontier.append(leaf_hash(body))
        written.append(
            {
                "log_id": log.id,
                "index": index,
                "body": body,
                "subtrees": b"".join(completed),
                "tenant_id": owner,
                "created_at": time,
            }
        )
    if not written:
        return []
    # Before the log's end moves: the database lets it move over written entries only.
    # With its nulls: a column that is left out is the default tenant's.
    session.execute(insert(AuditEntry), written, execution_options={"render_nulls": True})
    log.size, log.frontier = frontier.size, frontier.to_bytes()
    session.flush()
    return [AuditEntry(**values) for values in written]
