"""API keys: who calls, and what the caller may do.

Free of FastAPI: the command line makes keys too.
"""

import datetime
import enum
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import LargeBinary, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base, CreatedAt, Id, new_id
from app.errors import AuthenticationError, InvalidInputError, MissingScopeError
from app.evidence import service as evidence

PREFIX = "lethe"
SECRET_BYTES = 32  # 256 bits of entropy: a plain SHA-256 cannot be searched, so no slow hash

# Compared when the id is unknown, so that the answer takes as long as for a wrong secret.
_NOBODY = hashlib.sha256(secrets.token_bytes(SECRET_BYTES)).digest()


class Scope(enum.StrEnum):
    """What a key may do."""

    MODELS_WRITE = "models:write"
    UNLEARNING_WRITE = "unlearning:write"
    READ = "read"
    # Old and new weights together reveal what was forgotten (METHOD §5): not every reader's.
    WEIGHTS_READ = "weights:read"
    AUDIT_READ = "audit:read"
    # Reading is part of it: a receiver's address may hold the receiver's own secret.
    WEBHOOKS_WRITE = "webhooks:write"
    ADMIN = "admin"  # everything


class ApiKey(Base):
    """A caller's key. The secret itself is shown once, when it is made, and never stored."""

    __tablename__ = "api_key"

    id: Mapped[Id]
    name: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime.datetime | None]
    revoked_at: Mapped[datetime.datetime | None]


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key that was checked."""

    key_id: uuid.UUID
    name: str
    scopes: frozenset[Scope]

    @property
    def actor(self) -> str:
        """Return how audit entries name the caller."""
        return f"api-key:{self.key_id}"

    def require(self, scope: Scope) -> None:
        """Check that the caller may do something.

        Raises:
            MissingScopeError: The key has neither this scope nor `admin`.
        """
        if self.scopes.isdisjoint({scope, Scope.ADMIN}):
            raise MissingScopeError(
                f"API key {self.name!r} has the scopes {sorted(self.scopes)}, not {scope!r}",
                field="Authorization",
                remedy=f"Use a key with the scope {scope!r}: `lethe keys create --scope {scope}`.",
            )


def create_key(
    session: Session,
    *,
    name: str,
    scopes: Iterable[Scope],
    expires_at: datetime.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; return its row and the token that the caller has to keep.

    Raises:
        InvalidInputError: The name is blank or no scope is given.
    """
    granted = sorted({Scope(scope) for scope in scopes})
    if not name.strip():
        raise InvalidInputError(
            f"name: expected words, got {name!r}", field="name", remedy="Say whose key it is."
        )
    if not granted:
        raise InvalidInputError(
            "scopes: expected at least one, got none",
            field="scopes",
            remedy=f"Choose from {', '.join(Scope)}.",
        )
    secret = secrets.token_urlsafe(SECRET_BYTES)
    key = ApiKey(
        id=new_id(),
        name=name,
        secret_sha256=_digest(secret),
        scopes=[str(scope) for scope in granted],
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    evidence.append(
        session,
        "api-key.created",
        subject={"api_key_id": str(key.id)},
        payload={
            "scopes": key.scopes,
            "expires_at": None if expires_at is None else expires_at.isoformat(),
        },
    )
    return key, f"{PREFIX}_{key.id.hex}_{secret}"


def revoke_key(session: Session, key_id: uuid.UUID) -> None:
    """End a key's life; revoking it twice changes nothing.

    Raises:
        InvalidInputError: There is no such key.
    """
    key = session.get(ApiKey, key_id, with_for_update=True)
    if key is None:
        raise InvalidInputError(
            f"key_id: no API key {key_id}", field="key_id", remedy="Check the key's id."
        )
    if key.revoked_at is not None:
        return
    key.revoked_at = session.execute(select(func.now())).scalar_one()
    session.flush()
    evidence.append(session, "api-key.revoked", subject={"api_key_id": str(key.id)}, payload={})


def authenticate(session: Session, token: str) -> Caller:
    """Return the caller that a token belongs to.

    Raises:
        AuthenticationError: It is malformed, unknown, wrong, expired or revoked. The message does
            not say which: a guess should learn nothing.
    """
    key_id, secret = _split(token)
    key = None if key_id is None else _find_valid(session, key_id)
    expected = _NOBODY if key is None else key.secret_sha256
    matches = hmac.compare_digest(_digest(secret), expected)
    if key is None or not matches:
        raise AuthenticationError(
            "the API key is unknown, expired or revoked",
            field="Authorization",
            remedy="Send `Authorization: Bearer lethe_<id>_<secret>` with a valid key;"
            " `lethe keys create` makes one.",
        )
    return Caller(key.id, key.name, frozenset(Scope(scope) for scope in key.scopes))


def _find_valid(session: Session, key_id: uuid.UUID) -> ApiKey | None:
    return session.scalar(
        select(ApiKey).where(
            ApiKey.id == key_id,
            ApiKey.revoked_at.is_(None),
            ApiKey.expires_at.is_(None) | (ApiKey.expires_at > func.now()),
        )
    )


def _split(token: str) -> tuple[uuid.UUID | None, str]:
    """Return a token's id and secret; no id if the token is malformed."""
    parts = token.split("_", 2)
    if len(parts) != 3 or parts[0] != PREFIX:  # noqa: PLR2004 - prefix, id, secret
        return None, token
    try:
        return uuid.UUID(hex=parts[1]), parts[2]
    except ValueError:
        return None, token


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
