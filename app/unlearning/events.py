"""What happens to unlearning requests, as it happens: one poller a process, for all who watch.

State changes are entries of the audit log, whose indices follow the order of commits without gaps:
whoever has read up to one index has missed nothing before it. So the poller reads the log's tail,
and a client that comes back says which entry it saw last. Progress is a column that is overwritten:
of it clients see the latest value, and never one of the past.

LISTEN/NOTIFY would need a trigger, and takes a lock at commit that all writers share (ADR 0028).
"""

import asyncio
import contextlib
import datetime
import functools
import json
import re
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
import anyio.to_thread
import structlog
from sqlalchemy import ColumnElement, Select, literal_column, select, tuple_
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.errors import InvalidInputError
from app.evidence.models import REQUEST_OF_ENTRY, AuditEntry, AuditLog
from app.unlearning.models import FINAL_STATES, RequestState, UnlearningRequest

POLL_SECONDS = 0.1
READ_SECONDS = 10.0  # a database that hangs is one that is away
TAIL_ENTRIES = 1000  # read at once

STATE_AFTER = {
    "unlearning-request.received": RequestState.QUEUED,
    "unlearning-request.started": RequestState.RUNNING,
    "unlearning-request.requeued": RequestState.QUEUED,
    "unlearning-request.completed": RequestState.COMPLETED,
    "unlearning-request.refused": RequestState.REFUSED,
    "unlearning-request.failed": RequestState.FAILED,
    "unlearning-request.cancelled": RequestState.CANCELLED,
}

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where in the audit logs an entry is; positions are in the order of commits."""

    log: int
    index: int

    def __str__(self) -> str:
        """Return the event's id: the index in the first log; later logs are named before it."""
        return str(self.index) if self.log == 1 else f"{self.log}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an event's id.

        Raises:
            InvalidInputError: It is none.
        """
        found = re.fullmatch(r"(?:([1-9][0-9]{0,8})\.)?([0-9]{1,18})", text, re.ASCII)
        if found is None:
            raise unknown_event(text)
        return cls(int(found[1] or 1), int(found[2]))


@dataclass(frozen=True, slots=True)
class Change:
    """A request's new state, and the log entry that says so."""

    position: Position
    request_id: uuid.UUID
    event: str
    state: RequestState
    time: datetime.datetime

    @property
    def is_final(self) -> bool:
        """Whether nothing follows, unless an operator lets the request run again."""
        return self.state in FINAL_STATES


@dataclass(slots=True)
class Watch:
    """One client's view of a request: what it has yet to be told.

    A client that reads slowly holds a few changes of state and the latest progress, no more.
    """

    request_id: uuid.UUID
    changes: deque[Change] = field(default_factory=deque)
    progress: dict[str, Any] | None = None
    is_open: bool = False  # its past has been read
    is_lost: bool = False  # the database is away: the client has to come back
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    async def opened(self) -> bool:
        """Wait until `changes` holds the past; return whether it could be read."""
        while not (self.is_open or self.is_lost):
            await self.awake.wait()
            self.awake.clear()
        return self.is_open

    async def news(self, seconds: float) -> bool:
        """Wait until there is something to tell; return False if there was nothing for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self.awake.wait()
        except TimeoutError:
            return False
        self.awake.clear()
        return True

    def show(self, progress: dict[str, Any] | None) -> None:
        """Take the progress of a running request."""
        if progress is not None and progress != self.progress:
            self.progress = progress
            self.awake.set()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the database said at one moment."""

    end: Position
    tail: list[Change]  # since the reading before, of whatever request
    past: list[Change]  # all, of the requests that somebody has just begun to watch
    progress: dict[uuid.UUID, dict[str, Any]]  # of running requests


class EventFeed:
    """The poller of one process. It runs while somebody watches, on the server's event loop."""

    def __init__(self, sessions: Callable[[], Session]) -> None:
        self._sessions = sessions
        self._watches: defaultdict[uuid.UUID, set[int]] = defaultdict(set)
        self._by_number: dict[int, Watch] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """How many clients watch."""
        return len(self._by_number)

    @contextlib.contextmanager
    def watching(self, request_id: uuid.UUID) -> Iterator[Watch]:
        """Watch a request until the context ends, whoever ends it."""
        watch = Watch(request_id)
        number = id(watch)
        self._by_number[number] = watch
        self._watches[request_id].add(number)
        if self._task is None:
            self._task = asyncio.create_task(self._poll())
        try:
            yield watch
        finally:
            del self._by_number[number]
            self._watches[request_id].discard(number)
            if not self._watches[request_id]:
                del self._watches[request_id]

    async def _poll(self) -> None:
        # A limiter of its own: routes that keep every thread busy must not silence the streams.
        limiter = anyio.CapacityLimiter(1)
        end: Position | None = None
        try:
            while self._by_number:
                read = functools.partial(
                    _read, self._sessions, end, list(self._watches), self._fresh()
                )
                with anyio.fail_after(READ_SECONDS):
                    reading = await anyio.to_thread.run_sync(
                        read, abandon_on_cancel=True, limiter=limiter
                    )
                end = reading.end
                self._tell(reading)
                await asyncio.sleep(POLL_SECONDS)
        except (SQLAlchemyError, TimeoutError) as error:
            logger.warning(
                "events.database-unavailable", error=repr(error), remedy="the clients come back"
            )
        finally:
            # At once with the end, so that who comes next starts another poller.
            self._task = None
            for watch in self._by_number.values():
                watch.is_lost = True
                watch.awake.set()

    def _fresh(self) -> list[uuid.UUID]:
        return list({w.request_id for w in self._by_number.values() if not w.is_open})

    def _tell(self, reading: _Reading) -> None:
        past: dict[uuid.UUID, list[Change]] = defaultdict(list)
        for change in reading.past:
            past[change.request_id].append(change)
        news: dict[uuid.UUID, list[Change]] = defaultdict(list)
        for change in reading.tail:
            if change.request_id in self._watches:
                news[change.request_id].append(change)
        for watch in self._by_number.values():
            self._tell_one(watch, past, news, reading.progress.get(watch.request_id))

    @staticmethod
    def _tell_one(
        watch: Watch,
        past: dict[uuid.UUID, list[Change]],
        news: dict[uuid.UUID, list[Change]],
        progress: dict[str, Any] | None,
    ) -> None:
        if watch.is_open:
            changes = news.get(watch.request_id, [])
        elif watch.request_id in past:
            changes = past[watch.request_id]
            watch.is_open = True
        else:
            return  # It came while the database was read: the next reading has its past.
        if changes:
            watch.progress = None  # of the state before
            watch.changes.extend(changes)
            watch.awake.set()
        watch.show(progress)


def unknown_event(text: str) -> InvalidInputError:
    """Return the error for an event id that the request's stream never had."""
    return InvalidInputError(
        f"Last-Event-ID: {text[:80]!r} is no event of this request",
        field="Last-Event-ID",
        remedy="Send the id of the last event that you got of this request, or none for all.",
    )


def _read(
    sessions: Callable[[], Session],
    end: Position | None,
    watched: list[uuid.UUID],
    fresh: list[uuid.UUID],
) -> _Reading:
    """Read at one moment, so that progress and state, and past and tail, belong together."""
    with sessions() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        now = session.execute(
            select(AuditLog.id, AuditLog.size).order_by(AuditLog.id.desc()).limit(1)
        ).one()
        return _Reading(
            end=Position(now.id, now.size - 1),
            tail=[] if end is None else list(_tail(session, end)),
            past=list(_past(session, fresh)) if fresh else [],
            progress=_progress(session, watched),
        )


def _tail(session: Session, end: Position) -> Iterator[Change]:
    place = tuple_(AuditEntry.log_id, AuditEntry.index)
    while True:
        rows = session.execute(_entries().where(place > (end.log, end.index)).limit(TAIL_ENTRIES))
        found = [(Position(log, index), body) for log, index, body in rows]
        for position, body in found:
            change = _change(position, body)
            if change is not None:
                yield change
        if len(found) < TAIL_ENTRIES:
            return
        end = found[-1][0]


def _past(session: Session, requests: list[uuid.UUID]) -> Iterator[Change]:
    about: ColumnElement[str] = literal_column(REQUEST_OF_ENTRY)
    wanted = [str(request_id) for request_id in requests]
    for log, index, body in session.execute(_entries().where(about.in_(wanted))):
        change = _change(Position(log, index), body)
        if change is not None:
            yield change


def _progress(session: Session, requests: list[uuid.UUID]) -> dict[uuid.UUID, dict[str, Any]]:
    rows = session.execute(
        select(UnlearningRequest.id, UnlearningRequest.progress).where(
            UnlearningRequest.id.in_(requests),
            UnlearningRequest.state == RequestState.RUNNING,
            UnlearningRequest.progress.is_not(None),
        )
    )
    return {row.id: row.progress for row in rows}


def _entries() -> Select[int, int, bytes]:
    return select(AuditEntry.log_id, AuditEntry.index, AuditEntry.body).order_by(
        AuditEntry.log_id, AuditEntry.index
    )


def _change(position: Position, body: bytes) -> Change | None:
    """Read an entry; None if it changes no request's state."""
    entry = json.loads(body)
    state = STATE_AFTER.get(entry["event"])
    if state is None:
        return None
    return Change(
        position=position,
        request_id=uuid.UUID(entry["subject"]["request_id"]),
        event=entry["event"],
        state=state,
        time=datetime.datetime.fromisoformat(entry["time"]),
    )
