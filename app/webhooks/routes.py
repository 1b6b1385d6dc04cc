"""HTTP of webhooks: who is told what happens, and what became of each message."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse
from starlette.responses import Response

from app.errors import (
    DeliveryNotFoundError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    PayloadTooLargeError,
    TooManyWebhooksError,
    UnsupportedMediaTypeError,
    WebhookDisabledError,
    WebhookNotFoundError,
)
from app.http.dependencies import KeysDep, SessionDep, SettingsDep, WebhookManager
from app.http.idempotency import EmptyIdempotencyDep, IdempotencyDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, Page, fetch_page
from app.http.problems import responses
from app.http.uploads import UploadDep, json_body, read_json
from app.webhooks import repository, service
from app.webhooks.addresses import Guard
from app.webhooks.models import DeliveryState, Webhook, WebhookDelivery
from app.webhooks.schemas import (
    DeliveryOut,
    RotationIn,
    WebhookChangesIn,
    WebhookIn,
    WebhookOut,
    WebhookWithSecretOut,
)

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


_JSON_BODY = (UnsupportedMediaTypeError, PayloadTooLargeError)
_ONCE = (IdempotencyMismatchError, IdempotencyInProgressError)


@router.post(
    "",
    status_code=201,
    response_model=WebhookWithSecretOut,
    openapi_extra=json_body(WebhookIn),
    responses=responses(TooManyWebhooksError, *_JSON_BODY, *_ONCE),
)
def create_webhook(
    *,
    caller: WebhookManager,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    keys: KeysDep,
    settings: SettingsDep,
) -> Response:
    """Add a webhook. The answer has its secret, which is never shown again."""
    wanted = read_json(upload, WebhookIn)

    def answer() -> Response:
        webhook, secret = service.create(
            session,
            keys,
            Guard.from_settings(settings),
            wanted=wanted,
            most=settings.webhook_max_endpoints,
            actor=caller.actor,
        )
        return _answer(webhook, secret, 201, {"Location": f"{router.prefix}/{webhook.id}"})

    return idempotency.once(answer, keep=_without_secret)


@router.get("", responses=responses())
def list_webhooks(
    _caller: WebhookManager,
    session: SessionDep,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[WebhookOut]:
    """List webhooks, newest first."""
    webhooks, following = fetch_page(
        session, repository.list_webhooks(), limit=limit, cursor=cursor, ordered_by=uuid.UUID
    )
    return Page(items=[WebhookOut.model_validate(one) for one in webhooks], next_cursor=following)


@router.get("/{webhook_id}", responses=responses(WebhookNotFoundError))
def get_webhook(webhook_id: uuid.UUID, _caller: WebhookManager, session: SessionDep) -> WebhookOut:
    """Return a webhook, and whether its receiver takes what it is sent."""
    return WebhookOut.model_validate(service.get(session, webhook_id))


@router.patch(
    "/{webhook_id}",
    openapi_extra=json_body(WebhookChangesIn),
    responses=responses(WebhookNotFoundError, *_JSON_BODY),
)
def change_webhook(
    *,
    webhook_id: uuid.UUID,
    caller: WebhookManager,
    upload: UploadDep,
    session: SessionDep,
    settings: SettingsDep,
) -> WebhookOut:
    """Change a webhook. What waited while it was disabled is sent once it is enabled again."""
    wanted = read_json(upload, WebhookChangesIn)
    webhook = service.change(
        session, Guard.from_settings(settings), webhook_id, wanted=wanted, actor=caller.actor
    )
    return WebhookOut.model_validate(webhook)


@router.delete("/{webhook_id}", status_code=204, responses=responses(WebhookNotFoundError))
def delete_webhook(webhook_id: uuid.UUID, caller: WebhookManager, session: SessionDep) -> None:
    """Delete a webhook with its secrets; nothing more is sent to it."""
    service.remove(session, webhook_id, actor=caller.actor)


@router.post(
    "/{webhook_id}/rotate-secret",
    response_model=WebhookWithSecretOut,
    openapi_extra=json_body(RotationIn),
    responses=responses(WebhookNotFoundError, *_JSON_BODY, *_ONCE),
)
def rotate_secret(
    *,
    webhook_id: uuid.UUID,
    caller: WebhookManager,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
    keys: KeysDep,
) -> Response:
    """Make a new secret. For `overlap_hours` messages bear the signatures of both."""
    wanted = read_json(upload, RotationIn)

    def answer() -> Response:
        webhook, secret = service.rotate(
            session, keys, webhook_id, wanted=wanted, actor=caller.actor
        )
        return _answer(webhook, secret, 200, {})

    return idempotency.once(answer, keep=_without_secret)


@router.post(
    "/{webhook_id}/test",
    status_code=202,
    response_model=DeliveryOut,
    responses=responses(WebhookNotFoundError, WebhookDisabledError, *_ONCE),
)
def send_test(
    webhook_id: uuid.UUID,
    _caller: WebhookManager,
    idempotency: EmptyIdempotencyDep,
    session: SessionDep,
) -> Response:
    """Have a message of the type `webhook.test` sent, once. Its delivery says what came of it."""
    return idempotency.once(lambda: _accepted(service.send_test(session, webhook_id)))


@router.get("/{webhook_id}/deliveries", responses=responses(WebhookNotFoundError))
def list_deliveries(
    webhook_id: uuid.UUID,
    _caller: WebhookManager,
    session: SessionDep,
    state: Annotated[DeliveryState | None, Query(description="Only in this state.")] = None,
    limit: Limit = DEFAULT_LIMIT,
    cursor: Cursor = None,
) -> Page[DeliveryOut]:
    """List what was and will be sent to a webhook, newest first."""
    service.get(session, webhook_id)
    deliveries, following = fetch_page(
        session,
        repository.list_deliveries(webhook_id, state),
        limit=limit,
        cursor=cursor,
        ordered_by=uuid.UUID,
    )
    return Page(items=[DeliveryOut.of(one) for one in deliveries], next_cursor=following)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/replay",
    status_code=202,
    response_model=DeliveryOut,
    responses=responses(WebhookNotFoundError, DeliveryNotFoundError, WebhookDisabledError, *_ONCE),
)
def replay_delivery(
    webhook_id: uuid.UUID,
    delivery_id: uuid.UUID,
    caller: WebhookManager,
    idempotency: EmptyIdempotencyDep,
    session: SessionDep,
) -> Response:
    """Have a delivery sent again, with the same `webhook-id`, whatever became of it before."""
    return idempotency.once(
        lambda: _accepted(service.replay(session, webhook_id, delivery_id, actor=caller.actor))
    )


def _answer(
    webhook: Webhook, secret: str | None, status: int, headers: dict[str, str]
) -> JSONResponse:
    shown = WebhookWithSecretOut(**WebhookOut.model_validate(webhook).model_dump(), secret=secret)
    # No cache on the way keeps the secret.
    headers = {"Cache-Control": "no-store", **headers}
    return JSONResponse(shown.model_dump(mode="json"), status, headers)


def _without_secret(body: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as it is stored for its Idempotency-Key: there a secret would lie open."""
    return {**body, "secret": None}


def _accepted(delivery: WebhookDelivery) -> JSONResponse:
    return JSONResponse(DeliveryOut.of(delivery).model_dump(mode="json"), 202)
