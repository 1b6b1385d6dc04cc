import logging
from pathlib import Path

import anyio
import pytest
import structlog
from starlette.responses import StreamingResponse

from app.artifacts.keys import MasterKeyError
from app.logging import never_print_locals
from app.main import create_app
from app.settings import get_settings


@pytest.fixture
def environment(settings, monkeypatch):
    """The process's environment as an operator sets it; logging is put back afterwards."""
    for name, value in settings.model_dump(mode="json", exclude_none=True).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        monkeypatch.setenv(name.upper(), text)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
    root.handlers, root.level = handlers, level
    logging.getLogger("uvicorn.access").disabled = False
    structlog.reset_defaults()
    never_print_locals()


@pytest.mark.usefixtures("environment")
def test_uvicorns_factory_takes_everything_from_the_environment(settings):
    app = create_app()
    assert app.state.services.settings == settings
    app.state.services.close()


def test_starting_without_a_key_names_the_setting(settings):
    settings.master_key_file.unlink()
    with pytest.raises(MasterKeyError, match="MASTER_KEY_FILE"):
        create_app(settings)


def test_stopping_gives_the_connections_back(settings):
    app = create_app(settings)
    engine = app.state.services.engine

    async def start_and_stop():
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent = []

        async def receive():
            if len(messages) == 1:
                with engine.connect():
                    pass
                assert engine.pool.checkedin() == 1
            return messages.pop(0)

        async def send(message):
            sent.append(message["type"])

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        await app(scope, receive, send)
        return sent

    sent = anyio.run(start_and_stop)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert engine.pool.checkedin() == 0


def test_an_answer_that_breaks_off_is_cut_and_not_completed_with_a_problem(api):
    def half():
        yield b"half"
        raise ZeroDivisionError

    @api.app.get("/half")
    def answer():
        return StreamingResponse(half())

    with pytest.raises(ZeroDivisionError):
        api.get("/half")


def test_a_corrupt_artifact_is_an_error_of_the_service(api, model_id, settings):
    folder = Path(settings.artifacts_url.removeprefix("file://"))
    for blob in [path for path in folder.rglob("*") if path.is_file()]:
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    answer = api.get(f"/v1/models/{model_id}/revisions/0/weights")
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:lethe:problem:artifact-corrupt"
