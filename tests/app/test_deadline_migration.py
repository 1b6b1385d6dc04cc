"""Migration 0006: what was asked for before gets its deadline, and nothing is forgotten again."""

import datetime

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

import migrations
from app.unlearning.deadline_calendar import make_calendar

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
                                    sample_commitment, samples_artifact_id, attempts, created_at)
    SELECT gen_random_uuid(), one, 'queued', 'stored', 'exact', '{}', 1, 'x', one, 0, at
    FROM generate_series(timestamptz '2023-11-20 00:00Z', timestamptz '2026-03-10 00:00Z',
                         interval '17 hours') AS at;
END $$
"""


def run(database_url, statement):
    address = make_url(database_url).set(drivername="postgresql")
    with psycopg.connect(
        address.render_as_string(hide_password=False), options="-c timezone=Asia/Tokyo"
    ) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def before(empty_database_url):
    migrations.upgrade(empty_database_url, "0005")
    run(empty_database_url, FILL)
    return empty_database_url


def test_what_was_asked_for_before_is_due_a_month_after_it_arrived(before):
    migrations.upgrade(before, "0006")
    rows = run(
        before, "SELECT created_at, received_at, due_at, extension_months FROM unlearning_request"
    )
    calendar = make_calendar("UTC", None, "")
    assert len(rows) > 1000
    for created_at, received_at, due_at, extension_months in rows:
        assert received_at == created_at
        assert due_at == calendar.due_at(created_at)
        assert extension_months == 0
    assert {created_at.astimezone(datetime.UTC).day for created_at, *_ in rows} == set(range(1, 32))
    migrations.downgrade(before, "0005")
    migrations.upgrade(before, "0006")


@pytest.mark.parametrize(
    "statement",
    [
        """INSERT INTO deadline_interval (id, request_id, kind, began_at, explanation, due_before)
        SELECT id, id, 'identity-check', now(), 'e', now() FROM unlearning_request LIMIT 1""",
        "UPDATE unlearning_request SET state = 'identity_check'",
        """UPDATE unlearning_request SET refusal = '{"cause": "rejected-by-controller"}'""",
    ],
)
def test_a_version_that_knows_no_deadlines_is_not_gone_back_to_once_one_was_changed(
    before, statement
):
    migrations.upgrade(before, "0006")
    run(before, statement)
    with pytest.raises(DBAPIError, match="deadlines were extended or suspended"):
        migrations.downgrade(before, "0005")


INTERVAL = (
    "INSERT INTO deadline_interval (id, request_id, kind, began_at, ended_at, outcome, months,"
    " reason, explanation, due_before) SELECT gen_random_uuid(), id, {}, 'e', now()"
    " FROM (SELECT id FROM unlearning_request ORDER BY id LIMIT 1) AS one"
)
EXTENSION = "'extension', now(), NULL, NULL, 2, 'complexity'"
OPEN_CHECK = "'identity-check', now(), NULL, NULL, NULL, NULL"


@pytest.mark.parametrize(
    "values",
    [
        "'holiday', now(), NULL, NULL, NULL, NULL",
        "'extension', now(), NULL, NULL, NULL, NULL",
        "'extension', now(), now(), 'ended', 2, 'complexity'",
        "'identity-check', now(), now(), NULL, NULL, NULL",
        "'identity-check', now(), NULL, 'confirmed', NULL, NULL",
        "'identity-check', now(), NULL, NULL, 2, 'complexity'",
    ],
)
def test_the_database_refuses_intervals_that_cannot_be(before, values):
    migrations.upgrade(before, "0006")
    with pytest.raises(psycopg.errors.CheckViolation):
        run(before, INTERVAL.format(values))


@pytest.mark.parametrize("values", [EXTENSION, OPEN_CHECK])
def test_the_database_refuses_a_second_extension_and_a_second_open_check(before, values):
    migrations.upgrade(before, "0006")
    run(before, INTERVAL.format(values))
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(before, INTERVAL.format(values))
