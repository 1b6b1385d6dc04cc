"""Whether the process lives, and whether it can do its work."""

from collections.abc import Callable

import redis
import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

import migrations
from app.evidence import repository
from app.evidence._fields import write_time
from app.evidence.keys import keyring
from app.evidence.keys.keysources import SETTINGS, SigningKeyError, key_source
from app.evidence.keys.signing import key_id_of
from app.evidence.models import KeyRole
from app.http.dependencies import ServicesDep
from app.services import Services

TIMEOUT_SECONDS = 2.0

router = APIRouter(tags=["health"])
logger = structlog.get_logger(__name__)


class Health(BaseModel):
    """What works; every part has to for `ready`: its check says `ok`, or `ok until` a time."""

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
    """Say whether database, migrations, broker, signing keys and log are as they have to be."""
    probes: dict[str, Callable[[], str]] = {
        "database": lambda: _check_database(services.engine),
        "broker": lambda: _check_broker(services.settings.redis_url),
        "signing_key": lambda: _check_key(services, KeyRole.RECORDS),
        "log_key": lambda: _check_key(services, KeyRole.CHECKPOINTS),
        "log": lambda: _check_log(services),
    }
    checks = {name: probe() for name, probe in probes.items()}
    is_ready = all(finding.startswith("ok") for finding in checks.values())
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


def _check_key(services: Services, role: KeyRole) -> str:
    """Read a key as it is now, and ask the log whether it may sign."""
    try:
        key, _ = key_source(services.settings, role, services.keys).read()
    except SigningKeyError as error:
        # What opens it, and why it does not, is for the log: this answer is public.
        logger.warning("readyz.key", role=str(role), error=str(error))
        return f"not readable: check {' or '.join(SETTINGS[role])}"
    try:
        with services.sessions() as session:
            key_id = key_id_of(key.public_key())
            objection = keyring.objection(session, role, key_id)
            ends = keyring.ends_at(session, key_id)
    except SQLAlchemyError as error:
        logger.warning("readyz.key", role=str(role), error=repr(error))
        return "not compared with the log's keys: see database"
    if objection is not None:
        return f"{objection.detail}. {objection.remedy}"
    if ends is not None:
        return f"ok until {write_time(ends)}: this key was replaced; install its successor"
    return "ok"


def _check_log(services: Services) -> str:
    try:
        with services.sessions() as session:
            origin = repository.open_log(session).origin
    except SQLAlchemyError as error:
        logger.warning("readyz.log", error=repr(error))
        return "not looked at: see database"
    return keyring.origin_finding(origin, services.settings.log_origin) or "ok"
