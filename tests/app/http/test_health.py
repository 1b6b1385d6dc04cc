import dataclasses

import pytest
from sqlalchemy import text

from app.evidence.signing import Signer
from app.main import create_app


def expect_not_ready(answer, name, remedy):
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert remedy in answer.json()["checks"][name]


def test_the_process_lives_whatever_else_does_not(make_api, tmp_path):
    api = make_api(
        redis_url=f"unix://{tmp_path}/none",
        database_url="postgresql+psycopg://nobody@/none?host=/nowhere",
    )
    assert api.with_token(None).get("/livez").json() == {"status": "alive"}


def test_it_is_ready_when_everything_works(api):
    answer = api.with_token(None).get("/readyz")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "ready": True,
        "checks": {"database": "ok", "broker": "ok", "signing_key": "ok"},
    }


def test_it_is_not_ready_without_the_database(make_api):
    api = make_api(database_url="postgresql+psycopg://nobody@/none?host=/nowhere")
    expect_not_ready(api.get("/readyz"), "database", "lethe db upgrade")


def test_it_is_not_ready_without_the_broker(make_api, tmp_path):
    api = make_api(redis_url=f"unix://{tmp_path}/none")
    expect_not_ready(api.get("/readyz"), "broker", "REDIS_URL")


def test_it_is_not_ready_at_another_migration(fresh_settings, api):
    app = create_app(fresh_settings)
    with app.state.services.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    expect_not_ready(type(api)(app, None).get("/readyz"), "database", "lethe db upgrade")
    app.state.services.close()


def test_it_is_not_ready_without_its_signing_key_or_with_another(api, settings):
    settings.signing_key_file.unlink()
    expect_not_ready(api.get("/readyz"), "signing_key", "SIGNING_KEY_FILE")
    Signer.generate(settings.signing_key_file)
    expect_not_ready(api.get("/readyz"), "signing_key", "restart")


def test_services_are_one_frozen_record(services):
    with pytest.raises(dataclasses.FrozenInstanceError):
        services.settings = None
