"""The HTTP application: `uvicorn app.main:create_app --factory`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.api_keys.routes import router as api_keys_router
from app.api_keys.schemas import ApiKeyIn, KeyRotationIn
from app.budget.routes import router as budget_router
from app.evidence.formats import VerificationIn
from app.evidence.routes import router as evidence_router
from app.http import examples, health, problems
from app.http.middleware import BodyLimit, RequestContext
from app.http.rate_limiting import RateLimiting
from app.http.rate_limits import RateLimiter
from app.http.security_headers import SecurityHeaders
from app.http.traces import TraceRequests
from app.logging import configure_logging
from app.metrics.exposition import Metrics
from app.metrics.requests import RequestMetrics
from app.metrics.routes import router as metrics_router
from app.process import forbid_core_dumps
from app.production import require_safe
from app.registry.routes import router as registry_router
from app.registry.schemas import Manifest
from app.services import Services
from app.settings import Settings, get_settings
from app.unlearning.bulk import BulkIn
from app.unlearning.bulk_routes import router as bulk_router
from app.unlearning.deadline_routes import BODIES as DEADLINE_BODIES
from app.unlearning.deadline_routes import router as deadline_router
from app.unlearning.event_routes import router as event_router
from app.unlearning.events import EventFeed
from app.unlearning.routes import router as unlearning_router
from app.unlearning.schemas import UnlearningIn, UnlearningWithSamplesIn
from app.webhooks.routes import router as webhooks_router
from app.webhooks.schemas import RotationIn, WebhookChangesIn, WebhookIn

DESCRIPTION = (
    "Removes samples' influence from registered models without the training data, and signs what it"
    " did. Evidence says what was done; it never says that a model contains nothing."
)

# Routes parse these themselves, with the limits of `app.http.uploads`, after they know who sends
# them.
_PARSED: tuple[type[BaseModel], ...] = (
    ApiKeyIn,
    KeyRotationIn,
    Manifest,
    UnlearningIn,
    UnlearningWithSamplesIn,
    BulkIn,
    WebhookIn,
    WebhookChangesIn,
    RotationIn,
    VerificationIn,
    *DEADLINE_BODIES,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application, by default with the environment's settings and JSON logs.

    Raises:
        pydantic.ValidationError: A setting is missing or malformed.
        MasterKeyError: The master key file is.
        SigningKeyError: The signing key file is.
        UnsafeSettingsError: A setting is not fit for production.
        TracingUnavailableError: Traces are asked for without the extra `otel`.
    """
    if settings is None:
        forbid_core_dumps()
        configure_logging()
        settings = get_settings()
    require_safe(settings)
    app = assemble()
    app.state.services = Services.from_settings(settings, traced_as="lethe-api")
    app.state.events = EventFeed(app.state.services.sessions)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    limiter = app.state.limiter = RateLimiter(settings.redis_url)
    app.add_middleware(RateLimiting, limiter=limiter, settings=settings)
    app.add_middleware(RequestContext)  # around all that answers: 413 and 500 get an id, too
    if app.state.services.tracing.is_on:
        app.add_middleware(TraceRequests, tracing=app.state.services.tracing)
    app.state.metrics = Metrics(settings)
    app.add_middleware(RequestMetrics, metrics=app.state.metrics)
    app.add_middleware(SecurityHeaders, hsts_seconds=settings.hsts_seconds)  # the outermost
    return app


def assemble() -> FastAPI:
    """Return the application's routes, without anything that a configuration decides."""
    # FastAPI's own reference page loads scripts from elsewhere, beside a field for API keys.
    app = FastAPIOffline(
        title="Lethe",
        version=version("lethe"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,  # it would redirect to whatever host the request's header names
        redoc_url=None,
        # It sends queries and the text of errors; what we send is in app/http/traces.py.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    problems.install(app)
    for router in (
        registry_router,
        budget_router,
        unlearning_router,
        deadline_router,
        event_router,
        bulk_router,
        evidence_router,
        webhooks_router,
        api_keys_router,
        health.router,
        metrics_router,
    ):
        app.include_router(router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's way to extend it
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.services.close()
    app.state.limiter.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the schema with what FastAPI cannot see: parsed bodies, and problems' media type."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _, bodies = models_json_schema(
            [(model, "validation") for model in _PARSED],
            ref_template="#/components/schemas/{model}",
        )
        schema["components"]["schemas"].update(bodies["$defs"])
        examples.add_bodies(schema)
        for path in schema["paths"].values():
            for operation in path.values():
                _name_problems(operation["responses"])
        app.openapi_schema = schema
    return app.openapi_schema


def _name_problems(responses: dict[str, Any]) -> None:
    for response in responses.values():
        content = response.get("content", {})
        is_problem = (
            content.get("application/json", {})
            .get("schema", {})
            .get("$ref", "")
            .endswith("/Problem")
        )
        if is_problem:
            content[problems.MEDIA_TYPE] = content.pop("application/json")
