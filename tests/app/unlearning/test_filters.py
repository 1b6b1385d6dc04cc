"""Filters and pages of the list, against a list kept in Python and rows that arrive meanwhile."""

import datetime
import threading
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, func, insert, select, text
from sqlalchemy.orm import Session

from app.http.paging import fetch_page
from app.unlearning import repository
from app.unlearning.models import RequestState, UnlearningRequest
from app.unlearning.repository import Filters

URL = "/v1/unlearning-requests"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

ONE_MODEL = """
INSERT INTO artifact (id, kind, location, size_bytes, ciphertext_sha256)
VALUES (:id, 'forget-samples', 'l' || :id, 1, 'x');
INSERT INTO model (id, name, state, manifest, current_revision, wrapped_digest_key,
                   has_membership)
VALUES (:id, 'm', 'active', '{}', 0, 'k', false)
"""
METHODS = [("stored", "exact"), ("forget-curvature", "estimated")]


def add_model(connection):
    identifier = uuid.uuid4()
    for statement in ONE_MODEL.split(";"):
        connection.execute(text(statement), {"id": identifier})
    return identifier


def row(model_id, i, **changes):
    method, tier = METHODS[i % 2]
    return {
        "id": uuid.uuid4(),
        "model_id": model_id,
        "state": list(RequestState)[i % 6],
        "method": method,
        "tier": tier,
        "options": {},
        "subject_reference": f"ticket {i % 7}",
        "sample_count": 1,
        "sample_commitment": "x",
        "samples_artifact_id": model_id,
        "created_at": START + datetime.timedelta(days=i),
    } | changes


def test_every_filter_narrows_the_list_and_all_have_to_hold(api, session):
    models = [add_model(session) for _ in range(2)]
    rows = [row(models[i % 2], i, samples_artifact_id=models[0]) for i in range(40)]
    for one in rows:
        session.execute(insert(UnlearningRequest), one)
    session.commit()

    def listed(**params):
        answer = api.get(URL, params={"limit": 200} | params)
        assert answer.status_code == 200, answer.text
        return [one["id"] for one in answer.json()["items"]]

    def expected(keep):
        return [str(one["id"]) for one in reversed(rows) if keep(one)]

    two = ["queued", "failed"]
    assert listed() == expected(lambda _: True)
    assert listed(state=two) == expected(lambda one: one["state"] in two)
    assert listed(tier="exact") == expected(lambda one: one["tier"] == "exact")
    assert listed(method="stored") == expected(lambda one: one["method"] == "stored")
    assert listed(model_id=models[1]) == expected(lambda one: one["model_id"] == models[1])
    reference = "ticket 3"
    assert listed(subject_reference=reference) == expected(
        lambda one: one["subject_reference"] == reference
    )
    assert listed(subject_reference="ticket") == []
    first, last = START + datetime.timedelta(days=5), START + datetime.timedelta(days=9)
    within = expected(lambda one: first <= one["created_at"] < last)
    assert len(within) == 4
    assert listed(created_from=first.isoformat(), created_to=last.isoformat()) == within
    assert listed(state=two, tier="estimated", created_from=first.isoformat()) == expected(
        lambda one: (
            one["state"] in two and one["tier"] == "estimated" and one["created_at"] >= first
        )
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "gone"),
        ("tier", "best"),
        ("method", "magic"),
        ("subject_reference", ""),
        ("subject_reference", "a\x00"),
        ("created_from", "yesterday"),
        ("created_to", "2026-01-01T00:00:00"),
        ("model_id", "x"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_by_name(api, name, value):
    answer = api.get(URL, params={name: value})
    assert answer.status_code == 422
    assert answer.json()["field"] == name


FILTERS = st.builds(
    Filters,
    states=st.lists(st.sampled_from(RequestState), max_size=3, unique=True),
    tier=st.sampled_from([None, "exact", "estimated"]),
    subject_reference=st.sampled_from([None, "ticket 1", "ticket 5"]),
    created_from=st.sampled_from([None, START + datetime.timedelta(days=20)]),
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(filters=FILTERS, limit=st.integers(1, 12), count=st.integers(0, 40))
def test_pages_meet_each_old_request_once_while_others_insert(fresh_engine, filters, limit, count):
    with fresh_engine.begin() as connection:
        connection.execute(text("DELETE FROM unlearning_request"))
        model = add_model(connection)
        for i in range(count):
            connection.execute(insert(UnlearningRequest), row(model, i))
    over, begun = threading.Event(), threading.Event()

    def keep_inserting():
        i = 1000
        while not over.wait(0.003) and i < 1060:
            with fresh_engine.begin() as connection:
                connection.execute(insert(UnlearningRequest), row(model, i))
                begun.set()
                i += 1

    with Session(fresh_engine) as session:
        before = list(session.scalars(repository.list_requests(filters)))
        old = [one.id for one in before]
        newest = session.scalar(select(func.max(UnlearningRequest.arrival))) or 0
    writers = [threading.Thread(target=keep_inserting) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert begun.wait(10)
        seen, cursor = [], None
        while True:
            with Session(fresh_engine) as session:
                page, cursor = fetch_page(
                    session,
                    repository.list_requests(filters),
                    limit=limit,
                    cursor=cursor,
                    ordered_by=int,
                )
                seen += page
            if cursor is None:
                break
    finally:
        over.set()
        for writer in writers:
            writer.join(10)
    assert [one.id for one in seen if one.arrival <= newest] == old
    arrivals = [one.arrival for one in seen]
    assert arrivals == sorted(set(arrivals), reverse=True)


MANY = """
INSERT INTO unlearning_request (id, model_id, state, method, tier, options, subject_reference,
    sample_count, sample_commitment, samples_artifact_id, attempts, created_at)
SELECT gen_random_uuid(), :id, CASE WHEN i % 5000 = 0 THEN 'failed' ELSE 'completed' END, 'stored',
    'exact', '{}', 'ticket ' || i, 1, 'x', :id, 1, now() - make_interval(mins => 100000 - i)
FROM generate_series(1, 100000) AS i
"""


@pytest.mark.slow
def test_no_filter_reads_the_whole_table_of_a_hundred_thousand(fresh_engine):
    with fresh_engine.begin() as connection:
        connection.execute(text(MANY), {"id": add_model(connection)})
    with fresh_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE unlearning_request"))
    plans = []

    def explain(conn, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT"):
            found = conn.connection.driver_connection.execute(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
            ).fetchone()
            plans.append(found[0][0])

    event.listen(fresh_engine, "before_cursor_execute", explain)
    now = datetime.datetime.now(datetime.UTC)
    old = now - datetime.timedelta(minutes=90_000)
    for filters in (
        Filters(),
        Filters(states=[RequestState.FAILED]),
        Filters(states=[RequestState.RUNNING, RequestState.FAILED]),
        Filters(subject_reference="ticket 77"),
        Filters(created_to=old, created_from=old - datetime.timedelta(days=1)),
        Filters(created_from=now - datetime.timedelta(days=1)),
    ):
        with Session(fresh_engine) as session:
            fetch_page(
                session,
                repository.list_requests(filters),
                limit=50,
                cursor=None,
                ordered_by=int,
            )
        plan = plans.pop()
        assert "Seq Scan" not in str(plan), (filters, plan)
        assert plan["Execution Time"] < 50, (filters, plan)
    event.remove(fresh_engine, "before_cursor_execute", explain)
