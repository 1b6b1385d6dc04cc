"""HTTP of many unlearning requests at once."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.responses import Response

from app.errors import (
    AppError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from app.http.dependencies import (
    KeysDep,
    QueueDep,
    SessionDep,
    SettingsDep,
    StoreDep,
    UnlearningWriter,
)
from app.http.idempotency import IdempotencyDep
from app.http.problems import responses
from app.http.uploads import UploadDep, json_body, read_json
from app.registry import samples
from app.unlearning import bulk, service
from app.unlearning.bulk import BulkIn, BulkOut
from app.unlearning.deadline_views import ViewsDep
from app.unlearning.models import UnlearningRequest
from app.unlearning.schemas import UnlearningWithSamplesIn

router = APIRouter(prefix="/v1/unlearning-requests", tags=["unlearning requests"])


@router.post(
    "/bulk",
    status_code=207,
    response_model=BulkOut,
    openapi_extra=json_body(BulkIn),
    responses=responses(
        UnsupportedMediaTypeError,
        PayloadTooLargeError,
        IdempotencyMismatchError,
        IdempotencyInProgressError,
    ),
)
def create_requests(
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
    """Ask for up to 1,000 sets of samples to be forgotten, each as a request of its own.

    Answers 207 with each item's own result, in their order. A wrong item stops no other. What is
    accepted is accepted together: after any other answer nothing was.
    """
    wanted = read_json(upload, BulkIn, remedy="Send JSON here, or safetensors one request a call.")
    items = bulk.read_items(wanted.requests)

    def create(wanted: UnlearningWithSamplesIn) -> UnlearningRequest:
        _, manifest = service.describe(session, wanted.model_id)
        given = wanted.samples
        forget = samples.from_lists(given.x, given.y, manifest, field="samples")
        return service.admit(session, store, keys, settings, wanted=wanted, forget=forget)

    def answer() -> Response:
        bulk.lock_models(session, items)
        results = bulk.each_apart(session, items, create)
        accepted = [one for one in results if not isinstance(one, AppError)]
        if accepted:
            service.log_received(session, accepted, actor=caller.actor)
            queue.ring(session)
        return JSONResponse(
            bulk.describe(results, router.prefix, views.show).model_dump(mode="json"), 207
        )

    return idempotency.once(answer)
