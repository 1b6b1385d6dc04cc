"""`Idempotency-Key`: a POST that is sent twice happens once.

Its answer is stored in the transaction of what it did.
"""

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from sqlalchemy import ForeignKey, Index, delete, func, select, text, tuple_
from sqlalchemy.orm import Mapped, Session, mapped_column
from starlette.responses import JSONResponse, Response

from app.artifacts.keys import MasterKey
from app.auth import Caller
from app.db import Base, CreatedAt
from app.errors import IdempotencyInProgressError, IdempotencyMismatchError
from app.http.dependencies import CallerDep, KeysDep, SessionDep
from app.http.uploads import Upload, UploadDep

KEPT_HOURS = 24
_CLEANED_AT_ONCE = 100


class IdempotentAnswer(Base):
    """What was answered to a key, at least for `KEPT_HOURS`."""

    __tablename__ = "idempotent_answer"
    __table_args__ = (Index(None, "created_at"),)

    api_key_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("api_key.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[bytes]
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[bytes]
    created_at: Mapped[CreatedAt]


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key of one request, if it has one, and what its body was."""

    session: Session
    caller: Caller
    key: str | None
    fingerprint: bytes

    def once(
        self,
        answer: Callable[[], Response],
        *,
        keep: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Response:
        """Return the answer, calling `answer` only if the key was not used before.

        The answer is written in the transaction of what it did: both happen, or neither.

        Args:
            answer: Does what was asked for.
            keep: Makes of the answer's JSON what is stored and sent again: without secrets.

        Raises:
            IdempotencyMismatchError: The key was used for another request.
            IdempotencyInProgressError: A request with the key is being answered now.
        """
        if self.key is None:
            return answer()
        self._lock()
        stored = self.session.get(IdempotentAnswer, (self.caller.key_id, self.key))
        if stored is not None:
            return self._replay(stored)
        response = answer()
        kept = response if keep is None else _reduced(response, keep)
        self.session.add(
            IdempotentAnswer(
                api_key_id=self.caller.key_id,
                key=self.key,
                fingerprint=self.fingerprint,
                status=response.status_code,
                headers=dict(kept.headers),
                body=bytes(kept.body),
            )
        )
        self._remove_expired()
        self.session.flush()
        return response

    def _lock(self) -> None:
        """Take the key until the transaction ends; a row lock cannot hold what is not there yet."""
        name = f"{self.caller.key_id}/{self.key}".encode()
        number = int.from_bytes(hashlib.sha256(name).digest()[:8], signed=True)
        if not self.session.scalar(select(func.pg_try_advisory_xact_lock(number))):
            raise IdempotencyInProgressError(
                f"Idempotency-Key {self.key!r}: a request with it is being answered right now",
                field="Idempotency-Key",
                remedy="Wait a moment and send it again.",
            )

    def _replay(self, stored: IdempotentAnswer) -> Response:
        if not hmac.compare_digest(stored.fingerprint, self.fingerprint):
            raise IdempotencyMismatchError(
                f"Idempotency-Key {self.key!r}: was used before for another request",
                field="Idempotency-Key",
                remedy="Draw a new key for every new request.",
            )
        headers = {**stored.headers, "Idempotent-Replayed": "true"}
        return Response(stored.body, stored.status, headers)

    def _remove_expired(self) -> None:
        """Delete some old answers; those that another request is deleting are left to it."""
        identity = tuple_(IdempotentAnswer.api_key_id, IdempotentAnswer.key)
        expired = (
            select(IdempotentAnswer.api_key_id, IdempotentAnswer.key)
            .where(
                IdempotentAnswer.created_at < func.now() - text(f"interval '{KEPT_HOURS} hours'")
            )
            .order_by(IdempotentAnswer.created_at)
            .limit(_CLEANED_AT_ONCE)
            .with_for_update(skip_locked=True)
        )
        self.session.execute(
            delete(IdempotentAnswer)
            .where(identity.in_(expired))
            .execution_options(synchronize_session=False)
        )


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description=f"The same key with the same body is answered the same for {KEPT_HOURS} hours.",
    ),
]


def get_idempotency(
    *,
    request: Request,
    caller: CallerDep,
    upload: UploadDep,
    session: SessionDep,
    keys: KeysDep,
    key: IdempotencyKey = None,
) -> Idempotency:
    """Return the idempotency of a request with a body."""
    return Idempotency(session, caller, key, _fingerprint(request, upload, keys))


def get_empty_idempotency(
    *,
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    keys: KeysDep,
    key: IdempotencyKey = None,
) -> Idempotency:
    """Return the idempotency of a request whose path says all."""
    return Idempotency(session, caller, key, _fingerprint(request, Upload({}), keys))


IdempotencyDep = Annotated[Idempotency, Depends(get_idempotency)]
EmptyIdempotencyDep = Annotated[Idempotency, Depends(get_empty_idempotency)]


def _reduced(response: Response, keep: Callable[[dict[str, Any]], dict[str, Any]]) -> Response:
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return JSONResponse(keep(json.loads(bytes(response.body))), response.status_code, headers)


def _fingerprint(request: Request, upload: Upload, keys: MasterKey) -> bytes:
    route = f"{request.method} {request.url.path}"
    return upload.fingerprint(keys.derive("lethe/idempotency-fingerprint"), route)
