"""Migration 0010: what there was belongs to `default`, and the way back gives nothing away."""

import psycopg
import pytest
from psycopg.errors import RestrictViolation
from sqlalchemy import make_url

import migrations
from app.tenants.models import DEFAULT_TENANT, DEFAULT_TENANT_ID

KEY = (
    "INSERT INTO api_key (id, name, secret_sha256, scopes) VALUES (gen_random_uuid(), %s, '', '[]')"
)
FILL = """
DO $$
DECLARE one uuid := '01890000-0000-7000-8000-000000000001';
BEGIN
    INSERT INTO artifact (id, kind, location, size_bytes, ciphertext_sha256)
    VALUES (one, 'weights', 'l', 1, 'x');
    INSERT INTO model (id, name, state, manifest, current_revision, wrapped_digest_key,
                       has_membership)
    VALUES (one, 'm', 'active', '{}', 0, 'k', false);
    INSERT INTO unlearning_request (id, model_id, state, method, tier, options, sample_count,
                                    sample_commitment, samples_artifact_id, attempts)
    VALUES (one, one, 'queued', 'stored', 'exact', '{}', 1, 'x', one, 0);
    INSERT INTO webhook (id, url, state, consecutive_failures) VALUES (one, 'u', 'enabled', 0);
    INSERT INTO audit_entry (log_id, index, body, subtrees, created_at)
    VALUES (1, 0, '{"a":1}', decode(repeat('00', 32), 'hex'), now());
END $$
"""
TABLES = ("api_key", "audit_entry", "model", "unlearning_request", "webhook")


@pytest.fixture
def database(empty_database_url):
    migrations.upgrade(empty_database_url, "0009")
    address = make_url(empty_database_url).set(drivername="postgresql")
    with psycopg.connect(
        address.render_as_string(hide_password=False), autocommit=True
    ) as connection:
        connection.execute(FILL)
        connection.execute(KEY, ["old"])
        yield empty_database_url, connection


def owners(connection, table):
    return [owner for (owner,) in connection.execute(f"SELECT tenant_id FROM {table}")]  # noqa: S608


def test_every_row_joins_the_default_tenant_and_the_log_stays_as_it_was(database):
    url, connection = database
    log = "SELECT log_id, index, body, subtrees, created_at, xmin FROM audit_entry"
    before = connection.execute(log).fetchall()
    migrations.upgrade(url, "0010")
    assert connection.execute("SELECT id, name FROM tenant").fetchall() == [
        (DEFAULT_TENANT_ID, DEFAULT_TENANT)
    ]
    for table in TABLES:
        assert owners(connection, table) == [DEFAULT_TENANT_ID]
    # Not one row was written anew.
    assert connection.execute(log).fetchall() == before
    with pytest.raises(RestrictViolation):
        connection.execute("UPDATE audit_entry SET tenant_id = NULL")
    migrations.downgrade(url, "0009")
    migrations.upgrade(url, "0010")
    assert connection.execute(log).fetchall() == before


def test_what_a_process_of_the_earlier_version_writes_is_the_default_tenants(database):
    url, connection = database
    migrations.upgrade(url, "0010")
    connection.execute(KEY, ["still running"])
    assert owners(connection, "api_key") == [DEFAULT_TENANT_ID] * 2


def test_there_is_no_way_back_once_there_are_two(database):
    url, connection = database
    migrations.upgrade(url, "0010")
    connection.execute("INSERT INTO tenant (id, name) VALUES (gen_random_uuid(), 'other')")
    with pytest.raises(RuntimeError, match="several tenants"):
        migrations.downgrade(url, "0009")
    assert owners(connection, "model") == [DEFAULT_TENANT_ID]
