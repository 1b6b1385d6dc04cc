import dataclasses
import datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from app.artifacts.keys import MasterKey
from app.evidence.keys import keyring
from app.evidence.keys.keysources import derived_passphrase
from app.evidence.keys.signing import Signer
from app.evidence.log import lock_open_log
from app.evidence.models import KeyRole
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
        "checks": {
            "database": "ok",
            "broker": "ok",
            "signing_key": "ok",
            "log_key": "ok",
            "log": "ok",
        },
    }


def test_it_is_not_ready_without_the_database(make_api):
    api = make_api(database_url="postgresql+psycopg://nobody@/none?host=/nowhere")
    expect_not_ready(api.get("/readyz"), "database", "lethe db upgrade")


def test_keys_and_log_are_not_vouched_for_without_the_database(settings, api):
    away = {"database_url": "postgresql+psycopg://nobody@/none?host=/nowhere"}
    app = create_app(settings.model_copy(update=away))
    answer = type(api)(app, None).get("/readyz")
    for name in ("signing_key", "log_key", "log"):
        expect_not_ready(answer, name, "see database")
    app.state.services.close()


def test_it_is_not_ready_without_the_broker(make_api, tmp_path):
    api = make_api(redis_url=f"unix://{tmp_path}/none")
    expect_not_ready(api.get("/readyz"), "broker", "REDIS_URL")


def test_it_is_not_ready_at_another_migration(fresh_settings, api):
    app = create_app(fresh_settings)
    with app.state.services.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    expect_not_ready(type(api)(app, None).get("/readyz"), "database", "lethe db upgrade")
    app.state.services.close()


@pytest.mark.parametrize(
    ("name", "setting"), [("signing_key", "SIGNING_KEY_FILE"), ("log_key", "LOG_KEY_FILE")]
)
def test_it_is_not_ready_when_a_key_cannot_be_read(api, settings, name, setting):
    path = getattr(settings, f"{name}_file")
    path.write_bytes(b"no key")
    expect_not_ready(api.get("/readyz"), name, setting)
    path.unlink()
    expect_not_ready(api.get("/readyz"), name, setting)


def test_it_is_not_ready_with_keys_that_the_log_does_not_know(api, settings, session):
    services = api.app.state.services
    log = lock_open_log(session)
    log.origin = settings.log_origin
    keyring.require_active(session, KeyRole.RECORDS, services.signer, log)
    keyring.require_active(session, KeyRole.CHECKPOINTS, services.checkpoint_signer, log)
    session.commit()
    assert api.get("/readyz").json()["ready"]
    known = services.signer.pinned().key_id
    master = MasterKey.load(settings.master_key_file)
    for path in (settings.signing_key_file, settings.log_key_file):
        path.unlink()
        Signer.generate(path, derived_passphrase(master))
    answer = api.get("/readyz")
    expect_not_ready(answer, "signing_key", f"Put back the one that is: key {known[:16]}")
    expect_not_ready(answer, "log_key", "lethe keys revoke")


def test_a_key_that_was_replaced_is_told_before_it_ends(api, settings, session):
    services = api.app.state.services
    old = services.signer.pinned()
    new = Ed25519PrivateKey.generate()
    keyring.rotate(
        session,
        KeyRole.RECORDS,
        old._held.private_key,
        new.public_key(),
        overlap=datetime.timedelta(days=1),
        first_origin=settings.log_origin,
    )
    session.commit()
    answer = api.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"]["signing_key"].startswith("ok until ")
    assert "install its successor" in answer.json()["checks"]["signing_key"]


def test_it_is_not_ready_when_the_log_has_another_name_than_the_first_one(make_api, session):
    lock_open_log(session).origin = "first.example/audit"
    session.commit()
    assert make_api(log_origin="first.example/audit").get("/readyz").json()["ready"]
    answer = make_api(log_origin="other.example/audit").get("/readyz")
    expect_not_ready(answer, "log", "set LOG_ORIGIN to the first log's name")


def test_services_are_one_frozen_record(services):
    with pytest.raises(dataclasses.FrozenInstanceError):
        services.settings = None
