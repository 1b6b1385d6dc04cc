import threading
import time

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from app.errors import LeaseLostError
from app.unlearning import service
from app.unlearning.models import UnlearningJob
from worker import leases
from worker.leases import Heartbeat


def wait_until(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def job(shop, make_problem):
    problem = make_problem()
    shop.request(shop.register(problem), problem, [1])
    return shop.claim()


@pytest.fixture
def short_lived(make_shop, make_problem):
    """Services with leases of one second, and a job under such a lease."""
    shop, problem = make_shop(lease_seconds=1.0), make_problem()
    shop.request(shop.register(problem), problem, [1])
    return shop.services, shop.claim()


def lease_end(services, job):
    with services.sessions() as session:
        return session.get(UnlearningJob, job.id).lease_expires_at


def test_the_heartbeat_keeps_a_lease_beyond_its_length(short_lived):
    services, job = short_lived
    first = lease_end(services, job)
    with Heartbeat(services, job.id):
        wait_until(lambda: (lease_end(services, job) - first).total_seconds() > 1.5)
    with services.sessions.begin() as session:
        assert service.hold(session, job.id).id == job.id


def test_without_a_heartbeat_the_lease_ends(short_lived):
    services, job = short_lived
    with services.sessions() as session:
        session.execute(text("SELECT pg_sleep(1.1)"))
        with pytest.raises(LeaseLostError):
            service.hold(session, job.id)


def test_progress_reaches_the_request_while_the_job_runs(services, shop, job):
    with services.sessions() as session:
        request_id = service.request_of(session, job).id
    with Heartbeat(services, job.id) as heartbeat:
        heartbeat.report("estimate", 0.25)
        wait_until(
            lambda: shop.find(request_id).progress == {"stage": "estimate", "fraction": 0.25}
        )


def test_the_lease_is_fresh_at_the_end(services, job):
    with Heartbeat(services, job.id):
        before = lease_end(services, job)
    assert lease_end(services, job) > before


def end_lease(services, job):
    with services.sessions.begin() as session:
        session.get(UnlearningJob, job.id).lease_expires_at = job.created_at


def compute_for_ever(services, job):
    with Heartbeat(services, job.id) as heartbeat:
        end_lease(services, job)
        wait_until(lambda: heartbeat.report("estimate", 0.5))


def test_a_lost_lease_cancels_the_computation(services, job):
    with pytest.raises(LeaseLostError, match="ran out, or was taken"):
        compute_for_ever(services, job)


def test_a_lease_lost_at_the_last_moment_is_noticed_too(services, job):
    with pytest.raises(LeaseLostError), Heartbeat(services, job.id):
        end_lease(services, job)


def test_the_computations_own_error_is_not_covered_up(services, job):
    with pytest.raises(ZeroDivisionError), Heartbeat(services, job.id):
        raise ZeroDivisionError


def test_no_thread_is_left_behind(services, job):
    before = set(threading.enumerate())
    with Heartbeat(services, job.id):
        assert set(threading.enumerate()) - before
    assert set(threading.enumerate()) == before


def test_a_database_that_is_away_for_a_moment_costs_no_lease(short_lived, monkeypatch):
    services, job = short_lived
    away = OperationalError("UPDATE", {}, ConnectionError("gone"))
    calls = []
    renew = service.renew

    def flaky(*arguments, **options):
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise away
        return renew(*arguments, **options)

    monkeypatch.setattr(service, "renew", flaky)
    with Heartbeat(services, job.id) as heartbeat:
        wait_until(lambda: len(calls) > 2)
        heartbeat.report("step", 0.6)


def test_a_database_that_is_away_at_the_very_end_costs_no_lease(services, job, monkeypatch):
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)
    renew, calls = service.renew, []

    def flaky(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise OperationalError("UPDATE", {}, ConnectionError("restarting"))
        return renew(*arguments, **options)

    with Heartbeat(services, job.id):
        monkeypatch.setattr(service, "renew", flaky)
    assert len(calls) == 2


def test_an_unexpected_error_does_not_stop_the_heart(short_lived, monkeypatch):
    services, job = short_lived
    renew, calls = service.renew, []

    def flaky(*arguments, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("whatever")
        return renew(*arguments, **options)

    monkeypatch.setattr(service, "renew", flaky)
    with Heartbeat(services, job.id):
        wait_until(lambda: len(calls) > 2)


def test_a_database_that_stays_away_costs_the_lease(short_lived, monkeypatch):
    services, job = short_lived

    def away(*_arguments, **_options):
        raise OperationalError("UPDATE", {}, ConnectionError("gone"))

    monkeypatch.setattr(service, "renew", away)
    with pytest.raises(LeaseLostError), Heartbeat(services, job.id) as heartbeat:
        wait_until(lambda: heartbeat.report("step", 0.6))
