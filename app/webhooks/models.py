"""Tables of webhooks: who is told, and what is on its way to them."""

import datetime
import enum
import uuid

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id
from app.tenants.models import Owned, PartOfWebhook


class WebhookEvent(enum.StrEnum):
    """What receivers are told. Names are for ever: a changed meaning is a new name."""

    REQUEST_RECEIVED = "unlearning-request.received"
    REQUEST_STARTED = "unlearning-request.started"
    REQUEST_COMPLETED = "unlearning-request.completed"
    REQUEST_REFUSED = "unlearning-request.refused"
    REQUEST_FAILED = "unlearning-request.failed"
    REQUEST_CANCELLED = "unlearning-request.cancelled"
    RETRAINING_REQUIRED = "model.retraining-required"
    TEST = "webhook.test"  # asked for by hand, for one webhook alone


class WebhookState(enum.StrEnum):
    """Whether a webhook is told what happens."""

    ENABLED = "enabled"
    DISABLED = "disabled"


class DisabledReason(enum.StrEnum):
    """Why a webhook is told nothing any more."""

    REQUESTED = "requested"
    GONE = "gone"  # its receiver answered 410
    FAILING = "failing"  # nothing was taken for days


class DeliveryState(enum.StrEnum):
    """The life of a delivery; a replay leads back to `pending`."""

    PENDING = "pending"
    DELIVERED = "delivered"  # answered 2xx
    FAILED = "failed"  # no attempt is left


class Webhook(Owned, Base):
    """A receiver. Its row outlives its deletion for a while: deliveries refer to it."""

    __tablename__ = "webhook"
    __subject__ = "webhook_id"
    __table_args__ = (CheckConstraint("state IN ('enabled', 'disabled')", name="state"),)

    id: Mapped[Id]
    url: Mapped[str]
    description: Mapped[str | None]
    # None: every event, those of later versions too.
    events: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))
    state: Mapped[str] = mapped_column(default=WebhookState.ENABLED)
    disabled_reason: Mapped[str | None]
    disabled_at: Mapped[datetime.datetime | None]
    # Under the master key; None once deleted. Receivers share it, so a hash would not do.
    wrapped_secret: Mapped[bytes | None]
    wrapped_previous_secret: Mapped[bytes | None]
    previous_secret_until: Mapped[datetime.datetime | None]
    # Failed attempts since something was taken, of whichever delivery.
    consecutive_failures: Mapped[int] = mapped_column(default=0)
    failing_since: Mapped[datetime.datetime | None]
    resume_at: Mapped[datetime.datetime | None]  # a receiver that fails is left alone until then
    created_at: Mapped[CreatedAt]
    deleted_at: Mapped[datetime.datetime | None]


class WebhookDelivery(PartOfWebhook, Base):
    """One message to one receiver: the outbox, written with what the message tells of."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
        UniqueConstraint("webhook_id", "message_id"),
        Index(
            "ix_webhook_delivery_due",
            "webhook_id",
            "next_attempt_at",
            postgresql_where=text("state = 'pending'"),
        ),
        Index("ix_webhook_delivery_webhook_id_id", "webhook_id", "id"),
        Index("ix_webhook_delivery_created_at", "created_at"),
    )

    id: Mapped[Id]
    webhook_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("webhook.id"))
    # The same at every receiver and every attempt: `webhook-id`.
    message_id: Mapped[uuid.UUID]
    event: Mapped[str]
    body: Mapped[bytes]  # signed and sent as stored
    state: Mapped[str] = mapped_column(default=DeliveryState.PENDING)
    attempts: Mapped[int] = mapped_column(default=0)  # ever; also tells one claim from the next
    attempts_left: Mapped[int]
    # While it is being sent: when whoever sends it counts as dead.
    next_attempt_at: Mapped[datetime.datetime]
    last_attempt_at: Mapped[datetime.datetime | None]
    response_status: Mapped[int | None]
    error: Mapped[str | None]  # in our words: nothing of a receiver's answer but its status is kept
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime.datetime | None]
