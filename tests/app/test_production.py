"""What the start refuses in production, and that no secret is told on the way."""

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.logging import configure_logging, never_print_locals
from app.main import create_app
from app.production import UnsafeSettingsError, findings, require_safe
from app.settings import Settings

ROOT = Path(__file__).parents[2]
STRONG = "c0d5a2f1e9b84736c0d5a2f1"
SAFE = {
    "database_url": f"postgresql+psycopg://lethe:{STRONG}@db.internal/lethe",
    "redis_url": f"rediss://:{STRONG}@cache.internal:6379/0",
    "artifacts_url": "s3://bucket/lethe",
    "master_key_file": "m",
    "signing_key_file": "s",
    "log_key_file": "l",
    "log_origin": "log.hospital.dev/audit",
}


def make(**changes):
    return Settings.model_validate(SAFE | changes)


def test_production_is_what_is_not_said_to_be_development():
    assert make().environment == "production"
    with pytest.raises(ValidationError):
        make(environment="staging")


def test_a_deployment_with_secrets_of_its_own_starts():
    require_safe(make())
    require_safe(
        make(
            database_url="postgresql+psycopg://postgres@/lethe?host=/run/postgresql",
            redis_url="unix:///run/valkey.sock",
            timestamp_url="http://tsa.hospital.dev",
            timestamp_roots_file="roots.pem",
            anchor_url="s3://elsewhere/log",
            anchor_webhook_url="https://witness.hospital.dev/log",
            key_passphrase=STRONG,
        )
    )
    require_safe(make(database_url="postgresql+psycopg://l@db/lethe?sslcert=/c.pem"))


UNSAFE = [
    ({"database_url": "postgresql+psycopg://lethe@db/lethe"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://lethe:@db/lethe"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://lethe:lethe@127.0.0.1/x"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://postgres:Postgres@db/x"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://l@/x?host=db&password=secret"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://l@/x?host=/run/pg,db.internal"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://l:%70assword@db/x"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://l:Xy7$kk@db/x"}, "DATABASE_URL"),
    ({"database_url": "postgresql+psycopg://long-user-name:long-user-name@db/x"}, "DATABASE_URL"),
    ({"redis_url": "redis://redis:6379/0"}, "REDIS_URL"),
    ({"redis_url": "redis://:foobared@redis:6379/0"}, "REDIS_URL"),
    ({"anchor_url": "http://witness.hospital.dev/log"}, "ANCHOR_URL"),
    ({"anchor_webhook_url": "http://127.0.0.1:9/log"}, "ANCHOR_WEBHOOK_URL"),
    ({"timestamp_url": "http://tsa.hospital.dev"}, "TIMESTAMP_URL"),
    ({"log_origin": "lethe.local/audit"}, "LOG_ORIGIN"),
    ({"log_origin": "lethe.example.org/audit"}, "LOG_ORIGIN"),
    ({"key_passphrase": "changeme-changeme-changeme"}, "KEY_PASSPHRASE"),
    ({"key_passphrase": "a" * 40}, "KEY_PASSPHRASE"),
]


@pytest.mark.parametrize(("changes", "setting"), UNSAFE)
def test_what_is_for_trying_out_stops_the_start_with_its_remedy(changes, setting):
    with pytest.raises(UnsafeSettingsError) as caught:
        require_safe(make(**changes))
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("  * ")]
    assert line.startswith(f"  * {setting}: ")
    assert ";" in line  # what is wrong; what to do
    assert "ENVIRONMENT=development" in str(caught.value)
    require_safe(make(environment="development", **changes))


def test_the_defaults_of_this_repository_are_refused():
    assert findings(make(log_origin=Settings.model_fields["log_origin"].default))
    example = (ROOT / ".env.example").read_text()
    origin = re.search(r"^LOG_ORIGIN=(.*)$", example, re.MULTILINE)
    assert findings(make(log_origin=origin.group(1)))
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        assert f"\n{name}=\n" in example


def test_neither_api_nor_worker_starts(settings):
    unsafe = settings.model_copy(update={"environment": "production"})
    with pytest.raises(UnsafeSettingsError, match="LOG_ORIGIN"):
        create_app(unsafe)
    values = unsafe.model_dump(mode="json", exclude_none=True)
    environment = {
        name.upper(): ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }
    done = subprocess.run(
        [sys.executable, "-c", "import worker.celery"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "LOG_ORIGIN" in done.stderr


@pytest.fixture(scope="module")
def log():
    """A stream that gets every line of the log."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure_logging()
    stream = io.StringIO()
    root.handlers[0].setStream(stream)
    yield stream
    root.handlers, root.level = handlers, level
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()
    never_print_locals()


SECRETS = ("database_url", "redis_url", "anchor_url", "signing_key", "log_key", "key_passphrase")
WORD = st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789", min_size=4, max_size=30)


@given(
    secret=WORD.map(lambda word: f"Q{word}Q"), broken=st.sampled_from([None, *SECRETS, "device"])
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_no_secret_gets_into_a_representation_an_error_or_the_log(log, secret, broken):
    values = SAFE | {
        "database_url": f"postgresql+psycopg://lethe:{secret}@db/lethe",
        "redis_url": f"redis://:{secret}@cache/0",
        "artifacts_url": f"s3://key:{secret}@store/x",
        "anchor_url": f"http://u:{secret}@w.dev/x",
        "anchor_webhook_url": f"http://u:{secret}@127.0.0.1/x",
        "timestamp_url": f"http://u:{secret}@tsa.dev/x",
        "signing_key": secret,
        "log_key": secret,
        "key_passphrase": secret,
        "signing_key_file": None,
        "log_key_file": None,
    }
    if broken is not None:
        values[broken] = [secret]
    logger = structlog.get_logger("test")
    shown = []
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        shown += [str(error), repr(error)]
        logger.exception("start.failed")
    else:
        shown += [repr(settings), str(settings)]
        logger.info("settings", settings=settings)
        for name in Settings.model_fields:
            if name not in {"artifacts_url", *SECRETS, "anchor_webhook_url", "timestamp_url"} or (
                name in {"signing_key", "log_key", "key_passphrase"}
            ):
                shown.append(repr(getattr(settings, name)))
                logger.info("setting", name=name, value=getattr(settings, name))
        try:
            require_safe(settings)
        except UnsafeSettingsError as error:
            shown += [str(error), repr(error)]
            logger.exception("start.refused")
    assert secret not in "".join(shown)
    assert secret not in log.getvalue()
    log.seek(0)
    log.truncate()
