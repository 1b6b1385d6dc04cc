"""Queries on webhooks and their deliveries.

Locks: a webhook's row before its deliveries', and the log's after both. None of them keeps the
outbox waiting: its foreign keys need a webhook's key alone, which never changes.
"""

import datetime
import uuid

from sqlalchemy import ColumnElement, Select, delete, func, select, update
from sqlalchemy.orm import Session

from app.webhooks.models import DeliveryState, Webhook, WebhookDelivery, WebhookState

_CREATION_LOCK = int.from_bytes(b"webhooks")


def list_webhooks() -> Select[Webhook]:
    """Return the statement for all webhooks, newest first."""
    return select(Webhook).where(Webhook.deleted_at.is_(None)).order_by(Webhook.id.desc())


def enabled_webhooks(session: Session, tenant_id: uuid.UUID) -> list[Webhook]:
    """Return the webhooks that are told what happens to a tenant's models and requests."""
    return list(
        session.scalars(select(Webhook).where(_is_enabled(), Webhook.tenant_id == tenant_id))
    )


def find_webhook(session: Session, webhook_id: uuid.UUID) -> Webhook | None:
    """Return a webhook that was not deleted."""
    return session.scalar(
        select(Webhook).where(Webhook.id == webhook_id, Webhook.deleted_at.is_(None))
    )


def lock_webhook(session: Session, webhook_id: uuid.UUID) -> Webhook | None:
    """Return a webhook as it is now, locked against other writers; None once it was deleted."""
    return session.scalar(
        select(Webhook)
        .where(Webhook.id == webhook_id, Webhook.deleted_at.is_(None))
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def count_for_creation(session: Session) -> int:
    """Return how many webhooks there are; until the transaction ends nobody else adds one."""
    session.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
    return session.scalars(
        select(func.count()).select_from(Webhook).where(Webhook.deleted_at.is_(None))
    ).one()


def list_deliveries(webhook_id: uuid.UUID, state: DeliveryState | None) -> Select[WebhookDelivery]:
    """Return the statement for a webhook's deliveries, newest first."""
    statement = (
        select(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.id.desc())
    )
    return statement if state is None else statement.where(WebhookDelivery.state == state)


def lock_delivery(
    session: Session, webhook_id: uuid.UUID, delivery_id: uuid.UUID
) -> WebhookDelivery | None:
    """Return one delivery of a webhook as it is now, locked."""
    return session.scalar(
        select(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.webhook_id == webhook_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def due_webhooks(session: Session) -> list[Webhook]:
    """Return the webhooks that have something to be sent now."""
    waits = select(WebhookDelivery.id).where(WebhookDelivery.webhook_id == Webhook.id, _is_due())
    return list(session.scalars(select(Webhook).where(_may_be_sent_to(), waits.exists())))


def lock_due(session: Session, webhook_id: uuid.UUID) -> WebhookDelivery | None:
    """Return what is to be sent to a webhook next, locked; what others have locked is skipped."""
    return session.scalar(
        select(WebhookDelivery)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.webhook_id == webhook_id, _is_due(), _may_be_sent_to())
        .order_by(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
        .limit(1)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
        .execution_options(populate_existing=True)
    )


def remove_old(session: Session, kept: datetime.timedelta, most: int) -> int:
    """Delete deliveries that are older than `kept`, or whose webhook was deleted; return how many.

    Then webhooks that were deleted so long ago that no open transaction can still write to them.
    """
    old = (
        select(WebhookDelivery.id)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where((WebhookDelivery.created_at < func.now() - kept) | Webhook.deleted_at.is_not(None))
        .limit(most)
        .with_for_update(of=WebhookDelivery, skip_locked=True)
    )
    removed = session.scalars(
        delete(WebhookDelivery)
        .where(WebhookDelivery.id.in_(old))
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    ).all()
    has_some = select(WebhookDelivery.id).where(WebhookDelivery.webhook_id == Webhook.id).exists()
    session.execute(
        delete(Webhook)
        .where(Webhook.deleted_at < func.now() - kept, ~has_some)
        .execution_options(synchronize_session=False)
    )
    return len(removed)


def forget_previous_secrets(session: Session) -> None:
    """Destroy the secrets that a rotation left valid for a while, once that is over."""
    session.execute(
        update(Webhook)
        .where(Webhook.previous_secret_until <= func.now())
        .values(wrapped_previous_secret=None, previous_secret_until=None)
        .execution_options(synchronize_session=False)
    )


def _is_enabled() -> ColumnElement[bool]:
    return (Webhook.state == WebhookState.ENABLED) & Webhook.deleted_at.is_(None)


def _may_be_sent_to() -> ColumnElement[bool]:
    return _is_enabled() & (Webhook.resume_at.is_(None) | (Webhook.resume_at <= func.now()))


def _is_due() -> ColumnElement[bool]:
    return (WebhookDelivery.state == DeliveryState.PENDING) & (
        WebhookDelivery.next_attempt_at <= func.now()
    )
