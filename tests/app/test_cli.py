import subprocess
import sys

from sqlalchemy import inspect

import migrations
from app import auth
from app.db import make_engine, make_sessions
from app.services import Services


def test_help_lists_every_command(lethe):
    shown = lethe("--help").stdout
    for command in ("up", "down", "db", "keys", "verify", "render", "audit", "replay", "demo"):
        assert f"│ {command} " in shown


def test_help_imports_neither_torch_nor_the_plugins():
    code = (
        "import sys; from app.cli import main; sys.argv = ['lethe', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'cvxpy', 'demo.cli', 'fastapi', 'celery'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plugins_take_their_own_options(lethe):
    shown = lethe("demo", "--help")
    assert shown.returncode == 0
    assert "lethe demo [OPTIONS]" in shown.stdout
    assert "--dataset" in shown.stdout


def test_db_upgrade_brings_an_empty_database_to_the_newest_schema(lethe, empty_database_url):
    done = lethe("db", "upgrade", DATABASE_URL=empty_database_url)
    assert done.returncode == 0, done.stderr
    engine = make_engine(empty_database_url)
    with engine.connect() as connection:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    assert revision == migrations.head()
    assert inspect(engine).has_table("unlearning_request")
    engine.dispose()


def test_db_upgrade_without_a_database_names_the_remedy(lethe):
    done = lethe("db", "upgrade")
    assert done.returncode == 1
    assert "DATABASE_URL is not set" in done.stderr
    assert "lethe up" in done.stderr


def test_keys_create_prints_a_key_that_the_service_knows(lethe, fresh_database_url):
    options = ("--scope", "read", "--scope", "audit:read", "--days", "3")
    done = lethe("keys", "create", "auditor", *options, DATABASE_URL=fresh_database_url)
    assert done.returncode == 0, done.stderr
    engine = make_engine(fresh_database_url)
    with make_sessions(engine)() as session:
        caller = auth.authenticate(session, done.stdout.strip())
    engine.dispose()
    assert caller.name == "auditor"
    assert caller.scopes == {auth.Scope.READ, auth.Scope.AUDIT_READ}


def test_keys_create_names_the_scopes_there_are(lethe, fresh_database_url):
    done = lethe("keys", "create", "x", "--scope", "all", DATABASE_URL=fresh_database_url)
    assert done.returncode == 2
    assert "models:write" in done.stderr


def test_keys_create_explains_what_the_service_refuses(lethe, fresh_database_url):
    done = lethe("keys", "create", " ", "--scope", "read", DATABASE_URL=fresh_database_url)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_keys_init_writes_the_secrets_of_a_deployment_once(lethe, tmp_path):
    assert lethe("keys", "init", "--directory", "secrets").returncode == 0
    for name in ("master.key", "signing.pem", "log.pem"):
        assert (tmp_path / "secrets" / name).stat().st_mode & 0o777 == 0o600
    again = lethe("keys", "init", "--directory", "secrets")
    assert again.returncode == 1
    assert "choose another directory" in again.stderr


def test_verify_says_of_a_file_that_is_no_record_that_it_is_none(lethe, tmp_path, settings):
    services = Services.from_settings(settings)
    (tmp_path / "key.pem").write_bytes(services.signer.public_pem())
    services.close()
    (tmp_path / "record.json").write_text("{}")
    done = lethe("verify", "record.json", "--key", "key.pem")
    assert done.returncode == 1
    assert "✗" in done.stdout
    assert "does not verify" in done.stderr


def test_verify_says_what_is_wrong_with_a_key(lethe, tmp_path):
    (tmp_path / "record.json").write_text("{}")
    done = lethe("verify", "record.json", "--key", "record.json")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
