"""Webhooks: who is told what, with which secret, and what becomes of each delivery.

Functions flush; whoever opened the session commits. Nothing here opens a connection but the look at
where a new URL leads.
"""

import base64
import binascii
import datetime
import os
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts.keys import MasterKey
from app.db import new_id
from app.errors import (
    DeliveryNotFoundError,
    InvalidInputError,
    TooManyWebhooksError,
    WebhookDisabledError,
    WebhookNotFoundError,
)
from app.evidence import service as evidence
from app.webhooks import outbox, repository
from app.webhooks.addresses import Guard, Target, TargetError
from app.webhooks.models import (
    DeliveryState,
    DisabledReason,
    Webhook,
    WebhookDelivery,
    WebhookEvent,
    WebhookState,
)
from app.webhooks.schemas import RotationIn, WebhookChangesIn, WebhookIn

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with
SECRET_BYTES: Final = 32
SHORTEST_SECRET, LONGEST_SECRET = 24, 64  # bytes; Standard Webhooks, "Signature scheme"

# Pauses after the first, second, ... failed attempt, as Standard Webhooks proposes them: 76 hours.
RETRY_SECONDS: Final = tuple(
    int(datetime.timedelta(**pause).total_seconds())
    for pause in (
        {"seconds": 5},
        {"minutes": 5},
        {"minutes": 30},
        {"hours": 2},
        {"hours": 5},
        {"hours": 10},
        {"hours": 14},
        {"hours": 20},
        {"hours": 24},
    )
)
JITTER: Final = 0.2  # what failed together is not tried again together
LONGEST_PAUSE_SECONDS: Final = 300  # of a receiver that fails, between two deliveries
LONGEST_RETRY_AFTER_SECONDS: Final = 3600
FAILING_DAYS: Final = 3
FAILING_ATTEMPTS: Final = outbox.MAX_ATTEMPTS

CLAIM_SECONDS: Final = 60  # much longer than sending takes: see `delivery.TIMEOUT_SECONDS`
KEPT_DAYS: Final = 30
_REMOVED_AT_ONCE = 1000
_RESOLVING_SECONDS = 3.0
_LONGEST_ERROR = 200

_SUCCESSES = range(200, 300)
_GONE = 410

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """One delivery that a worker has taken on, with all it needs to send it."""

    delivery_id: uuid.UUID
    webhook_id: uuid.UUID
    attempt: int  # a fencing token: only the newest claim's outcome counts
    message_id: uuid.UUID
    body: bytes
    time: datetime.datetime
    # A log that shows this must not show how to sign, nor a token in a query.
    url: str = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt: a status, or why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after: int | None = None

    @property
    def is_success(self) -> bool:
        """Tell whether the receiver took the message."""
        return self.status is not None and self.status in _SUCCESSES


# For whoever administers webhooks


def create(
    session: Session,
    keys: MasterKey,
    guard: Guard,
    *,
    wanted: WebhookIn,
    most: int,
    actor: str,
) -> tuple[Webhook, str]:
    """Add a webhook; return it and its secret, which is never shown again.

    Raises:
        InvalidInputError: Nothing may be sent to its URL, or its secret is malformed.
        TooManyWebhooksError: There are `most` already.
    """
    secret = _new_secret(None if wanted.secret is None else wanted.secret.get_secret_value())
    target = _require_allowed(guard, wanted.url)
    if repository.count_for_creation(session) >= most:
        raise TooManyWebhooksError(
            f"there are {most} webhooks already",
            remedy="Delete one that is not needed; an operator may raise WEBHOOK_MAX_ENDPOINTS.",
        )
    webhook = Webhook(
        id=new_id(),
        url=wanted.url,
        description=wanted.description,
        events=_event_names(wanted.events),
        state=WebhookState.ENABLED,
        consecutive_failures=0,
    )
    webhook.wrapped_secret = keys.wrap(secret, _purpose(webhook))
    session.add(webhook)
    session.flush()
    _log(session, webhook, "created", origin=target.origin, events=webhook.events, actor=actor)
    return webhook, show_secret(secret)


def get(session: Session, webhook_id: uuid.UUID) -> Webhook:
    """Return a webhook.

    Raises:
        WebhookNotFoundError: There is none with this id.
    """
    webhook = repository.find_webhook(session, webhook_id)
    if webhook is None:
        raise _not_found(webhook_id)
    return webhook


def change(
    session: Session,
    guard: Guard,
    webhook_id: uuid.UUID,
    *,
    wanted: WebhookChangesIn,
    actor: str,
) -> Webhook:
    """Change what of a webhook is given; one that is enabled again is sent what waits for it.

    Raises:
        WebhookNotFoundError: There is none with this id.
        InvalidInputError: Nothing may be sent to the new URL.
    """
    # Resolving a name may take seconds: before the row is locked.
    target = None if wanted.url is None else _require_allowed(guard, wanted.url)
    webhook = _lock(session, webhook_id)
    changed: dict[str, Any] = {}
    if wanted.url is not None and target is not None and wanted.url != webhook.url:
        webhook.url = wanted.url
        changed["origin"] = target.origin
        _forgive(webhook)  # what failed was another receiver
    if "description" in wanted.model_fields_set and wanted.description != webhook.description:
        webhook.description = wanted.description
        changed["description"] = "changed"  # the log keeps no free text
    events = _event_names(wanted.events)
    if "events" in wanted.model_fields_set and events != webhook.events:
        webhook.events = events
        changed["events"] = events
    if wanted.state is not None and wanted.state != webhook.state:
        if wanted.state is WebhookState.ENABLED:
            _enable(webhook)
        else:
            _disable(session, webhook, DisabledReason.REQUESTED)
        changed["state"] = webhook.state
    session.flush()
    if changed:
        _log(session, webhook, "changed", **changed, actor=actor)
    return webhook


def remove(session: Session, webhook_id: uuid.UUID, *, actor: str) -> None:
    """Delete a webhook and destroy its secrets; nothing is sent to it any more.

    Raises:
        WebhookNotFoundError: There is none with this id.
    """
    webhook = _lock(session, webhook_id)
    webhook.deleted_at = session.scalar(select(func.clock_timestamp()))
    webhook.wrapped_secret = webhook.wrapped_previous_secret = None
    webhook.previous_secret_until = None
    session.flush()
    _log(session, webhook, "deleted", actor=actor)


def rotate(
    session: Session, keys: MasterKey, webhook_id: uuid.UUID, *, wanted: RotationIn, actor: str
) -> tuple[Webhook, str]:
    """Give a webhook a new secret; messages bear the old one's signature too, for a while.

    The secret before the old one, if it was still in use, counts no more.

    Raises:
        WebhookNotFoundError: There is none with this id.
        InvalidInputError: The new secret is malformed.
    """
    secret = _new_secret(None if wanted.secret is None else wanted.secret.get_secret_value())
    webhook = _lock(session, webhook_id)
    if wanted.overlap_hours:
        webhook.wrapped_previous_secret = webhook.wrapped_secret
        overlap = datetime.timedelta(hours=wanted.overlap_hours)
        webhook.previous_secret_until = session.scalar(select(func.clock_timestamp() + overlap))
    else:
        webhook.wrapped_previous_secret = webhook.previous_secret_until = None
    webhook.wrapped_secret = keys.wrap(secret, _purpose(webhook))
    session.flush()
    _log(session, webhook, "secret-rotated", overlap_hours=wanted.overlap_hours, actor=actor)
    return webhook, show_secret(secret)


def send_test(session: Session, webhook_id: uuid.UUID) -> WebhookDelivery:
    """Have one message sent to a webhook, once.

    Raises:
        WebhookNotFoundError: There is none with this id.
        WebhookDisabledError: It is sent nothing.
    """
    webhook = _lock(session, webhook_id)
    _require_enabled(webhook)
    webhook.resume_at = None  # whoever asks wants to know now
    (delivery,) = outbox.write(
        session, [webhook], WebhookEvent.TEST, {"webhook_id": str(webhook.id)}, attempts=1
    )
    return delivery


def replay(
    session: Session, webhook_id: uuid.UUID, delivery_id: uuid.UUID, *, actor: str
) -> WebhookDelivery:
    """Have a delivery sent again, at once and with all attempts; its id stays.

    Raises:
        WebhookNotFoundError: There is no such webhook.
        DeliveryNotFoundError: It has no such delivery.
        WebhookDisabledError: It is sent nothing.
    """
    webhook = _lock(session, webhook_id)
    delivery = repository.lock_delivery(session, webhook_id, delivery_id)
    if delivery is None:
        raise DeliveryNotFoundError(
            f"webhook {webhook_id} has no delivery {delivery_id}",
            field="delivery_id",
            remedy=f"GET /v1/webhooks/{webhook_id}/deliveries lists those of {KEPT_DAYS} days.",
        )
    _require_enabled(webhook)
    webhook.resume_at = None
    delivery.state = DeliveryState.PENDING
    delivery.attempts_left = outbox.MAX_ATTEMPTS
    delivery.next_attempt_at = session.scalars(select(func.now())).one()
    delivery.finished_at = None
    session.flush()
    _log(session, webhook, "delivery-replayed", delivery_id=str(delivery_id), actor=actor)
    return delivery


# The sender's side


def due(session: Session) -> dict[uuid.UUID, bool]:
    """Return the webhooks that something waits for, and whether each fails at the moment."""
    return {
        webhook.id: webhook.consecutive_failures > 0 for webhook in repository.due_webhooks(session)
    }


def claim(session: Session, keys: MasterKey, webhook_id: uuid.UUID) -> Claim | None:
    """Take on what is to be sent to a webhook next; None if there is nothing.

    Commit before sending: until `record`, or until `CLAIM_SECONDS` are over, nobody else sends it.
    """
    delivery = repository.lock_due(session, webhook_id)
    if delivery is None:
        return None
    webhook = session.get_one(Webhook, webhook_id, populate_existing=True)
    now = session.scalars(select(func.clock_timestamp())).one()
    if webhook.wrapped_secret is None:
        return None  # deleted between two statements
    wrapped = [webhook.wrapped_secret]
    if webhook.wrapped_previous_secret is not None and (
        webhook.previous_secret_until is not None and webhook.previous_secret_until > now
    ):
        wrapped.append(webhook.wrapped_previous_secret)
    delivery.attempts += 1
    delivery.last_attempt_at = now
    delivery.next_attempt_at = now + datetime.timedelta(seconds=CLAIM_SECONDS)
    session.flush()
    return Claim(
        delivery_id=delivery.id,
        webhook_id=webhook_id,
        attempt=delivery.attempts,
        url=webhook.url,
        message_id=delivery.message_id,
        body=delivery.body,
        secrets=tuple(keys.unwrap(one, _purpose(webhook)) for one in wrapped),
        time=now,
    )


def record(session: Session, claimed: Claim, outcome: Outcome) -> None:
    """Write down what came of a claim, and when it is tried again or whether it is given up.

    An outcome that comes too late, since another has taken the delivery on, changes nothing.
    """
    where = {
        "webhook_id": str(claimed.webhook_id),
        "delivery_id": str(claimed.delivery_id),
        "attempt": claimed.attempt,
        "status": outcome.status,
        "error": outcome.error,
    }
    webhook = repository.lock_webhook(session, claimed.webhook_id)
    delivery = repository.lock_delivery(session, claimed.webhook_id, claimed.delivery_id)
    if (
        webhook is None
        or delivery is None
        or delivery.state != DeliveryState.PENDING
        or delivery.attempts != claimed.attempt
    ):
        logger.warning("webhook.outcome_came_too_late", **where)
        return
    now = session.scalars(select(func.clock_timestamp())).one()
    delivery.response_status = outcome.status
    delivery.error = None if outcome.error is None else outcome.error[:_LONGEST_ERROR]
    delivery.attempts_left = max(delivery.attempts_left - 1, 0)
    if outcome.is_success:
        delivery.state = DeliveryState.DELIVERED
        delivery.finished_at = now
        _forgive(webhook)
        session.flush()
        logger.info("webhook.delivered", **where)
        return
    if delivery.attempts_left:
        delivery.next_attempt_at = now + _pause(delivery.attempts_left, outcome)
    else:
        delivery.state = DeliveryState.FAILED
        delivery.finished_at = now
    reason = _note_failure(webhook, outcome, now, is_given_up=not delivery.attempts_left)
    if webhook.state == WebhookState.DISABLED:  # by somebody else, since it was sent
        reason = None
    if reason is not None:
        _disable(session, webhook, reason)
    session.flush()
    logger.warning("webhook.not_delivered", **where, attempts_left=delivery.attempts_left)
    if reason is not None:
        logger.error("webhook.disabled", webhook_id=str(webhook.id), reason=str(reason))
        _log(session, webhook, "disabled", reason=str(reason))


def tidy(session: Session) -> None:
    """Delete old deliveries, and secrets whose time is over."""
    repository.forget_previous_secrets(session)
    removed = repository.remove_old(session, datetime.timedelta(days=KEPT_DAYS), _REMOVED_AT_ONCE)
    if removed:
        logger.info("webhook.old_deliveries_removed", count=removed)


def show_secret(secret: bytes) -> str:
    """Return a secret as Standard Webhooks writes it."""
    return f"{SECRET_PREFIX}{base64.b64encode(secret).decode()}"


def _pause(attempts_left: int, outcome: Outcome) -> datetime.timedelta:
    """Return how long to wait before the next attempt of a delivery."""
    seconds = RETRY_SECONDS[max(len(RETRY_SECONDS) - attempts_left, 0)]
    return datetime.timedelta(
        seconds=max(_jittered(seconds), min(outcome.retry_after or 0, LONGEST_RETRY_AFTER_SECONDS))
    )


def _note_failure(
    webhook: Webhook, outcome: Outcome, now: datetime.datetime, *, is_given_up: bool
) -> DisabledReason | None:
    """Count a failure; return why the webhook has to be disabled, if it has to."""
    webhook.consecutive_failures += 1
    webhook.failing_since = webhook.failing_since or now
    pause = min(2**webhook.consecutive_failures, LONGEST_PAUSE_SECONDS)
    asked = min(outcome.retry_after or 0, LONGEST_RETRY_AFTER_SECONDS)
    webhook.resume_at = now + datetime.timedelta(seconds=max(_jittered(pause), asked))
    if outcome.status == _GONE:
        return DisabledReason.GONE
    # Of many waiting deliveries none may ever come to its last attempt; of one alone the last may
    # come, by jitter, before the days are over.
    is_dead = is_given_up or now - webhook.failing_since >= datetime.timedelta(days=FAILING_DAYS)
    if is_dead and webhook.consecutive_failures >= FAILING_ATTEMPTS:
        return DisabledReason.FAILING
    return None


def _jittered(seconds: float) -> float:
    return seconds * secrets.SystemRandom().uniform(1 - JITTER, 1 + JITTER)


def _enable(webhook: Webhook) -> None:
    webhook.state = WebhookState.ENABLED
    webhook.disabled_reason = None
    webhook.disabled_at = None
    _forgive(webhook)


def _disable(session: Session, webhook: Webhook, reason: DisabledReason) -> None:
    webhook.state = WebhookState.DISABLED
    webhook.disabled_reason = reason
    webhook.disabled_at = session.scalar(select(func.clock_timestamp()))


def _forgive(webhook: Webhook) -> None:
    webhook.consecutive_failures = 0
    webhook.failing_since = None
    webhook.resume_at = None


def _new_secret(given: str | None) -> bytes:
    """Return a secret's bytes, random ones if none is given. No error quotes it."""
    if given is None:
        return os.urandom(SECRET_BYTES)
    try:
        secret = base64.b64decode(given.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not given.startswith(SECRET_PREFIX) or not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET:
        raise InvalidInputError(
            f"secret: expected {SECRET_PREFIX} and the base64 of {SHORTEST_SECRET} to"
            f" {LONGEST_SECRET} bytes, got something else",
            field="secret",
            remedy="Leave it out, and a random one is made.",
        )
    return secret


def _require_allowed(guard: Guard, url: str) -> Target:
    try:
        target = guard.parse(url)
        guard.addresses(target.host, target.port, _RESOLVING_SECONDS)
    except TargetError as error:
        raise InvalidInputError(
            f"url: {url!r}: {error.finding}", field="url", remedy=error.remedy
        ) from error
    return target


def _require_enabled(webhook: Webhook) -> None:
    if webhook.state != WebhookState.ENABLED:
        raise WebhookDisabledError(
            f"webhook {webhook.id} is disabled ({webhook.disabled_reason})",
            field="webhook_id",
            remedy="PATCH it to the state 'enabled' first.",
        )


def _lock(session: Session, webhook_id: uuid.UUID) -> Webhook:
    webhook = repository.lock_webhook(session, webhook_id)
    if webhook is None:
        raise _not_found(webhook_id)
    return webhook


def _not_found(webhook_id: uuid.UUID) -> WebhookNotFoundError:
    return WebhookNotFoundError(
        f"no webhook {webhook_id}", field="webhook_id", remedy="GET /v1/webhooks lists them."
    )


def _event_names(events: Sequence[WebhookEvent] | None) -> list[str] | None:
    return None if events is None else sorted({str(event) for event in events})


def _purpose(webhook: Webhook) -> str:
    return f"lethe/webhook-secret/{webhook.id}"


def _log(session: Session, webhook: Webhook, event: str, **payload: Any) -> None:
    evidence.append(
        session, f"webhook.{event}", subject={"webhook_id": str(webhook.id)}, payload=payload
    )
