"""What clients ask of webhooks, and what they get to see of them."""

import datetime
import json
import uuid
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from app.registry.schemas import Declared, Text
from app.webhooks.models import (
    DeliveryState,
    DisabledReason,
    WebhookDelivery,
    WebhookEvent,
    WebhookState,
)

_LONGEST_OVERLAP_HOURS = 7 * 24

_Event = Annotated[WebhookEvent, Field(strict=False)]
Events = Annotated[
    list[_Event] | None,
    Field(min_length=1, max_length=len(WebhookEvent), description="null: all, later ones too"),
]
Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=4096),
    Field(
        description="https, to a public address; checked now and at each delivery",
        examples=["https://privacy.example.org/lethe"],
    ),
]
Secret = Annotated[
    SecretStr | None,
    Field(description="`whsec_` and base64 of 24 to 64 bytes; without it a random one is made"),
]


class WebhookIn(Declared):
    """A new webhook."""

    url: Url
    description: Text | None = None
    events: Events = None
    secret: Secret = None


class WebhookChangesIn(Declared):
    """What is to change of a webhook; what is left out stays."""

    url: Annotated[Url | None, Field(description="null: stays")] = None
    description: Text | None = None
    events: Events = None
    state: Annotated[
        WebhookState | None, Field(strict=False, description="null: stays; what waits is kept")
    ] = None


class RotationIn(Declared):
    """A new secret."""

    secret: Secret = None
    overlap_hours: Annotated[
        int,
        Field(
            ge=0,
            le=_LONGEST_OVERLAP_HOURS,
            description="Messages bear the old secret's signature too, for so long",
        ),
    ] = 24


class WebhookOut(BaseModel):
    """A webhook as clients see it; its secret is shown only when it is made."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    url: str
    description: str | None
    events: list[WebhookEvent] | None = Field(description="null: all")
    state: WebhookState
    disabled_reason: DisabledReason | None
    disabled_at: datetime.datetime | None
    consecutive_failures: int = Field(description="Failed attempts since something was taken")
    failing_since: datetime.datetime | None
    resume_at: datetime.datetime | None = Field(
        description="A receiver that fails is left alone until then"
    )
    previous_secret_until: datetime.datetime | None
    created_at: datetime.datetime


class WebhookWithSecretOut(WebhookOut):
    """A webhook with its new secret."""

    secret: str | None = Field(
        description="Shown once; null when the answer is repeated for an Idempotency-Key"
    )


class DeliveryOut(BaseModel):
    """One message to one receiver, and what became of it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    message_id: uuid.UUID = Field(description="`webhook-id`: the same at every attempt")
    event: WebhookEvent
    state: DeliveryState
    payload: dict[str, Any] = Field(description="The message as it is sent")
    attempts: int
    next_attempt_at: datetime.datetime | None
    last_attempt_at: datetime.datetime | None
    response_status: int | None = Field(description="Of the last attempt")
    error: str | None = Field(description="Why the last attempt got no status")
    created_at: datetime.datetime
    finished_at: datetime.datetime | None

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> Self:
        """Return what clients see of a delivery."""
        is_pending = delivery.state == DeliveryState.PENDING
        return cls(
            id=delivery.id,
            message_id=delivery.message_id,
            event=WebhookEvent(delivery.event),
            state=DeliveryState(delivery.state),
            payload=json.loads(delivery.body),
            attempts=delivery.attempts,
            next_attempt_at=delivery.next_attempt_at if is_pending else None,
            last_attempt_at=delivery.last_attempt_at,
            response_status=delivery.response_status,
            error=delivery.error,
            created_at=delivery.created_at,
            finished_at=delivery.finished_at,
        )
