"""What controllers do about a request's deadline: extend it, ask who asks, reject the request.

Each step is an entry of the log without the controller's words, which may name a person. Functions
flush; whoever opened the session commits.
"""

import datetime
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.artifacts.store import ArtifactStore
from app.db import new_id
from app.errors import (
    DeadlineExtendedError,
    DeadlinePassedError,
    NoIdentityCheckError,
    RequestNotWaitingError,
)
from app.evidence import service as evidence
from app.evidence._fields import write_time
from app.jobs import JobQueue
from app.settings import Settings
from app.unlearning import deadline_periods as periods
from app.unlearning import deadline_repository as repository
from app.unlearning import service
from app.unlearning.deadline_models import (
    CheckOutcome,
    DeadlineInterval,
    ExtensionReason,
    IntervalKind,
    RejectionGround,
)
from app.unlearning.models import OPEN_STATES, WAITING_STATES, RequestState, UnlearningRequest

REJECTED_BY_CONTROLLER = "rejected-by-controller"


def history(session: Session, request: UnlearningRequest) -> Sequence[DeadlineInterval]:
    """Return every interval that changed a request's deadline, the earliest first."""
    return repository.intervals(session, request)


def extend(
    session: Session,
    settings: Settings,
    request_id: uuid.UUID,
    *,
    months: int,
    reason: ExtensionReason,
    explanation: str,
    actor: str,
) -> UnlearningRequest:
    """Extend the period of a request, once and while it runs (Art. 12(3) GDPR).

    While the identity is in doubt the first month stands still, and can still be extended.

    Raises:
        RequestNotFoundError: There is none with this id.
        RequestNotWaitingError: It has ended.
        DeadlineExtendedError: It was extended before.
        DeadlinePassedError: The person was to be informed within the first month, which is over.
    """
    request = service.lock(session, request_id)
    if request.state not in OPEN_STATES:
        raise _not_waiting(request, "Only what still waits for its end can be extended.")
    if request.extension_months:
        raise DeadlineExtendedError(
            f"unlearning request {request.id} was extended by {request.extension_months} months"
            " before",
            field="request_id",
            remedy="A period is extended once (Art. 12(3) GDPR): answer by the deadline it has.",
        )
    check = repository.open_check(session, request)
    if check is None:
        due_before = _require_time(session, request, "extended", "reasons are given within it")
    else:
        due_before = check.due_before
    interval = DeadlineInterval(
        id=new_id(),
        request_id=request.id,
        kind=IntervalKind.EXTENSION,
        began_at=repository.now(session),
        months=months,
        reason=reason,
        explanation=explanation,
        due_before=due_before,
    )
    request.extension_months = months
    session.add(interval)
    session.flush()
    if check is None:
        periods.count_anew(session, settings, request)
        interval.due_after = request.due_at
        session.flush()
    _log(
        session,
        request,
        "deadline-extended",
        actor=actor,
        months=months,
        reason=str(reason),
        due_at=_due(request),
    )
    return request


def begin_identity_check(
    session: Session, request_id: uuid.UUID, *, explanation: str, actor: str
) -> UnlearningRequest:
    """Take a request out of the queue until its person is known (Art. 12(6) GDPR).

    Its clock stands still. Twice is as good as once: the first explanation stays.

    Raises:
        RequestNotFoundError: There is none with this id.
        RequestNotWaitingError: It is running or has ended.
        DeadlinePassedError: Its period is over: there is nothing left to suspend.
    """
    request = service.lock(session, request_id)
    if request.state == RequestState.IDENTITY_CHECK:
        return request
    if request.state != RequestState.QUEUED:
        raise _not_waiting(request, "Who asks has to be known before anything is computed.")
    due_before = _require_time(session, request, "suspended", "an answer is owed already")
    session.add(
        DeadlineInterval(
            id=new_id(),
            request_id=request.id,
            kind=IntervalKind.IDENTITY_CHECK,
            began_at=repository.now(session),
            explanation=explanation,
            due_before=due_before,
        )
    )
    request.state = RequestState.IDENTITY_CHECK
    request.due_at = None
    session.flush()
    _log(session, request, "identity-check-begun", actor=actor)
    return request


def confirm_identity(
    session: Session, queue: JobQueue, settings: Settings, request_id: uuid.UUID, *, actor: str
) -> UnlearningRequest:
    """Put a request back to its old place in the queue; its clock runs on.

    Raises:
        RequestNotFoundError: There is none with this id.
        NoIdentityCheckError: Its identity is not being checked.
    """
    request, check = _in_check(session, request_id)
    periods.end_check(session, check, CheckOutcome.CONFIRMED)
    periods.count_anew(session, settings, request)
    check.due_after = request.due_at
    request.state = RequestState.QUEUED
    session.flush()
    _log(session, request, "identity-confirmed", actor=actor, due_at=_due(request))
    queue.ring(session)
    return request


def reject_identity(
    session: Session, store: ArtifactStore, request_id: uuid.UUID, *, explanation: str, actor: str
) -> UnlearningRequest:
    """End a request whose person cannot be identified (Art. 12(2) GDPR); its samples are shredded.

    Raises:
        RequestNotFoundError: There is none with this id.
        NoIdentityCheckError: Its identity is not being checked.
    """
    request, _ = _in_check(session, request_id)
    return _reject(
        session,
        store,
        request,
        ground=RejectionGround.NOT_IDENTIFIED,
        explanation=explanation,
        outcome=CheckOutcome.REJECTED,
        actor=actor,
    )


def reject(
    session: Session,
    store: ArtifactStore,
    request_id: uuid.UUID,
    *,
    ground: RejectionGround,
    explanation: str,
    actor: str,
) -> UnlearningRequest:
    """End a request that the controller does not act on, before anything was computed.

    Raises:
        RequestNotFoundError: There is none with this id.
        RequestNotWaitingError: It is running or has ended.
    """
    request = service.lock(session, request_id)
    if request.state not in WAITING_STATES:
        raise _not_waiting(request, "Only what nobody has begun to compute can be rejected.")
    return _reject(
        session,
        store,
        request,
        ground=ground,
        explanation=explanation,
        outcome=CheckOutcome.ENDED,
        actor=actor,
    )


def _reject(
    session: Session,
    store: ArtifactStore,
    request: UnlearningRequest,
    *,
    ground: RejectionGround,
    explanation: str,
    outcome: CheckOutcome,
    actor: str,
) -> UnlearningRequest:
    service.end_waiting(session, store, request, RequestState.REFUSED, outcome)
    request.refusal = {
        "cause": REJECTED_BY_CONTROLLER,
        "ground": str(ground),
        "explanation": explanation,
        "detail": "the controller decided not to act on the request; nothing was computed",
        "remedy": "Tell the person why, and that a complaint to a supervisory authority and a"
        " judicial remedy are open (Art. 12(4) GDPR).",
    }
    session.flush()
    _log(
        session,
        request,
        "refused",
        actor=actor,
        cause=REJECTED_BY_CONTROLLER,
        ground=str(ground),
    )
    return request


def _in_check(
    session: Session, request_id: uuid.UUID
) -> tuple[UnlearningRequest, DeadlineInterval]:
    request = service.lock(session, request_id)
    check = repository.open_check(session, request)
    if check is None:
        raise NoIdentityCheckError(
            f"unlearning request {request.id} is {request.state}, and no identity is in doubt",
            field="request_id",
            remedy="POST .../identity-check begins a check, while the request is queued.",
        )
    return request, check


def _require_time(
    session: Session, request: UnlearningRequest, what: str, why: str
) -> datetime.datetime:
    due_at = request.due_at
    assert due_at is not None, "its clock runs"  # noqa: S101 - what the callers looked at
    if repository.now(session) >= due_at:
        raise DeadlinePassedError(
            f"unlearning request {request.id} was due until {write_time(due_at)}",
            field="request_id",
            remedy=f"The period cannot be {what} any more, since {why}: complete the request, or"
            " reject it.",
        )
    return due_at


def _not_waiting(request: UnlearningRequest, remedy: str) -> RequestNotWaitingError:
    return RequestNotWaitingError(
        f"unlearning request {request.id} is {request.state}", field="request_id", remedy=remedy
    )


def _due(request: UnlearningRequest) -> str | None:
    return None if request.due_at is None else write_time(request.due_at)


def _log(session: Session, request: UnlearningRequest, event: str, **payload: Any) -> None:
    evidence.append(
        session,
        f"unlearning-request.{event}",
        subject={"model_id": str(request.model_id), "request_id": str(request.id)},
        payload=payload,
    )
