import json
import os
import time

import pytest

from app.artifacts.models import ArtifactKind
from app.evidence import service as evidence
from app.evidence.models import RecordKind
from app.unlearning.models import UnlearningJob
from worker import sweeper
from worker.runner import run_next
from worker.sweeper import Sweeper, clean, sweep


def wait_until(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def expire(services):
    with services.sessions.begin() as session:
        session.query(UnlearningJob).update({"lease_expires_at": UnlearningJob.created_at})


@pytest.fixture
def request_id(shop, make_problem):
    problem = make_problem()
    made = shop.request(shop.register(problem), problem, [1])
    shop.silence()
    return made


def test_a_waiting_request_is_rung_for(services, shop, request_id):
    sweep(services)
    assert shop.rings() == 1
    run_next(services)
    shop.silence()
    sweep(services)
    assert shop.rings() == 0
    assert shop.find(request_id).state == "completed"


def test_a_request_that_is_being_worked_on_is_left_alone(services, shop, request_id):
    shop.claim()
    sweep(services)
    assert shop.rings() == 0
    assert shop.find(request_id).state == "running"


def test_what_a_silent_worker_left_waits_again_and_is_rung_for(services, shop, request_id):
    shop.claim()
    expire(services)
    sweep(services)
    request = shop.find(request_id)
    assert (request.state, request.attempts) == ("queued", 1)
    assert shop.rings() == 1
    run_next(services)
    assert shop.find(request_id).state == "completed"


def test_a_request_that_broke_every_worker_fails_with_a_signed_record(services, shop, request_id):
    for _ in range(services.settings.max_attempts):
        assert shop.claim() is not None
        expire(services)
        sweep(services)
    request = shop.find(request_id)
    assert request.state == "failed"
    assert request.failure["cause"] == "attempts-exhausted"
    with services.sessions() as session:
        record = evidence.find_record(session, request_id)
        assert record.kind == RecordKind.FAILURE
        assert evidence.verify_log(session).ok
    # Sweeping on neither fails nor signs again.
    sweep(services)
    assert json.dumps(shop.find(request_id).failure) == json.dumps(request.failure)


def test_the_sweeper_goes_on_after_a_sweep_that_failed(make_services, monkeypatch):
    services = make_services(sweep_seconds=0.01)
    sweeps = []

    def flaky(_services):
        sweeps.append(1)
        if len(sweeps) == 1:
            raise ConnectionError("database away")

    monkeypatch.setattr(sweeper, "sweep", flaky)
    thread = Sweeper(services)
    thread.start()
    wait_until(lambda: len(sweeps) > 2)
    thread.stop()
    stopped_at = len(sweeps)
    time.sleep(0.05)
    assert len(sweeps) == stopped_at


def test_blobs_without_a_key_are_cleaned_up(services, tmp_path):
    with services.sessions() as session:
        artifact = services.store.put(session, ArtifactKind.WEIGHTS, b"never committed")
        blob = tmp_path / "artifacts" / artifact.location
        session.rollback()
    clean(services)
    assert blob.exists()  # for all that is known, its transaction is still open
    os.utime(blob, (0, 0))
    clean(services)
    assert not blob.exists()
