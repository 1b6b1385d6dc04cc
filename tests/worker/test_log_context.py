"""Log lines of a job and of the sweeper name the request and who asked for it."""

import pytest
import structlog
from sqlalchemy import text
from structlog.testing import LogCapture

from app.unlearning import repository, service
from worker import leases, log_context
from worker.runner import run_next
from worker.sweeper import sweep


@pytest.fixture
def lines():
    """Every log line with the context that was bound when it was written."""
    capture = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture.entries
    structlog.configure(processors=before)


@pytest.fixture
def asked(shop, make_problem):
    """A request that came with an HTTP request's id: its model's id and its own."""
    problem = make_problem()
    model = shop.register(problem)
    with structlog.contextvars.bound_contextvars(http_request_id="from-the-api"):
        request = shop.request(model, problem, [1])
    return str(model), str(request)


def expect(line, asked):
    model, request = asked
    assert line["model_id"] == model
    assert line["request_id"] == request
    assert line["http_request_id"] == "from-the-api"
    assert line["job_id"]


def test_lines_of_a_job_name_it_and_the_next_ones_do_not(services, asked, lines):
    assert run_next(services)
    (line,) = [one for one in lines if one["event"] == "job.finished"]
    expect(line, asked)
    assert structlog.contextvars.get_contextvars() == {}


def test_the_heartbeats_thread_names_it_too(services, asked, lines, monkeypatch):
    with services.sessions.begin() as session:
        job = service.claim(session, worker="w", lease_seconds=30, max_attempts=3)
    monkeypatch.setattr(leases, "BEATS_A_LEASE", 3000)
    with services.engine.begin() as connection:
        connection.execute(text("ALTER TABLE unlearning_job RENAME TO elsewhere"))
    with log_context.of_request(_request_of(services, job), job.id):
        heartbeat = leases.Heartbeat(services, job.id)
        heartbeat._thread.start()
        while not [one for one in lines if one["event"] == "lease.not_renewed"]:
            heartbeat._thread.join(0.05)
        heartbeat._done.set()
        heartbeat._news.set()
        heartbeat._thread.join()
    expect(next(one for one in lines if one["event"] == "lease.not_renewed"), asked)


def _request_of(services, job):
    with services.sessions.begin() as session:
        return repository.lock_request_of(session, job)


def test_the_sweepers_lines_name_it(make_services, asked, lines):
    services = make_services(lease_seconds=0.01)
    with services.sessions.begin() as session:
        service.claim(session, worker="w", lease_seconds=0.01, max_attempts=3)
    while not [one for one in lines if one["event"] == "request.lost_its_worker"]:
        sweep(services)
    expect(next(one for one in lines if one["event"] == "request.lost_its_worker"), asked)
