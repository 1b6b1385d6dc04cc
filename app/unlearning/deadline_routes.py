"""HTTP of deadlines: look, extend, check who asks, reject; and how lists are narrowed by them."""

import uuid
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from sqlalchemy import Select
from starlette.responses import Response

from app.errors import (
    DeadlineExtendedError,
    DeadlinePassedError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    NoIdentityCheckError,
    PayloadTooLargeError,
    RequestNotFoundError,
    RequestNotWaitingError,
    UnsupportedMediaTypeError,
)
from app.http.dependencies import (
    QueueDep,
    Reader,
    SessionDep,
    SettingsDep,
    StoreDep,
    UnlearningWriter,
)
from app.http.idempotency import EmptyIdempotencyDep, IdempotencyDep
from app.http.problems import responses
from app.http.uploads import UploadDep, json_body, read_json
from app.unlearning import deadline_repository as repository
from app.unlearning import deadline_service, service
from app.unlearning.deadline_models import RejectionGround
from app.unlearning.deadline_schemas import (
    DeadlineOut,
    ExtensionIn,
    IdentityCheckIn,
    Moment,
    RejectionIn,
)
from app.unlearning.deadline_views import Views, ViewsDep
from app.unlearning.models import UnlearningRequest
from app.unlearning.schemas import UnlearningOut

router = APIRouter(prefix="/v1/unlearning-requests", tags=["deadlines"])

BODIES = (ExtensionIn, IdentityCheckIn, RejectionIn)


_OF_EVERY_STEP = (RequestNotFoundError, IdempotencyMismatchError, IdempotencyInProgressError)
_OF_A_BODY = (UnsupportedMediaTypeError, PayloadTooLargeError)


@dataclass(frozen=True, slots=True)
class DeadlineFilter:
    """How a list is narrowed and ordered by deadlines.

    Attributes:
        ordered_by: Types of the columns of its order, for its cursors.
    """

    due_before: Moment | None
    at_risk: bool | None
    overdue: bool | None
    by_due_date: bool

    @property
    def ordered_by(self) -> tuple[type, ...]:
        """Return the types of the columns that the list is ordered by."""
        return repository.DUE_ORDER if self.by_due_date else (int,)

    def apply(
        self, statement: Select[UnlearningRequest], views: Views
    ) -> Select[UnlearningRequest]:
        """Return the statement for those that are wanted, in the order that is wanted."""
        if not (self.at_risk is None and self.overdue is None and self.due_before is None):
            statement = repository.narrow(
                statement,
                views.present,
                due_before=self.due_before,
                at_risk=self.at_risk,
                overdue=self.overdue,
            )
        return repository.by_due_date(statement) if self.by_due_date else statement


def get_deadline_filter(
    *,
    due_before: Annotated[
        Moment | None, Query(description="Only what is due before this time (RFC 3339).")
    ] = None,
    at_risk: Annotated[
        bool | None, Query(description="Only what waits and is due within AT_RISK_DAYS, or not.")
    ] = None,
    overdue: Annotated[
        bool | None, Query(description="Only what waits though it was due before, or not.")
    ] = None,
    sort: Annotated[
        Literal["-arrival", "due_at"],
        Query(
            description="Newest first, or earliest deadline first; the latter leaves out those"
            " whose clock stands still (state `identity_check`)."
        ),
    ] = "-arrival",
) -> DeadlineFilter:
    """Return how a list is narrowed and ordered by deadlines."""
    return DeadlineFilter(due_before, at_risk, overdue, by_due_date=sort == "due_at")


DeadlineFilterDep = Annotated[DeadlineFilter, Depends(get_deadline_filter)]


@router.get("/{request_id}/deadline", responses=responses(RequestNotFoundError))
def get_deadline(
    request_id: uuid.UUID, _caller: Reader, session: SessionDep, views: ViewsDep
) -> DeadlineOut:
    """Return when a request is due, and everything that changed it."""
    return views.show_deadline(service.get(session, request_id))


@router.post(
    "/{request_id}/extension",
    response_model=UnlearningOut,
    openapi_extra=json_body(ExtensionIn),
    responses=responses(
        RequestNotWaitingError,
        DeadlineExtendedError,
        DeadlinePassedError,
        *_OF_A_BODY,
        *_OF_EVERY_STEP,
    ),
)
def extend_deadline(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    settings: SettingsDep,
    views: ViewsDep,
) -> Response:
    """Extend the period by up to two months, once and within the first (Art. 12(3) GDPR)."""
    wanted = read_json(upload, ExtensionIn)

    def answer() -> Response:
        request = deadline_service.extend(
            session,
            settings,
            request_id,
            months=wanted.months,
            reason=wanted.reason,
            explanation=wanted.explanation,
            actor=caller.actor,
        )
        return _answer(views, request)

    return idempotency.once(answer)


@router.post(
    "/{request_id}/identity-check",
    response_model=UnlearningOut,
    openapi_extra=json_body(IdentityCheckIn),
    responses=responses(RequestNotWaitingError, DeadlinePassedError, *_OF_A_BODY, *_OF_EVERY_STEP),
)
def begin_identity_check(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    views: ViewsDep,
) -> Response:
    """Hold a queued request back until its person is known (Art. 12(6) GDPR); its clock stops."""
    wanted = read_json(upload, IdentityCheckIn)

    def answer() -> Response:
        request = deadline_service.begin_identity_check(
            session, request_id, explanation=wanted.explanation, actor=caller.actor
        )
        return _answer(views, request)

    return idempotency.once(answer)


@router.post(
    "/{request_id}/identity-check/confirm",
    response_model=UnlearningOut,
    responses=responses(NoIdentityCheckError, *_OF_EVERY_STEP),
)
def confirm_identity(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    idempotency: EmptyIdempotencyDep,
    session: SessionDep,
    queue: QueueDep,
    settings: SettingsDep,
    views: ViewsDep,
) -> Response:
    """Say that the person is known: the request is queued again, and its clock runs on."""

    def answer() -> Response:
        request = deadline_service.confirm_identity(
            session, queue, settings, request_id, actor=caller.actor
        )
        return _answer(views, request)

    return idempotency.once(answer)


@router.post(
    "/{request_id}/identity-check/reject",
    response_model=UnlearningOut,
    openapi_extra=json_body(IdentityCheckIn),
    responses=responses(NoIdentityCheckError, *_OF_A_BODY, *_OF_EVERY_STEP),
)
def reject_identity(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    store: StoreDep,
    views: ViewsDep,
) -> Response:
    """Refuse a request whose person cannot be identified (Art. 12(2) GDPR)."""
    wanted = read_json(upload, IdentityCheckIn)

    def answer() -> Response:
        request = deadline_service.reject_identity(
            session, store, request_id, explanation=wanted.explanation, actor=caller.actor
        )
        return _answer(views, request)

    return idempotency.once(answer)


@router.post(
    "/{request_id}/reject",
    response_model=UnlearningOut,
    openapi_extra=json_body(RejectionIn),
    responses=responses(RequestNotWaitingError, *_OF_A_BODY, *_OF_EVERY_STEP),
)
def reject_request(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    store: StoreDep,
    views: ViewsDep,
) -> Response:
    """Refuse a request for the controller, before anything is computed (Art. 17(3), 12(5) GDPR)."""
    wanted = read_json(upload, RejectionIn)

    def answer() -> Response:
        request = deadline_service.reject(
            session,
            store,
            request_id,
            ground=RejectionGround(wanted.ground),
            explanation=wanted.explanation,
            actor=caller.actor,
        )
        return _answer(views, request)

    return idempotency.once(answer)


def _answer(views: Views, request: UnlearningRequest) -> JSONResponse:
    return JSONResponse(views.show(request).model_dump(mode="json"))
