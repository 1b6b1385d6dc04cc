"""Whether the process lives, and whether it can do its work."""

from collections.abc import Callable
from pathlib import Path

import redis
import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from app.evidence.signing import Signer, SigningKeyError
from app.http.dependencies import ServicesDep

TIMEOUT_SECONDS = 2.0

router = APIRouter(tags=["health"])
logger = structlog.get_logger(__name__)


class Health(BaseModel):
    """What works; every part has to for `ready`."""

    ready: bool
    checks: dict[str, str]


@router.get("/livez")
def live() -> dict[str, str]:
    """Answer as long as the process does; looks at nothing else."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    response_model=Health,
    responses={503: {"model": Health, "description": "Something that is needed does not work."}},
)
def ready(services: ServicesDep) -> JSONResponse:
    """Say whether database, migrations, broker and signing key are as they have to be."""
    probes: dict[str, Callable[[], str]] = {
        "database": lambda: _check_database(services.engine),
        "broker": lambda: _check_broker(services.settings.redis_url),
        "signing_key": lambda: _check_signing_key(
            services.signer, services.settings.signing_key_file
        ),
    }
    checks = {name: probe() for name, probe in probes.items()}
    is_ready = all(finding == "ok" for finding in checks.values())
    health = Health(ready=is_ready, checks=checks)
    return JSONResponse(health.model_dump(), 200 if is_ready else 503)


def _check_database(engine: Engine) -> str:
    try:
        with engine.connect() as connection:
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError as error:
        logger.warning("readyz.database", error=repr(error))
        return "not reachable, or without tables: `lethe db upgrade` makes them"
    expected = migrations.head()
    if found != expected:
        return f"at migration {found}, this version needs {expected}: run `lethe db upgrade`"
    return "ok"


def _check_broker(redis_url: str) -> str:
    try:
        with redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        ) as broker:
            broker.ping()
    except (redis.RedisError, OSError) as error:
        logger.warning("readyz.broker", error=repr(error))
        return "not reachable: check REDIS_URL"
    return "ok"


def _check_signing_key(signer: Signer, path: Path) -> str:
    """Compare the key in memory with the file: a rotated file needs a restart."""
    try:
        found = Signer.load(path)
    except (SigningKeyError, OSError) as error:
        logger.warning("readyz.signing_key", error=repr(error))
        return "not readable: check SIGNING_KEY_FILE"
    return "ok" if found.key_id == signer.key_id else "another key than at start-up: restart"
