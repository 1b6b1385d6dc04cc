"""HTTP of unlearning requests: ask, list, read, cancel."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime
from starlette.responses import Response

from app.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    ModelNotActiveError,
    ModelNotFoundError,
    PayloadTooLargeError,
    RequestNotCancellableError,
    RequestNotFoundError,
    UnsupportedMediaTypeError,
)
from app.http.dependencies import (
    KeysDep,
    QueueDep,
    Reader,
    SessionDep,
    SettingsDep,
    StoreDep,
    UnlearningWriter,
)
from app.http.idempotency import EmptyIdempotencyDep, IdempotencyDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, Page, fetch_page
from app.http.problems import responses
from app.http.uploads import JSON, MULTIPART, Upload, UploadDep, parse_json
from app.registry import samples
from app.registry.samples import Samples
from app.registry.schemas import Manifest, Text
from app.unlearning import repository, service
from app.unlearning.deadline_routes import DeadlineFilterDep
from app.unlearning.deadline_views import ViewsDep
from app.unlearning.models import RequestState
from app.unlearning.schemas import UnlearningIn, UnlearningOut, UnlearningWithSamplesIn
from core.vocabulary import Method, Tier

router = APIRouter(prefix="/v1/unlearning-requests", tags=["unlearning requests"])

RETRY_SECONDS = 1  # an exact deletion takes milliseconds

_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/UnlearningWithSamplesIn"}},
            MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["request", "samples"],
                    "additionalProperties": False,
                    "properties": {
                        "request": {"$ref": "#/components/schemas/UnlearningIn"},
                        "samples": {
                            "type": "string",
                            "contentMediaType": "application/octet-stream",
                            "description": "safetensors with `x` (n_f, d) float64 or float32, and"
                            " `y` (n_f,) int64 labels or (n_f, C) targets; of a network `x`"
                            " (n_f, ...) has the shape of its samples, or is flattened",
                        },
                    },
                },
                "encoding": {"request": {"contentType": JSON}},
            },
        },
    }
}


@router.post(
    "",
    status_code=202,
    response_model=UnlearningOut,
    openapi_extra=_BODY,
    responses=responses(
        ModelNotFoundError,
        ModelNotActiveError,
        UnsupportedMediaTypeError,
        PayloadTooLargeError,
        IdempotencyMismatchError,
        IdempotencyInProgressError,
    ),
)
def create_request(
    *,
    caller: UnlearningWriter,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    store: StoreDep,
    keys: KeysDep,
    queue: QueueDep,
    settings: SettingsDep,
    views: ViewsDep,
) -> Response:
    """Ask for samples to be forgotten. Answers before the work is done: poll the request."""
    wanted = _parse(upload)

    def answer() -> Response:
        _, manifest = service.describe(session, wanted.model_id)
        request = service.create(
            session,
            store,
            keys,
            queue,
            settings,
            wanted=wanted,
            forget=_read_samples(upload, wanted, manifest),
            actor=caller.actor,
        )
        headers = {"Location": f"{router.prefix}/{request.id}", "Retry-After": str(RETRY_SECONDS)}
        return JSONResponse(views.show_new(request).model_dump(mode="json"), 202, headers)

    return idempotency.once(answer)


def get_filters(
    *,
    model_id: Annotated[uuid.UUID | None, Query(description="Only of this model.")] = None,
    state: Annotated[
        list[RequestState] | None, Query(description="Only in one of these states; repeatable.")
    ] = None,
    tier: Annotated[Tier | None, Query(description="Only of this tier.")] = None,
    method: Annotated[Method | None, Query(description="Only by this method.")] = None,
    subject_reference: Annotated[Text | None, Query(description="Exactly this one.")] = None,
    created_from: Annotated[
        AwareDatetime | None, Query(description="Only from this time on (RFC 3339).")
    ] = None,
    created_to: Annotated[
        AwareDatetime | None, Query(description="Only before this time (RFC 3339).")
    ] = None,
) -> repository.Filters:
    """Return what the list is narrowed to."""
    return repository.Filters(
        states=state or (),
        model_id=model_id,
        tier=tier,
        method=method,
        subject_reference=subject_reference,
        created_from=created_from,
        created_to=created_to,
    )


@router.get("", responses=responses())
def list_requests(
    *,
    _caller: Reader,
    session: SessionDep,
    views: ViewsDep,
    deadline: DeadlineFilterDep,
    filters: Annotated[repository.Filters, Depends(get_filters)],
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[UnlearningOut]:
    """List unlearning requests, newest first or by their deadlines; every filter has to hold.

    Going on with `next_cursor` meets each request once that was there when the first page was
    read, whatever arrives meanwhile. A request whose state changes on the way comes or not by the
    state that it has when its page is read.
    """
    requests, following = fetch_page(
        session,
        deadline.apply(repository.list_requests(filters), views),
        limit=limit,
        cursor=cursor,
        ordered_by=deadline.ordered_by,
    )
    return Page(items=[views.show(request) for request in requests], next_cursor=following)


@router.get("/{request_id}", responses=responses(RequestNotFoundError))
def get_request(
    request_id: uuid.UUID, _caller: Reader, session: SessionDep, views: ViewsDep
) -> UnlearningOut:
    """Return an unlearning request as it stands."""
    return views.show(service.get(session, request_id))


@router.post(
    "/{request_id}/cancel",
    response_model=UnlearningOut,
    responses=responses(
        RequestNotFoundError,
        RequestNotCancellableError,
        IdempotencyMismatchError,
        IdempotencyInProgressError,
    ),
)
def cancel_request(
    *,
    request_id: uuid.UUID,
    caller: UnlearningWriter,
    idempotency: EmptyIdempotencyDep,
    session: SessionDep,
    store: StoreDep,
    views: ViewsDep,
) -> Response:
    """Cancel a request that nobody has begun to compute; its samples are destroyed."""

    def answer() -> Response:
        request = service.cancel(session, store, request_id, actor=caller.actor)
        return JSONResponse(views.show(request).model_dump(mode="json"))

    return idempotency.once(answer)


def _parse(upload: Upload) -> UnlearningIn:
    if upload.is_json:
        return parse_json(upload.parts[""], UnlearningWithSamplesIn)
    parts = upload.take({"request", "samples"})
    return parse_json(parts["request"] or b"", UnlearningIn, field="request")


def _read_samples(upload: Upload, wanted: UnlearningIn, manifest: Manifest) -> Samples:
    if isinstance(wanted, UnlearningWithSamplesIn):
        given = wanted.samples
        return samples.from_lists(given.x, given.y, manifest, field="samples")
    return samples.from_file(upload.parts["samples"], manifest, field="samples")
