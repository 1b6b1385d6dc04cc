"""The outbox: a message is written in the transaction of what it tells, and sent after its commit.

All that other modules need of webhooks. Nothing here waits or sends.
"""

import datetime
from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.db import new_id
from app.evidence.canonical import canonical_json
from app.tenants.scope import tenant_of
from app.webhooks import repository
from app.webhooks.models import Webhook, WebhookDelivery, WebhookEvent

MAX_ATTEMPTS: Final = 10  # one more than there are pauses in `service.RETRY_SECONDS`
MAX_BODY_BYTES: Final = 16 * 2**10


def enqueue(session: Session, event: WebhookEvent, data: Mapping[str, str]) -> None:
    """Have every webhook of whose it is told of an event, if it wants to know, after the commit.

    Takes no lock that anybody waits for. Call it before `evidence.append`, whose lock comes last.

    Args:
        session: The transaction that does what the message tells.
        event: What happened.
        data: Ids and states alone, never what a client wrote: messages leave the service, and
            receivers ask for the rest with a key of their own.

    Raises:
        ValueError: The data names no model and no request, so that it is nobody's.
    """
    tenant_id = tenant_of(session, data)
    if tenant_id is None:
        raise ValueError(f"a message about nothing that is anybody's: {sorted(data)}")
    wanting = [
        webhook
        for webhook in repository.enabled_webhooks(session, tenant_id)
        if webhook.events is None or event in webhook.events
    ]
    if wanting:
        write(session, wanting, event, data)


def write(
    session: Session,
    webhooks: Iterable[Webhook],
    event: WebhookEvent,
    data: Mapping[str, str],
    *,
    attempts: int = MAX_ATTEMPTS,
) -> list[WebhookDelivery]:
    """Write one message to some webhooks; return the deliveries."""
    now = session.scalars(select(func.now())).one()
    message_id = new_id()
    body = canonical_json(
        {
            "type": str(event),
            "id": str(message_id),
            "timestamp": now.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z"),
            "data": dict(data),
        }
    )
    if len(body) > MAX_BODY_BYTES:
        raise ValueError(f"a message of {len(body)} bytes, at most {MAX_BODY_BYTES}: ids alone")
    deliveries = [
        {
            "id": new_id(),
            "webhook_id": webhook.id,
            "message_id": message_id,
            "event": str(event),
            "body": body,
            "attempts_left": attempts,
            "next_attempt_at": now,
        }
        for webhook in webhooks
    ]
    return list(session.scalars(insert(WebhookDelivery).returning(WebhookDelivery), deliveries))
