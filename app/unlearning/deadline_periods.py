"""How a request's period begins, is counted anew, and stops with the request.

`deadline_service` has what controllers do about it.
"""

import datetime

from sqlalchemy.orm import Session

from app.errors import InvalidInputError
from app.settings import Settings
from app.unlearning import deadline_repository as repository
from app.unlearning.deadline_calendar import make_calendar
from app.unlearning.deadline_models import CheckOutcome, DeadlineInterval
from app.unlearning.deadlines import APPLIES_FROM, MONTHS, Calendar, Present
from app.unlearning.models import UnlearningRequest

# Clocks of two hosts differ; what is further ahead is a mistake that would move a deadline.
CLOCK_SKEW = datetime.timedelta(minutes=5)


def calendar_of(settings: Settings) -> Calendar:
    """Return the calendar that the settings describe."""
    return make_calendar(
        settings.deadline_time_zone, settings.deadline_holidays, settings.deadline_further_holidays
    )


def at(settings: Settings, now: datetime.datetime) -> Present:
    """Return a moment, and what is near it."""
    return Present(calendar_of(settings), now, settings.at_risk_days)


def begin(
    session: Session, settings: Settings, received_at: datetime.datetime | None
) -> tuple[datetime.datetime, datetime.datetime]:
    """Return when a new request was received, and when it is due.

    Args:
        session: Its database's clock says what is now.
        settings: The calendar.
        received_at: When the controller got it; None for now.

    Raises:
        InvalidInputError: That is yet to come, or from before the GDPR.
    """
    now = repository.now(session)
    if received_at is None:
        received_at = now
    elif not APPLIES_FROM <= received_at <= now + CLOCK_SKEW:
        raise InvalidInputError(
            f"received_at: {received_at.isoformat()} is not between {APPLIES_FROM.date()}, from"
            f" when the GDPR applies, and now, {now.isoformat(timespec='seconds')}",
            field="received_at",
            remedy="Send when the person's request reached the controller, or leave it out.",
        )
    return received_at, calendar_of(settings).due_at(received_at)


def count_anew(session: Session, settings: Settings, request: UnlearningRequest) -> None:
    """Set when a request is due, from its receipt, its extension and its pauses."""
    request.due_at = calendar_of(settings).due_at(
        request.received_at,
        months=MONTHS + request.extension_months,
        pauses=repository.pauses(session, request),
    )
    session.flush()


def stop(session: Session, request: UnlearningRequest, outcome: CheckOutcome) -> None:
    """End a check that is open when its request ends; the deadline is again the one before it."""
    check = repository.open_check(session, request)
    if check is None:
        return
    end_check(session, check, outcome)
    request.due_at = check.due_after = check.due_before
    session.flush()


def end_check(session: Session, check: DeadlineInterval, outcome: CheckOutcome) -> None:
    """Let a check of an identity end now."""
    check.ended_at = repository.now(session)
    check.outcome = outcome
    session.flush()
