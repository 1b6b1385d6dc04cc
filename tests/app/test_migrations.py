"""The schema's steps, on a real server."""

import hashlib
import json
import secrets
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError

import migrations
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.tables import metadata


@pytest.fixture
def empty_database_url(database_url):
    """A database without any table."""
    name = f"lethe_empty_{secrets.token_hex(6)}"
    server = make_url(database_url).set(drivername="postgresql")
    address = server.render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield make_url(database_url).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def tables(database_url):
    engine = create_engine(database_url)
    found = set(inspect(engine).get_table_names())
    engine.dispose()
    return found


def test_up_down_and_up_again_ends_where_the_tables_are(empty_database_url):
    migrations.upgrade(empty_database_url)
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}
    migrations.downgrade(empty_database_url, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    with psycopg.connect(
        make_url(empty_database_url)
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    ) as connection:
        left = connection.execute("SELECT proname FROM pg_proc WHERE proname LIKE 'lethe%'")
        assert left.fetchall() == []
    migrations.upgrade(empty_database_url)
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


def run(database_url, statement):
    address = make_url(database_url).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        found = connection.execute(statement)
        return found.fetchall() if found.description else None


BEFORE = """
DO $$
DECLARE one uuid := '01890000-0000-7000-8000-000000000001';
BEGIN
    INSERT INTO artifact (id, kind, location, size_bytes, ciphertext_sha256)
    VALUES (one, 'weights', 'l', 1, 'x');
    INSERT INTO model (id, name, state, manifest, current_revision, wrapped_digest_key)
    VALUES (one, 'm', 'active', '{}', 0, 'k');
    INSERT INTO revision (id, model_id, number, n_samples, gradient_norm_bound,
                          weights_artifact_id, weights_sha256)
    VALUES (one, one, 0, 5, 0, one, 'x');
    INSERT INTO unlearning_request (id, model_id, state, method, options, sample_count,
                                    sample_commitment, samples_artifact_id, attempts)
    SELECT gen_random_uuid(), one, 'queued', method, '{}', 1, 'x', one, 0
    FROM unnest(ARRAY['stored', 'forget-curvature', 'paper-sdp']) AS method;
END $$
"""


def test_what_was_asked_for_before_gets_its_tier(empty_database_url):
    migrations.upgrade(empty_database_url, "0001")
    run(empty_database_url, BEFORE)
    migrations.upgrade(empty_database_url)
    tiers = run(empty_database_url, "SELECT method, tier FROM unlearning_request")
    assert dict(tiers) == {
        "stored": "exact",
        "forget-curvature": "estimated",
        "paper-sdp": "estimated",
    }
    assert run(empty_database_url, "SELECT has_membership FROM model") == [(False,)]
    migrations.downgrade(empty_database_url, "0001")
    assert run(empty_database_url, "SELECT count(*) FROM unlearning_request") == [(3,)]


def test_a_version_that_would_serve_weights_without_their_noise_is_not_gone_back_to(
    empty_database_url,
):
    migrations.upgrade(empty_database_url, "0001")
    run(empty_database_url, BEFORE)
    migrations.upgrade(empty_database_url)
    run(
        empty_database_url,
        "UPDATE revision SET release_artifact_id = weights_artifact_id, release_sha256 = 'x'",
    )
    with pytest.raises(DBAPIError, match="output perturbation"):
        migrations.downgrade(empty_database_url, "0001")
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (
            """WITH a AS (
                INSERT INTO budget_account (model_id, mechanism, epsilon, delta, sigma, measure,
                                            limit_value, spent, reserved)
                SELECT id, 'objective-perturbation', 1, 1e-6, 1, 'x', 1, 0, 0 FROM model
                RETURNING model_id)
            INSERT INTO budget_entry (model_id, kind, amount, spent_after)
            SELECT model_id, 'open', 1, 0 FROM a""",
            "privacy budget",
        ),
        ("INSERT INTO training_digest SELECT id, 'd', 0 FROM model", "digests of their training"),
    ],
)
def test_going_back_does_not_drop_a_ledger_or_who_was_trained_on(
    empty_database_url, statement, finding
):
    migrations.upgrade(empty_database_url, "0001")
    run(empty_database_url, BEFORE)
    migrations.upgrade(empty_database_url)
    run(empty_database_url, statement)
    with pytest.raises(DBAPIError, match=finding):
        migrations.downgrade(empty_database_url, "0001")
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


def test_a_version_that_cannot_compute_with_networks_is_not_gone_back_to(empty_database_url):
    migrations.upgrade(empty_database_url, "0001")
    run(empty_database_url, BEFORE)
    migrations.upgrade(empty_database_url)
    assert run(empty_database_url, "SELECT network_sha256 FROM model") == [(None,)]
    network = "UPDATE model SET network_artifact_id = id, network_sha256 = 'x'"
    run(empty_database_url, network)
    with pytest.raises(DBAPIError, match="networks exist"):
        migrations.downgrade(empty_database_url, "0002")
    assert run(empty_database_url, "SELECT network_sha256 FROM model") == [("x",)]


def test_the_tables_in_code_are_those_of_the_migrations(database_url):
    # Raises with the difference if there is one.
    command.check(migrations.configuration(database_url))


def test_upgrading_twice_changes_nothing(empty_database_url):
    migrations.upgrade(empty_database_url)
    migrations.upgrade(empty_database_url)
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


def test_there_is_one_newest_migration_and_every_step_can_be_undone():
    scripts = ScriptDirectory.from_config(migrations.configuration())
    assert scripts.get_heads() == [migrations.head()]
    for script in scripts.walk_revisions():
        assert callable(script.module.upgrade)
        assert callable(script.module.downgrade)


def test_of_two_that_migrate_at_once_the_second_waits_for_the_first(
    empty_database_url, monkeypatch
):
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "100ms")
    engine = create_engine(empty_database_url)
    with engine.begin() as first, ThreadPoolExecutor(1) as pool:
        first.execute(text(f"SELECT pg_advisory_xact_lock({int.from_bytes(b'lethe')})"))
        second = pool.submit(migrations.upgrade, empty_database_url)
        with pytest.raises(TimeoutError):
            second.result(1.0)
        first.commit()
        second.result(60)
    engine.dispose()
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


def test_a_migration_gives_up_on_a_lock_instead_of_stopping_the_service(
    empty_database_url, monkeypatch
):
    monkeypatch.setattr(migrations, "LOCK_TIMEOUT", "200ms")
    migrations.upgrade(empty_database_url)
    engine = create_engine(empty_database_url)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE revision IN ACCESS SHARE MODE"))
        with pytest.raises(OperationalError, match="lock timeout"):
            migrations.downgrade(empty_database_url, "base")
    engine.dispose()
    assert tables(empty_database_url) == {*metadata.tables, "alembic_version"}


def test_a_percent_sign_in_the_url_is_taken_as_it_is():
    url = "postgresql+psycopg://user:p%40ss@host/db"
    assert migrations.configuration(url).get_main_option("sqlalchemy.url") == url


def test_the_log_begins_empty(session):
    found = session.execute(text("SELECT id, origin, size, frontier, closed_at FROM audit_log"))
    assert [tuple(row) for row in found] == [(1, None, 0, b"", None)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entry SET body = '\\x00'",
        "DELETE FROM audit_entry",
        "TRUNCATE audit_entry CASCADE",
        "UPDATE audit_entry SET index = index WHERE false",
        "DELETE FROM evidence_record",
        "UPDATE evidence_record SET kind = 'certificate'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log CASCADE",
        "UPDATE audit_log SET size = 7",
        "UPDATE audit_log SET frontier = '\\x00'",
        "DELETE FROM audit_checkpoint",
        "UPDATE audit_checkpoint SET note = ''",
        "DELETE FROM audit_anchor",
        "UPDATE audit_anchor SET target = ''",
        "DELETE FROM signing_key",
        "SET session_replication_role = replica; DELETE FROM audit_entry",
        "SET session_replication_role = replica; DELETE FROM audit_checkpoint",
        "UPDATE budget_entry SET amount = 0",
        "DELETE FROM budget_entry",
        "TRUNCATE budget_entry",
        "SET session_replication_role = replica; DELETE FROM budget_entry",
    ],
)
def test_the_database_refuses_to_change_the_log(session, statement):
    with pytest.raises(DBAPIError, match=r"append-only|moves forward"):
        session.execute(text(statement))


def chained(bodies):
    """Return rows of the log as it was kept before it was a tree."""
    chain, rows = hashlib.sha256(b"").digest(), []
    for index, body in enumerate(bodies):
        leaf = hashlib.sha256(b"\0" + body).digest()
        chain = hashlib.sha256(b"\1" + chain + leaf).digest()
        rows.append((index, body, leaf, chain))
    return rows


def fill(database_url, rows):
    address = make_url(database_url).set(drivername="postgresql")
    with psycopg.connect(address.render_as_string(hide_password=False)) as connection:
        for row in rows:
            connection.execute(
                "INSERT INTO audit_entry (index, body, leaf_hash, chain_hash)"
                " VALUES (%s, %s, %s, %s)",
                row,
            )
            connection.execute(
                "UPDATE audit_head SET size = %s, chain_hash = %s", (row[0] + 1, row[3])
            )


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_a_log_that_was_a_chain_becomes_a_tree_that_says_where_the_chain_ended(
    empty_database_url, count
):
    migrations.upgrade(empty_database_url, "0003")
    rows = chained(b'{"index":%d}' % index for index in range(count))
    fill(empty_database_url, rows)
    migrations.upgrade(empty_database_url)
    found = run(empty_database_url, "SELECT index, body, subtrees FROM audit_entry ORDER BY index")
    assert [(index, body) for index, body, _ in found[:count]] == [row[:2] for row in rows]
    expected = Frontier()
    for _, body, subtrees in found:
        expected, completed = expected.append(leaf_hash(body))
        assert subtrees == b"".join(completed)
    ((size, frontier),) = run(empty_database_url, "SELECT size, frontier FROM audit_log")
    assert (size, frontier) == (expected.size, expected.to_bytes())
    if count == 0:
        assert size == 0
        return
    said = json.loads(found[-1][1])
    assert (size, said["event"], said["index"]) == (count + 1, "log.converted", count)
    assert said["payload"]["chain_hash"] == rows[-1][3].hex()


def test_a_log_that_was_altered_is_not_made_good_by_the_upgrade(empty_database_url):
    migrations.upgrade(empty_database_url, "0003")
    fill(empty_database_url, chained(b'{"index":%d}' % index for index in range(9)))
    run(
        empty_database_url,
        "ALTER TABLE audit_entry DISABLE TRIGGER USER;"
        " UPDATE audit_entry SET body = 'other' WHERE index = 4",
    )
    with pytest.raises(RuntimeError, match="entry 4 does not follow"):
        migrations.upgrade(empty_database_url)
    assert "audit_head" in tables(empty_database_url)


def test_a_version_without_the_tree_is_not_gone_back_to_once_the_log_has_entries(
    empty_database_url,
):
    migrations.upgrade(empty_database_url, "0003")
    fill(empty_database_url, chained([b'{"index":0}']))
    migrations.upgrade(empty_database_url)
    with pytest.raises(DBAPIError, match="the audit log has entries"):
        migrations.downgrade(empty_database_url, "0003")


def test_keys_that_could_read_weights_before_still_can(empty_database_url):
    migrations.upgrade(empty_database_url, "0003")
    run(
        empty_database_url,
        """INSERT INTO api_key (id, name, secret_sha256, scopes)
        SELECT gen_random_uuid(), 'k', 'x', scopes::jsonb
        FROM unnest(ARRAY['["read"]', '["audit:read"]', '["admin", "read"]']) AS scopes""",
    )
    migrations.upgrade(empty_database_url)
    found = run(empty_database_url, "SELECT scopes FROM api_key")
    assert sorted(sorted(scopes) for (scopes,) in found) == [
        ["admin", "read", "weights:read"],
        ["audit:read"],
        ["read", "weights:read"],
    ]
    migrations.downgrade(empty_database_url, "0003")
    found = run(empty_database_url, "SELECT scopes FROM api_key")
    assert sorted(sorted(scopes) for (scopes,) in found) == [
        ["admin", "read"],
        ["audit:read"],
        ["read"],
    ]


def test_keys_lose_a_scope_that_the_version_before_does_not_know(empty_database_url):
    migrations.upgrade(empty_database_url)
    run(
        empty_database_url,
        """INSERT INTO api_key (id, name, secret_sha256, scopes)
        SELECT gen_random_uuid(), 'k', 'x', scopes::jsonb
        FROM unnest(ARRAY['["read", "webhooks:write"]', '["webhooks:write"]', '["admin"]'])
            AS scopes""",
    )
    migrations.downgrade(empty_database_url, "0004")
    found = run(empty_database_url, "SELECT scopes FROM api_key")
    assert sorted(scopes for (scopes,) in found) == [[], ["admin"], ["read"]]


@pytest.mark.parametrize(
    "change",
    ["valid_until = NULL", "valid_until = valid_until + interval '1 s'", "role = 'checkpoints'"],
)
def test_the_database_gives_a_key_no_more_time_than_was_published(session, change):
    session.execute(
        text(
            "INSERT INTO signing_key (id, role, public_key, valid_from, valid_until, compromised)"
            " VALUES ('k', 'records', 'x', now(), now() + interval '1 day', false)"
        )
    )
    session.execute(text("UPDATE signing_key SET valid_until = now()"))
    with pytest.raises(DBAPIError, match="never changed"):
        session.execute(text(f"UPDATE signing_key SET {change}"))  # noqa: S608 - of this test
