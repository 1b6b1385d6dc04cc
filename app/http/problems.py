"""The one place where an error gets its status: application/problem+json (RFC 9457)."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from app import errors
from app.errors import AppError

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 1
_LONGEST_VALUE = 80
_LONGEST_TEXT = 1000

_UNAVAILABLE = HTTPStatus.SERVICE_UNAVAILABLE

logger = structlog.get_logger(__name__)

STATUS: dict[type[AppError], HTTPStatus] = {
    errors.InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.PayloadTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnsupportedMediaTypeError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.AuthenticationError: HTTPStatus.UNAUTHORIZED,
    errors.MissingScopeError: HTTPStatus.FORBIDDEN,
    errors.ApiKeyNotFoundError: HTTPStatus.NOT_FOUND,
    errors.ApiKeyEndedError: HTTPStatus.CONFLICT,
    errors.RateLimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.ModelNotFoundError: HTTPStatus.NOT_FOUND,
    errors.RevisionNotFoundError: HTTPStatus.NOT_FOUND,
    errors.WeightsPurgedError: HTTPStatus.GONE,
    errors.ModelNotActiveError: HTTPStatus.CONFLICT,
    errors.BudgetNotFoundError: HTTPStatus.NOT_FOUND,
    errors.RequestNotFoundError: HTTPStatus.NOT_FOUND,
    errors.EventsUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestNotCancellableError: HTTPStatus.CONFLICT,
    errors.RequestNotWaitingError: HTTPStatus.CONFLICT,
    errors.NoIdentityCheckError: HTTPStatus.CONFLICT,
    errors.DeadlinePassedError: HTTPStatus.CONFLICT,
    errors.DeadlineExtendedError: HTTPStatus.CONFLICT,
    errors.RecordNotFoundError: HTTPStatus.NOT_FOUND,
    errors.NoCertificateError: HTTPStatus.NOT_FOUND,
    errors.AuditEntryNotFoundError: HTTPStatus.NOT_FOUND,
    errors.LogClosedError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InconsistentLogError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.KeyNotInForceError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.AnchorUnreadableError: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.WebhookNotFoundError: HTTPStatus.NOT_FOUND,
    errors.DeliveryNotFoundError: HTTPStatus.NOT_FOUND,
    errors.WebhookDisabledError: HTTPStatus.CONFLICT,
    errors.TooManyWebhooksError: HTTPStatus.CONFLICT,
    errors.IdempotencyMismatchError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.IdempotencyInProgressError: HTTPStatus.CONFLICT,
    errors.ConcurrentUpdateError: HTTPStatus.CONFLICT,
    errors.LeaseLostError: HTTPStatus.CONFLICT,
    errors.ArtifactShreddedError: HTTPStatus.GONE,
    errors.ArtifactCorruptError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

# Headers that belong to a status, whoever raised it.
HEADERS: dict[type[AppError], dict[str, str]] = {
    errors.AuthenticationError: {"WWW-Authenticate": 'Bearer realm="lethe"'},
    errors.IdempotencyInProgressError: {"Retry-After": str(RETRY_SECONDS)},
    errors.EventsUnavailableError: {"Retry-After": str(RETRY_SECONDS)},
}


class Problem(BaseModel):
    """An error as clients get it."""

    type: str = Field(description="Stable identifier", examples=["urn:lethe:problem:invalid-input"])
    title: str = Field(description="The type in words")
    status: int = Field(description="The HTTP status")
    detail: str = Field(description="What is wrong, with the value that was found")
    field: str | None = Field(None, description="The input it is about, as the client wrote it")
    remedy: str | None = Field(None, description="What the client can do about it")


def responses(*kinds: type[AppError]) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer, for its OpenAPI entry; every route may refuse a caller."""
    every: set[type[AppError]] = {
        errors.AuthenticationError,
        errors.MissingScopeError,
        errors.InvalidInputError,
        errors.RateLimitedError,
        *kinds,
    }
    by_status: dict[int | str, list[str]] = {}
    for kind in sorted(every, key=lambda kind: kind.__name__):
        by_status.setdefault(STATUS[kind].value, []).append(kind.__doc__ or "")
    by_status.setdefault(_UNAVAILABLE.value, []).append("The database did not answer in time.")
    return {
        status: {
            "model": Problem,
            "description": "\n\n".join(meanings),
            "content": {"application/json": {"examples": _examples(status, every)}},
        }
        for status, meanings in sorted(by_status.items(), key=lambda item: str(item[0]))
    }


def _examples(status: int | str, kinds: set[type[AppError]]) -> dict[str, Any]:
    """Return a problem of each kind with that status, by its stable type."""
    found = {
        _code(kind): _example(kind)
        for kind in sorted(kinds, key=lambda kind: kind.__name__)
        if STATUS[kind].value == status
    }
    if status == _UNAVAILABLE.value:
        found["database-unavailable"] = {
            "type": "urn:lethe:problem:database-unavailable",
            "title": "Database unavailable",
            "status": status,
            "detail": "the database did not answer in time; nothing was changed",
            "field": None,
            "remedy": "Try again with the same Idempotency-Key.",
        }
    return {code: {"value": value} for code, value in found.items()}


def _example(kind: type[AppError]) -> dict[str, Any]:
    return {
        "type": f"urn:lethe:problem:{_code(kind)}",
        "title": _code(kind).replace("-", " ").capitalize(),
        "status": STATUS[kind].value,
        "detail": (kind.__doc__ or "").partition("\n")[0],
        "field": None,
        "remedy": "What would help, in this very case.",
    }


def _code(kind: type[AppError]) -> str:
    words = re.findall("[A-Z][a-z]*", kind.__name__.removesuffix("Error"))
    return "-".join(words).lower()


def respond(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    field: str | None = None,
    remedy: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Render a problem."""
    problem = Problem(
        type=f"urn:lethe:problem:{code}",
        title=title,
        status=status,
        # What it quotes may be as long as the request.
        detail=_shorten(detail, _LONGEST_TEXT),
        field=None if field is None else _shorten(field, _LONGEST_TEXT),
        remedy=remedy,
    )
    return JSONResponse(
        problem.model_dump(), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def respond_to(error: AppError) -> JSONResponse:
    """Render an error of the application."""
    kind = type(error)
    words = re.findall("[A-Z][a-z]*", kind.__name__.removesuffix("Error"))
    return respond(
        status=STATUS[kind],
        code="-".join(words).lower(),
        title=" ".join(words).capitalize(),
        detail=error.detail,
        field=error.field,
        remedy=error.remedy,
        headers=HEADERS.get(kind),
    )


def invalid_input(
    found: Sequence[Mapping[str, Any]], *, prefix: str = ""
) -> errors.InvalidInputError:
    """Return the application's error for what pydantic found, naming the first field."""
    first = found[0]
    location = [prefix] if prefix else []
    field = ".".join(location + [str(part) for part in first["loc"]]) or "body"
    value = first.get("input")
    shown = ""
    if value is not None and not isinstance(value, (dict, list)):
        shown = f", got {_shorten(repr(value))}"
    more = "" if len(found) == 1 else f" (and {len(found) - 1} more)"
    return errors.InvalidInputError(
        f"{field}: {first['msg']}{shown}{more}",
        field=field,
        remedy="Correct the field; /docs has the schema.",
    )


def internal_error() -> JSONResponse:
    """Render an error that nobody foresaw; the log has the traceback."""
    return respond(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code="internal-error",
        title="Internal error",
        detail="the service failed; nothing was changed",
        remedy="Try again; if it stays, give the operator the X-Request-ID header of this answer.",
    )


def install(app: FastAPI) -> None:
    """Let an application answer every error as a problem."""
    app.add_exception_handler(AppError, _answer_app_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(OperationalError, _answer_unavailable)
    app.add_exception_handler(PoolTimeoutError, _answer_unavailable)


async def _answer_app_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AppError)  # noqa: S101 - what it was installed for
    if STATUS[type(error)] >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request.failed", exc_info=error)
    return respond_to(error)


async def _answer_validation_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it was installed for
    # FastAPI says where it looked ("query", "path"); the client knows the field by its name.
    # Of a repeated parameter it adds which one; bodies are parsed elsewhere.
    found = [{**one, "loc": one["loc"][1:2] or one["loc"]} for one in error.errors()]
    return respond_to(invalid_input(found))


async def _answer_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it was installed for
    phrase = HTTPStatus(error.status_code).phrase
    return respond(
        status=error.status_code,
        code=phrase.lower().replace(" ", "-"),
        title=phrase.capitalize(),
        detail=f"{request.method} {request.url.path}: {error.detail}",
        remedy="/docs lists every route with its methods.",
        headers=error.headers,
    )


async def _answer_unavailable(_request: Request, error: Exception) -> JSONResponse:
    logger.error("database.unavailable", exc_info=error)
    return respond(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="database-unavailable",
        title="Database unavailable",
        detail="the database did not answer in time; nothing was changed",
        remedy="Try again with the same Idempotency-Key.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def _shorten(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."
