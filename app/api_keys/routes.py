"""HTTP of API keys, for administrators: list, make, rotate, revoke."""

import datetime
import uuid
from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app import auth
from app.api_keys.schemas import ApiKeyIn, ApiKeyOut, KeyRotationIn, NewApiKeyOut
from app.auth import ApiKey, Caller
from app.errors import (
    ApiKeyEndedError,
    ApiKeyNotFoundError,
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    InvalidInputError,
    MissingScopeError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
)
from app.evidence.repository import database_time
from app.http.dependencies import Admin, SessionDep
from app.http.idempotency import Idempotency, IdempotencyDep
from app.http.paging import DEFAULT_LIMIT, Cursor, Limit, Page, fetch_page
from app.http.problems import responses
from app.http.uploads import UploadDep, json_body, read_json

router = APIRouter(prefix="/v1/api-keys", tags=["api keys"])

_WRITING_ERRORS = (
    UnsupportedMediaTypeError,
    PayloadTooLargeError,
    IdempotencyMismatchError,
    IdempotencyInProgressError,
)


@router.get("", responses=responses())
def list_api_keys(
    _caller: Admin, session: SessionDep, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[ApiKeyOut]:
    """List every key, newest first, ended ones too; no answer holds a secret."""
    keys, following = fetch_page(
        session,
        select(ApiKey).order_by(ApiKey.id.desc()),
        limit=limit,
        cursor=cursor,
        ordered_by=uuid.UUID,
    )
    now = database_time(session)
    return Page(items=[ApiKeyOut.of(key, now) for key in keys], next_cursor=following)


@router.get("/{key_id}", responses=responses(ApiKeyNotFoundError))
def get_api_key(key_id: uuid.UUID, _caller: Admin, session: SessionDep) -> ApiKeyOut:
    """Return a key without its secret."""
    return ApiKeyOut.of(auth.find_key(session, key_id), database_time(session))


@router.post(
    "",
    status_code=201,
    response_model=NewApiKeyOut,
    openapi_extra=json_body(ApiKeyIn),
    responses=responses(*_WRITING_ERRORS),
)
def create_api_key(
    *, caller: Admin, upload: UploadDep, idempotency: IdempotencyDep, session: SessionDep
) -> Response:
    """Make a key. The answer shows its token, once: only a hash is stored."""
    wanted = read_json(upload, ApiKeyIn)

    def make() -> tuple[ApiKey, str]:
        _require_future(session, wanted.expires_at)
        return auth.create_key(
            session,
            name=wanted.name,
            scopes=wanted.scopes,
            expires_at=wanted.expires_at,
            actor=caller.actor,
        )

    return _answer_once(session, idempotency, make)


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    response_model=NewApiKeyOut,
    openapi_extra=json_body(KeyRotationIn),
    responses=responses(ApiKeyNotFoundError, ApiKeyEndedError, *_WRITING_ERRORS),
)
def rotate_api_key(
    *,
    key_id: uuid.UUID,
    caller: Admin,
    upload: UploadDep,
    idempotency: IdempotencyDep,
    session: SessionDep,
) -> Response:
    """Replace a key by one of the same name, scopes and length of life; both work for a while."""
    wanted = read_json(upload, KeyRotationIn)

    def make() -> tuple[ApiKey, str]:
        _require_no_more(caller, auth.find_key(session, key_id))
        overlap = datetime.timedelta(hours=wanted.overlap_hours)
        return auth.rotate_key(session, key_id, overlap=overlap, actor=caller.actor)

    return _answer_once(session, idempotency, make)


@router.delete("/{key_id}", responses=responses(ApiKeyNotFoundError))
def revoke_api_key(key_id: uuid.UUID, caller: Admin, session: SessionDep) -> ApiKeyOut:
    """End a key at once. Doing so twice changes nothing."""
    key = auth.revoke_key(session, key_id, actor=caller.actor)
    return ApiKeyOut.of(key, database_time(session))


def _answer_once(
    session: Session, idempotency: Idempotency, make: Callable[[], tuple[ApiKey, str]]
) -> Response:
    """Answer with the token the first time; what is stored to be replayed does not have it."""
    tokens: list[str] = []

    def answer() -> Response:
        key, token = make()
        tokens.append(token)
        return _show(key, None, database_time(session))

    stored = idempotency.once(answer)
    if not tokens:
        return stored
    shown = NewApiKeyOut.model_validate_json(bytes(stored.body))
    body = shown.model_copy(update={"token": tokens[0]}).model_dump(mode="json")
    return JSONResponse(body, stored.status_code, {"Location": stored.headers["Location"]})


def _show(key: ApiKey, token: str | None, now: datetime.datetime) -> Response:
    shown = NewApiKeyOut.model_validate({**ApiKeyOut.of(key, now).model_dump(), "token": token})
    headers = {"Location": f"{router.prefix}/{key.id}"}
    return JSONResponse(shown.model_dump(mode="json"), 201, headers)


def _require_no_more(caller: Caller, key: ApiKey) -> None:
    """Refuse to hand an administrator of one tenant a key that reads what others did."""
    if key.whole_log and not caller.whole_log:
        raise MissingScopeError(
            f"API key {key.id} reads the whole log, which {caller.name!r} may not",
            field="key_id",
            remedy="The operator rotates it: `lethe api-keys rotate`.",
        )


def _require_future(session: Session, expires_at: datetime.datetime | None) -> None:
    if expires_at is not None and expires_at <= database_time(session):
        raise InvalidInputError(
            f"expires_at: expected a time to come, got {expires_at.isoformat()}",
            field="expires_at",
            remedy="Choose a later time, or null for a key that does not end by itself.",
        )
