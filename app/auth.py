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

import structlog
from sqlalchemy import ForeignKey, LargeBinary, false, func, select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base, CreatedAt, Id, new_id
from app.errors import (
    ApiKeyEndedError,
    ApiKeyNotFoundError,
    AuthenticationError,
    InvalidInputError,
    MissingScopeError,
)
from app.evidence import repository as log
from app.evidence import service as evidence
from app.tenants.models import DEFAULT_TENANT_ID, Owned
from app.tenants.scope import tenant_of_session

PREFIX = "lethe"
SECRET_BYTES = 32  # 256 bits of entropy: a plain SHA-256 cannot be searched, so no slow hash
LONGEST_NAME = 200
COMMAND_LINE = "command-line"  # how audit entries name whoever has the database's address
EXPIRY_WARNING = datetime.timedelta(days=14)
LONGEST_OVERLAP = datetime.timedelta(days=90)

# Compared when the id is unknown, so that the answer takes as long as for a wrong secret.
_NOBODY = hashlib.sha256(secrets.token_bytes(SECRET_BYTES)).digest()

logger = structlog.get_logger(__name__)


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


class ApiKey(Owned, Base):
    """A caller's key. The secret itself is shown once, when it is made, and never stored."""

    __tablename__ = "api_key"
    __subject__ = "api_key_id"

    id: Mapped[Id]
    name: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[str]]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime.datetime | None]
    revoked_at: Mapped[datetime.datetime | None]
    last_used_at: Mapped[datetime.datetime | None]  # to the minute
    rotated_from: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("api_key.id"))
    # Reads other tenants' log entries, too. Made on the command line alone.
    whole_log: Mapped[bool] = mapped_column(default=False, server_default=false())

    def has_ended(self, now: datetime.datetime) -> bool:
        """Tell whether it opens nothing any more."""
        return self.revoked_at is not None or (
            self.expires_at is not None and self.expires_at <= now
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of a key that was checked."""

    key_id: uuid.UUID
    name: str
    scopes: frozenset[Scope]
    expires_at: datetime.datetime | None = None
    tenant_id: uuid.UUID = DEFAULT_TENANT_ID
    whole_log: bool = False

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
    actor: str = COMMAND_LINE,
    tenant_id: uuid.UUID | None = None,
    whole_log: bool = False,
) -> tuple[ApiKey, str]:
    """Make a key; return its row and the token that the caller has to keep.

    Args:
        session: Its commit makes the key count.
        name: Whose key it is.
        scopes: What it may do.
        expires_at: When it ends; None: not by itself.
        actor: Who makes it, for the audit log.
        tenant_id: Whose it is; None: the session's tenant, else the default one.
        whole_log: Whether it reads every tenant's log entries.

    Raises:
        InvalidInputError: The name is blank, or no scope is given.
    """
    return _create(
        session,
        name=name,
        scopes=scopes,
        expires_at=expires_at,
        rotated_from=None,
        actor=actor,
        tenant_id=tenant_id or tenant_of_session(session) or DEFAULT_TENANT_ID,
        whole_log=whole_log,
    )


def _create(
    session: Session,
    *,
    name: str,
    scopes: Iterable[Scope],
    expires_at: datetime.datetime | None,
    rotated_from: uuid.UUID | None,
    actor: str,
    tenant_id: uuid.UUID,
    whole_log: bool,
) -> tuple[ApiKey, str]:
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
        rotated_from=rotated_from,
        tenant_id=tenant_id,
        whole_log=whole_log,
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
            "rotated_from": None if rotated_from is None else str(rotated_from),
            "actor": actor,
            **({"whole_log": True} if whole_log else {}),
        },
    )
    return key, f"{PREFIX}_{key.id.hex}_{secret}"


def rotate_key(
    session: Session,
    key_id: uuid.UUID,
    *,
    overlap: datetime.timedelta,
    actor: str = COMMAND_LINE,
) -> tuple[ApiKey, str]:
    """Make a successor with the same name, scopes and length of life; the old key ends later.

    Both work until `overlap` is over, so that callers change keys without a gap. A key that would
    have ended before that still ends then: rotating prolongs no secret.

    Raises:
        ApiKeyNotFoundError: There is no such key.
        ApiKeyEndedError: It has expired or was revoked, or has a successor already.
        InvalidInputError: The overlap is negative or longer than `LONGEST_OVERLAP`.
    """
    if not datetime.timedelta(0) <= overlap <= LONGEST_OVERLAP:
        raise InvalidInputError(
            f"overlap: expected 0 to {LONGEST_OVERLAP.days} days, got {overlap}",
            field="overlap_hours",
            remedy="Choose how long both keys shall work.",
        )
    old = _lock_key(session, key_id)
    now = log.database_time(session)
    _require_rotatable(session, old, now)
    lifetime = None if old.expires_at is None else old.expires_at - old.created_at
    old.expires_at = min(now + overlap, old.expires_at or now + overlap)
    session.flush()
    new, token = _create(
        session,
        name=old.name,
        scopes=[Scope(scope) for scope in old.scopes],
        expires_at=None if lifetime is None else now + lifetime,
        rotated_from=old.id,
        actor=actor,
        tenant_id=old.tenant_id,
        whole_log=old.whole_log,
    )
    evidence.append(
        session,
        "api-key.rotated",
        subject={"api_key_id": str(old.id)},
        payload={
            "successor_id": str(new.id),
            "expires_at": old.expires_at.isoformat(),
            "actor": actor,
        },
    )
    return new, token


def revoke_key(session: Session, key_id: uuid.UUID, *, actor: str = COMMAND_LINE) -> ApiKey:
    """End a key's life; revoking it twice changes nothing.

    Raises:
        ApiKeyNotFoundError: There is no such key.
    """
    key = _lock_key(session, key_id)
    if key.revoked_at is not None:
        return key
    key.revoked_at = session.execute(select(func.now())).scalar_one()
    session.flush()
    evidence.append(
        session,
        "api-key.revoked",
        subject={"api_key_id": str(key.id)},
        payload={"actor": actor},
    )
    return key


def find_key(session: Session, key_id: uuid.UUID) -> ApiKey:
    """Return a key, ended ones too.

    Raises:
        ApiKeyNotFoundError: There is no such key.
    """
    key = session.get(ApiKey, key_id, populate_existing=True)
    if key is None:
        raise _unknown(key_id)
    return key


def note_use(session: Session, key_id: uuid.UUID) -> None:
    """Store that a key was used, once a minute, in a transaction of its own.

    Never waits: while somebody else changes the key, the use is noted at the next request. Never
    fails: that a note could not be written is no reason to refuse who may come in.
    """
    due = (
        select(ApiKey.id)
        .where(
            ApiKey.id == key_id,
            ApiKey.last_used_at.is_(None)
            | (ApiKey.last_used_at < func.now() - text("interval '1 minute'")),
        )
        .with_for_update(skip_locked=True, key_share=True)
        .scalar_subquery()
    )
    try:
        session.execute(
            update(ApiKey)
            .where(ApiKey.id == due)
            .values(last_used_at=func.now())
            .execution_options(synchronize_session=False)
        )
        session.commit()
    except SQLAlchemyError as error:
        session.rollback()
        logger.warning("api-key.use-not-noted", error=repr(error), api_key_id=str(key_id))


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
    scopes = frozenset(Scope(scope) for scope in key.scopes)
    return Caller(
        key.id, key.name, scopes, key.expires_at, tenant_id=key.tenant_id, whole_log=key.whole_log
    )


def _lock_key(session: Session, key_id: uuid.UUID) -> ApiKey:
    key = session.get(ApiKey, key_id, with_for_update=True, populate_existing=True)
    if key is None:
        raise _unknown(key_id)
    return key


def _unknown(key_id: uuid.UUID) -> ApiKeyNotFoundError:
    return ApiKeyNotFoundError(
        f"no API key {key_id}", field="key_id", remedy="Check the id: GET /v1/api-keys lists all."
    )


def _require_rotatable(session: Session, key: ApiKey, now: datetime.datetime) -> None:
    if key.has_ended(now):
        raise ApiKeyEndedError(
            f"API key {key.id} has expired or was revoked",
            field="key_id",
            remedy="Make a new key: what has ended gets no successor.",
        )
    successor = session.scalar(
        select(ApiKey.id).where(ApiKey.rotated_from == key.id, ApiKey.revoked_at.is_(None))
    )
    if successor is not None:
        raise ApiKeyEndedError(
            f"API key {key.id} was rotated already: its successor is {successor}",
            field="key_id",
            remedy="Use the successor, or revoke that one first if its secret is lost.",
        )


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
