"""Queries on deadlines. Rows of intervals are written under the lock of their request."""

import datetime
from collections.abc import Sequence

from sqlalchemy import ColumnElement, DateTime, Select, select, type_coerce
from sqlalchemy.orm import Session

from app.unlearning.deadline_models import DeadlineInterval, IntervalKind
from app.unlearning.deadlines import Pause, Present
from app.unlearning.models import OPEN_STATES, UnlearningRequest
from app.unlearning.repository import CLOCK

DUE_ORDER = (datetime.datetime, int)  # types of the columns that `by_due_date` orders by


def now(session: Session) -> datetime.datetime:
    """Return the database's clock."""
    moment: datetime.datetime = session.execute(select(CLOCK)).scalar_one()
    return moment


def is_overdue(present: Present) -> ColumnElement[bool]:
    """Return whether a request waits though its deadline has passed, as `Standing` says it."""
    return _waits() & (UnlearningRequest.due_at <= present.now)


def is_at_risk(present: Present) -> ColumnElement[bool]:
    """Return whether a request waits and its deadline is near, as `Standing` says it."""
    return (
        _waits()
        & (UnlearningRequest.due_at > present.now)
        & (UnlearningRequest.due_at <= present.horizon)
    )


def _waits() -> ColumnElement[bool]:
    # NULL would make both a condition and its opposite false.
    return UnlearningRequest.due_at.is_not(None) & UnlearningRequest.state.in_(OPEN_STATES)


def narrow(
    statement: Select[UnlearningRequest],
    present: Present,
    *,
    due_before: datetime.datetime | None = None,
    at_risk: bool | None = None,
    overdue: bool | None = None,
) -> Select[UnlearningRequest]:
    """Return a statement for those of its requests whose deadline is so; None: whatever it is."""
    if due_before is not None:
        statement = statement.where(UnlearningRequest.due_at < due_before)
    for wanted, holds in ((at_risk, is_at_risk(present)), (overdue, is_overdue(present))):
        if wanted is not None:
            statement = statement.where(holds if wanted else ~holds)
    return statement


def by_due_date(statement: Select[UnlearningRequest]) -> Select[UnlearningRequest]:
    """Return a statement with the earliest deadline first; whose clock stands still has none."""
    # Said anew, since sqlakeyset warns of columns that may be NULL, which none is here.
    due_at = type_coerce(UnlearningRequest.due_at, DateTime(timezone=True))
    return (
        statement.where(UnlearningRequest.due_at.is_not(None))
        .order_by(None)
        .order_by(due_at, UnlearningRequest.arrival)
    )


def intervals(session: Session, request: UnlearningRequest) -> Sequence[DeadlineInterval]:
    """Return what changed a request's deadline, in its order."""
    return session.scalars(
        select(DeadlineInterval)
        .where(DeadlineInterval.request_id == request.id)
        .order_by(DeadlineInterval.began_at, DeadlineInterval.id)
    ).all()


def pauses(session: Session, request: UnlearningRequest) -> list[Pause]:
    """Return when a request's clock stood still, in its order; a pause that lasts is none yet."""
    return [
        Pause(interval.began_at, interval.ended_at)
        for interval in intervals(session, request)
        if interval.ended_at is not None  # extensions have no end
    ]


def open_check(session: Session, request: UnlearningRequest) -> DeadlineInterval | None:
    """Return the check of the identity that a request waits for."""
    return session.scalars(
        select(DeadlineInterval).where(
            DeadlineInterval.request_id == request.id,
            DeadlineInterval.kind == IntervalKind.IDENTITY_CHECK,
            DeadlineInterval.ended_at.is_(None),
        )
    ).one_or_none()
