"""What administrators send about API keys, and what they get to see."""

import datetime
import enum
import uuid
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from app.auth import EXPIRY_WARNING, LONGEST_NAME, LONGEST_OVERLAP, ApiKey, Scope
from app.registry.schemas import Declared

_HOUR = datetime.timedelta(hours=1)


def _require_text(name: str) -> str:
    # PostgreSQL's text holds neither.
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError("expected text without NUL and lone surrogates")
    return name


class ApiKeyIn(Declared):
    """A key to make."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=LONGEST_NAME, description="Whose key it is"),
        AfterValidator(_require_text),
    ]
    scopes: Annotated[
        list[Annotated[Scope, Field(strict=False)]],
        Field(min_length=1, max_length=len(Scope), description="What it may do", fail_fast=True),
    ]
    expires_at: Annotated[
        AwareDatetime | None, Field(strict=False, description="When it ends; never if null")
    ] = None


class KeyRotationIn(Declared):
    """How a key is replaced."""

    overlap_hours: Annotated[
        float,
        Field(
            ge=0,
            le=LONGEST_OVERLAP / _HOUR,
            description="How long the old key works beside its successor",
        ),
    ] = 24.0


class ApiKeyState(enum.StrEnum):
    """Whether a key opens anything."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


class ApiKeyOut(BaseModel):
    """A key as administrators see it: everything but its secret."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    name: str
    scopes: list[Scope]
    state: ApiKeyState
    expires_soon: bool = Field(description=f"Active, and ends within {EXPIRY_WARNING.days} days")
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    revoked_at: datetime.datetime | None
    last_used_at: datetime.datetime | None = Field(description="To the minute")
    rotated_from: uuid.UUID | None = Field(description="The key that it follows")
    whole_log: bool = Field(
        description="Reads every tenant's log entries; such keys are made on the command line"
    )

    @classmethod
    def of(cls, key: ApiKey, now: datetime.datetime) -> "ApiKeyOut":
        """Return what is shown of a key."""
        if key.revoked_at is not None:
            state = ApiKeyState.REVOKED
        else:
            state = ApiKeyState.EXPIRED if key.has_ended(now) else ApiKeyState.ACTIVE
        soon = key.expires_at is not None and key.expires_at - now <= EXPIRY_WARNING
        return cls(
            id=key.id,
            name=key.name,
            scopes=[Scope(scope) for scope in key.scopes],
            state=state,
            expires_soon=state is ApiKeyState.ACTIVE and soon,
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            rotated_from=key.rotated_from,
            whole_log=key.whole_log,
        )


class NewApiKeyOut(ApiKeyOut):
    """A key that was just made."""

    token: str | None = Field(
        None,
        description="What to send as `Authorization: Bearer`. Shown this once: it is not stored,"
        " and an answer that is replayed for its Idempotency-Key has null here",
    )
