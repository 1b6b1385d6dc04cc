"""Spans of jobs: part of their requests' traces, a stage each, without anybody's data."""

import itertools

import pytest
import torch
from sqlalchemy import select, update

from app.services import Services
from app.unlearning.models import UnlearningRequest
from tests.reference.collector import collecting
from worker import loading, runner, tracing
from worker.runner import run_next

TRACE, OTHER = "0af7651916cd43dd8448eb211c80319c", "1af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
STAGES = ["load", "estimate", "step", "bound", "evaluate", "commit"]


@pytest.fixture
def traced(services, collector):
    """The same worker, with its spans sent to the collector."""
    settings = services.settings.model_copy(update={"otel_exporter_otlp_endpoint": collector.url})
    traced = Services.from_settings(settings, traced_as="lethe-worker")
    yield traced
    traced.close()


def ask(shop, make_problem, *rows, trace_parent=PARENT):
    """Ask for a deletion that came with a trace, and return model and request."""
    problem = make_problem()
    model = shop.register(problem)
    for row in rows:
        request = shop.request(model, problem, [row])
        with shop.services.sessions.begin() as session:
            session.execute(
                update(UnlearningRequest)
                .where(UnlearningRequest.id == request)
                .values(trace_parent=trace_parent)
            )
    return model, request


def test_a_job_is_a_span_of_its_requests_trace_with_its_stages_below(
    traced, collector, shop, make_problem
):
    model, request = ask(shop, make_problem, 1)
    assert run_next(traced)
    traced.tracing.provider.force_flush()
    (job,) = collector.named("unlearning.job")
    assert (job["trace"], job["parent"], job["service"]) == (TRACE, SPAN, "lethe-worker")
    attributes = job["attributes"]
    assert attributes.pop("lethe.job_id")
    assert attributes == {
        "lethe.model_id": str(model),
        "lethe.requests": 1,
        "lethe.method": "stored",
        "lethe.tier": "exact",
        "lethe.attempt": 1,
        "lethe.outcome": "unlearned",
    }
    stages = collector.named(*(f"unlearning.{name}" for name in STAGES))
    assert [span["name"] for span in stages] == [f"unlearning.{name}" for name in STAGES]
    for span in stages:
        assert (span["trace"], span["parent"]) == (TRACE, job["id"])
        assert job["start"] <= span["start"] <= span["end"] <= job["end"]
    for before, after in itertools.pairwise(stages):
        assert before["end"] <= after["start"]
    assert len(collector.spans) == len(STAGES) + 1
    assert str(request).encode() not in b"".join(collector.bodies)


def test_a_job_of_several_requests_is_linked_to_the_traces_of_all(
    traced, collector, shop, make_problem
):
    ask(shop, make_problem, 1, 2, 3)
    job = shop.claim()
    with traced.sessions.begin() as session:
        second, third = session.scalars(
            select(UnlearningRequest)
            .where(UnlearningRequest.job_id.is_(None))
            .order_by(UnlearningRequest.arrival)
        )
        second.job_id = third.job_id = job.id
        second.trace_parent, third.trace_parent = PARENT.replace(TRACE, OTHER), None
    with tracing.of_job(traced, job):
        pass
    traced.tracing.provider.force_flush()
    (span,) = collector.spans
    assert (span["trace"], span["links"]) == (TRACE, [OTHER])
    assert span["attributes"]["lethe.requests"] == 3


def test_a_request_without_a_trace_begins_one(traced, collector, shop, make_problem):
    ask(shop, make_problem, 1, trace_parent=None)
    assert run_next(traced)
    traced.tracing.provider.force_flush()
    (job,) = collector.named("unlearning.job")
    assert job["parent"] == ""


def test_what_was_not_sampled_at_the_api_is_not_sampled_here(traced, collector, shop, make_problem):
    ask(shop, make_problem, 1, trace_parent=PARENT[:-2] + "00")
    assert run_next(traced)
    traced.tracing.provider.force_flush()
    assert collector.spans == []


def test_an_error_is_told_by_its_type_alone(traced, collector, shop, make_problem, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError("row [0.123456789] of Jane Doe")

    monkeypatch.setattr(loading.Computation, "run", fail)
    ask(shop, make_problem, 1)
    assert not run_next(traced)
    traced.tracing.provider.force_flush()
    (job,) = collector.named("unlearning.job")
    assert job["failed"]
    assert job["attributes"]["error.type"] == "ArithmeticError"
    assert (job["message"], job["events"]) == ("", [])
    told = b"".join(collector.bodies)
    assert b"Jane" not in told
    assert b"0.12345" not in told


def test_a_commit_that_fails_is_seen_where_it_failed(
    traced, collector, shop, make_problem, monkeypatch
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(runner, "_complete", fail)
    ask(shop, make_problem, 1)
    run_next(traced)
    traced.tracing.provider.force_flush()
    (commit,) = collector.named("unlearning.commit")
    assert commit["failed"]
    assert all(not span["failed"] for span in collector.named("unlearning.load"))


def test_tracing_changes_no_number(traced, services, shop, make_problem):
    problem = make_problem()
    models = [shop.register(problem) for _ in range(2)]
    for model, worker in zip(models, (services, traced), strict=True):
        shop.request(model, problem, [3])
        assert run_next(worker)
    one, other = (torch.from_numpy(shop.weights(model)) for model in models)
    assert torch.equal(one, other)


def test_a_collector_that_is_away_stops_no_job(services, shop, make_problem):
    with collecting() as gone:
        url = gone.url
    settings = services.settings.model_copy(update={"otel_exporter_otlp_endpoint": url})
    blind = Services.from_settings(settings, traced_as="lethe-worker")
    _, request = ask(shop, make_problem, 1)
    assert run_next(blind)
    assert shop.find(request).state == "completed"
    blind.close()
