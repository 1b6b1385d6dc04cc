"""What is scraped equals what SQL counts, and a scrape survives the database's absence."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr, ValidationError
from sqlalchemy import create_engine, text

from app import auth
from app.auth import Scope
from app.embedded.launcher import EPHEMERAL, PostgresServer
from app.main import create_app
from app.metrics.exposition import Metrics
from app.metrics.figures import BUCKETS

TOKEN = "a-token-of-this-test"  # noqa: S105 - of this test alone
AWAY = "postgresql+psycopg://nobody@/none?host=/nowhere"
PAGE = (Path(__file__).parents[3] / "docs" / "operations-metrics.md").read_text()

# 3,000 requests of every state and tier, durations from 0 to days, bounds among them exactly.
FILL = """
INSERT INTO artifact (id, kind, location, size_bytes, ciphertext_sha256, wrapped_key, retain_until)
SELECT md5('a' || i)::uuid, 'weights', 'l', 1, 'x', 'k', now() + (i - 5) * interval '1 hour'
FROM generate_series(1, 12) i;
INSERT INTO model (id, name, state, manifest, current_revision, wrapped_digest_key,
                   has_membership)
SELECT md5('m' || i)::uuid, 'secret name', CASE WHEN i = 4 THEN 'retired' ELSE 'active' END,
       '{}', 0, 'k', false FROM generate_series(1, 4) i;
INSERT INTO budget_account (model_id, mechanism, epsilon, delta, sigma, measure, limit_value,
                            spent, reserved)
SELECT md5('m' || i)::uuid, 'output-perturbation', 1, 0.1, 1, 'm', 2, (i - 1) * 0.95, 0
FROM generate_series(1, 3) i;
INSERT INTO unlearning_job (id, model_id, worker, lease_expires_at, finished_at, outcome)
SELECT md5('j' || i)::uuid, md5('m' || i % 4 + 1)::uuid, 'w', now() - interval '1 minute',
       CASE WHEN i > 2 THEN now() END,
       CASE WHEN i > 2 THEN (ARRAY['lost', 'completed', 'released'])[i % 3 + 1] END
FROM generate_series(1, 50) i;
INSERT INTO unlearning_request (
    id, model_id, state, method, tier, options, sample_count, sample_commitment,
    samples_artifact_id, attempts, subject_reference, http_request_id,
    created_at, started_at, finished_at, refusal, failure)
SELECT md5('r' || i)::uuid, md5('m' || i % 4 + 1)::uuid, state, 'stored',
       (ARRAY['exact', 'certified', 'estimated'])[i / 6 % 3 + 1], '{}', 1, 'x', md5('a1')::uuid, 1,
       'Jane Doe', 'of-a-client', began,
       CASE WHEN i % 7 > 1 THEN began + (i % 40) * interval '50 ms' END,
       CASE WHEN state NOT IN ('queued', 'running')
            THEN began + (i % 40) * interval '50 ms' + i * interval '0.1 second' END,
       CASE WHEN state = 'refused'
            THEN jsonb_build_object('cause',
                 (ARRAY['budget-spent', 'ill-conditioned'])[i / 6 % 2 + 1])
       END,
       CASE WHEN state = 'failed' THEN '{"cause": "unexpected-error"}'::jsonb END
FROM generate_series(1, 3000) i,
     LATERAL (SELECT now() - interval '9 days' + i * interval '1 minute' AS began,
              (ARRAY['queued', 'running', 'completed', 'refused', 'failed', 'cancelled'])
                  [(i * 7) % 6 + 1] AS state) s;
"""


def scrape(api, token=TOKEN):
    return api.with_token(token).get("/metrics")


def samples(answer):
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def metered(fresh_settings, api):
    """The application over a database of its own."""
    app = create_app(fresh_settings.model_copy(update={"metrics_token": SecretStr(TOKEN)}))
    yield type(api)(app, TOKEN)
    app.state.services.close()


def test_every_figure_equals_what_sql_counts(metered, fresh_engine):
    with fresh_engine.begin() as connection:
        connection.execute(text(FILL))
    found = samples(scrape(metered))

    def value(name, **labels):
        return found[name, frozenset(labels.items())]

    with fresh_engine.connect() as connection:

        def count(what, where="true"):
            statement = f"SELECT count(*) FROM {what} WHERE {where}"  # noqa: S608 - ours
            return connection.scalar(text(statement))

        groups = connection.execute(
            text("SELECT state, tier, count(*) FROM unlearning_request GROUP BY 1, 2")
        ).all()
        for state, tier, expected in groups:
            assert value("lethe_unlearning_requests", state=state, tier=tier) == expected
        assert sum(v for (name, _), v in found.items() if name == "lethe_unlearning_requests") == (
            3000
        )
        spans = {
            "waiting": "started_at - created_at",
            "running": "finished_at - started_at",
            "total": "finished_at - created_at",
        }
        for stage, span in spans.items():
            for outcome in ("completed", "refused", "failed"):
                of = {"stage": stage, "outcome": outcome, "tier": "exact"}
                where = f"state = '{outcome}' AND tier = 'exact' AND {span} IS NOT NULL"
                total = count("unlearning_request", where)
                if total == 0:
                    continue
                for bound in BUCKETS:
                    expected = count(
                        "unlearning_request", f"{where} AND {span} <= interval '{bound} seconds'"
                    )
                    name = "lethe_unlearning_stage_seconds_bucket"
                    assert value(name, **of, le=repr(bound)) == expected
                assert value("lethe_unlearning_stage_seconds_count", **of) == total
                total_span = f"extract(epoch FROM sum({span}))"
                statement = f"SELECT {total_span} FROM unlearning_request WHERE {where}"  # noqa: S608
                seconds = connection.scalar(text(statement))
                assert value("lethe_unlearning_stage_seconds_sum", **of) == pytest.approx(
                    float(seconds)
                )
        for cause in ("budget-spent", "ill-conditioned"):
            assert value("lethe_unlearning_refusals_total", cause=cause) == count(
                "unlearning_request", f"refusal ->> 'cause' = '{cause}'"
            )
        assert value("lethe_unlearning_failures_total", cause="unexpected-error") == count(
            "unlearning_request", "state = 'failed'"
        )
        for outcome in ("lost", "completed", "released"):
            assert value("lethe_jobs_ended_total", outcome=outcome) == count(
                "unlearning_job", f"outcome = '{outcome}'"
            )
        age = connection.scalar(
            text(
                "SELECT extract(epoch FROM now() - min(created_at)) FROM unlearning_request"
                " WHERE state = 'queued'"
            )
        )
        assert value("lethe_queue_oldest_seconds") == pytest.approx(float(age), abs=30)
    assert value("lethe_jobs_running") == 2
    assert value("lethe_jobs_lease_expired") == 2
    assert value("lethe_artifacts_due") == 5
    assert value("lethe_artifacts_due_seconds") == pytest.approx(4 * 3600, abs=30)
    assert value("lethe_models", state="active") == 3
    assert value("lethe_models", state="retired") == 1
    assert value("lethe_budgets") == 3
    assert value("lethe_budgets_low") == 1
    assert value("lethe_budgets_spent") == 0
    assert value("lethe_budget_left_share_min") == pytest.approx(0.05)
    assert value("lethe_database_up") == 1


def test_no_label_names_a_subject_a_model_or_what_a_client_wrote(metered, fresh_engine):
    with fresh_engine.begin() as connection:
        connection.execute(text(FILL))
    metered.get("/v1/unlearning-requests/Jane?x=Doe")
    metered.get("/no/such/Jane")
    metered("JANE", "/livez")
    page = scrape(metered).text
    for word in ("Jane", "JANE", "Doe", "of-a-client", "secret name", TOKEN):
        assert word not in page
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", page)
    assert not re.search(r"[0-9a-f]{32}", page)


def test_http_requests_are_counted_by_the_routes_template(metered):
    with metered.app.state.services.sessions.begin() as session:
        _, key = auth.create_key(session, name="test", scopes=[Scope.ADMIN])
    for number in range(3):
        one = f"/v1/unlearning-requests/00000000-0000-7000-8000-00000000000{number}"
        assert metered.with_token(key).get(one).status_code == 404
    metered.get("/no/such/page")
    found = samples(scrape(metered))
    route = "/v1/unlearning-requests/{request_id}"
    labels = {"route": route, "method": "GET", "status": "404"}
    assert found["lethe_http_requests_total", frozenset(labels.items())] == 3
    del labels["status"]
    assert found["lethe_http_request_duration_seconds_count", frozenset(labels.items())] == 3
    other = {"route": "other", "method": "GET", "status": "404"}
    assert found["lethe_http_requests_total", frozenset(other.items())] == 1


def test_metrics_answer_only_whoever_has_the_token(metered, fresh_settings, api):
    for wrong in (None, "another-token-of-16", TOKEN[:-1], "ü"):
        headers = {} if wrong is None else {"Authorization": f"Bearer {wrong}".encode()}
        answer = metered.with_token(None).get("/metrics", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert "lethe_" not in answer.text
    app = create_app(fresh_settings)
    answer = scrape(type(api)(app, None))
    assert answer.status_code == 401
    assert "none is set" in answer.json()["detail"]
    app.state.services.close()


def test_a_token_that_could_be_guessed_is_refused_and_an_empty_one_is_none(make_settings):
    with pytest.raises(ValidationError, match="metrics_token"):
        make_settings(database_url=AWAY, metrics_token="short")  # noqa: S106 - refused
    assert make_settings(database_url=AWAY, metrics_token="").metrics_token is None


def test_without_the_database_a_scrape_says_so(make_settings):
    metrics = Metrics(make_settings(database_url=AWAY))
    page = metrics.render().decode()
    assert "lethe_database_up 0.0" in page
    assert "lethe_build_info" in page
    assert "lethe_log_entries" not in page


def test_a_database_that_hangs_does_not_hang_a_scrape(make_settings, tmp_path):
    with PostgresServer(tmp_path / "postgres", EPHEMERAL) as server:
        server.create_database("lethe")
        metrics = Metrics(make_settings(database_url=server.url("lethe")))
        postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGSTOP)
        try:
            started = time.monotonic()
            page = metrics.render().decode()
            assert time.monotonic() - started < 8
        finally:
            os.kill(postmaster, signal.SIGCONT)
        assert "lethe_database_up 0.0" in page


def test_a_log_that_was_changed_is_told(metered, trained, fresh_settings):
    services = metered.app.state.services
    with services.sessions.begin() as session:
        _, key = auth.create_key(session, name="test", scopes=[Scope.ADMIN])
    owner = metered.with_token(key)
    model = owner.register(trained.parts(statistics=trained.statistics_file())).json()["id"]
    services.notary.sign()
    assert owner.post("/v1/unlearning-requests", json=trained.request(model)).status_code == 202
    engine = create_engine(fresh_settings.database_url)
    with engine.begin() as connection:
        size = connection.scalar(text("SELECT size FROM audit_log"))
        signed = connection.scalar(text("SELECT max(size) FROM audit_checkpoint"))
        found = samples(scrape(metered))
        assert found["lethe_log_entries", frozenset()] == size
        assert found["lethe_log_unsigned_entries", frozenset()] == size - signed > 0
        assert found["lethe_log_unsigned_seconds", frozenset()] < 60
        assert found["lethe_log_checkpoint_seconds", frozenset()] < 60
        assert found["lethe_log_consistent", frozenset()] == 1
        connection.execute(text("ALTER TABLE audit_log DISABLE TRIGGER USER"))
        connection.execute(text("UPDATE audit_log SET size = :s - 1"), {"s": signed})
    engine.dispose()
    fresh = Metrics(fresh_settings)
    assert "lethe_log_consistent 0.0" in fresh.render().decode()


def test_the_page_explains_every_metric_and_names_no_other(metered, fresh_engine):
    with fresh_engine.begin() as connection:
        connection.execute(text(FILL))
    names = {
        family.name
        for family in text_string_to_metric_families(scrape(metered).text)
        if family.name.startswith("lethe_") and not family.name.endswith("_created")
    }
    explained = {
        re.sub(r"_(total|bucket|count|sum)$", "", name)
        for name in re.findall(r"\blethe_[a-z_]+", PAGE)
    }
    assert names - explained == set()
    assert explained - names <= {"lethe_log_checkpoint_seconds"}
