import json
import os
import time

import pytest
from sqlalchemy.exc import OperationalError

from app.artifacts import store
from app.artifacts.models import Artifact, ArtifactKind
from app.errors import RecordNotFoundError
from app.evidence import service as evidence
from app.evidence.auditing import verify_log
from app.evidence.models import RecordKind
from app.unlearning import service
from app.unlearning.models import UnlearningJob, UnlearningRequest
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
        assert verify_log(session).ok
    # Sweeping on neither fails nor signs again.
    sweep(services)
    assert json.dumps(shop.find(request_id).failure) == json.dumps(request.failure)


@pytest.fixture
def several(shop, make_problem):
    """Three requests of three models, each claimed by a worker that then fell silent."""
    problem = make_problem()
    requests = [shop.request(shop.register(problem), problem, [1]) for _ in range(3)]
    for _ in requests:
        assert shop.claim() is not None
    expire(shop.services)
    return requests


def test_one_lost_request_that_cannot_be_taken_back_does_not_hold_up_the_others(
    services, shop, several, monkeypatch
):
    requeue = service.requeue_lost
    poison = shop.find(several[0]).job_id

    def stumble(session, job_id):
        request = requeue(session, job_id)
        if job_id == poison:
            raise ValueError("poison")
        return request

    with monkeypatch.context() as broken:
        broken.setattr(service, "requeue_lost", stumble)
        sweep(services)
    assert [shop.find(request).state for request in several] == ["running", "queued", "queued"]
    sweep(services)
    assert shop.find(several[0]).state == "queued"


def test_a_request_that_no_record_can_be_made_about_blocks_neither_its_model_nor_the_sweeper(
    services, shop, make_problem, several
):
    problem, poison = make_problem(), shop.find(several[0])
    behind = shop.request(poison.model_id, problem, [2])
    with services.sessions.begin() as session:
        for request_id in several[:2]:
            session.get(UnlearningRequest, request_id).attempts = services.settings.max_attempts
        session.get(UnlearningRequest, poison.id).options = {"seed": "none that can be read"}
    sweep(services)
    states = [shop.find(request).state for request in several]
    assert states == ["failed", "failed", "queued"]
    with services.sessions() as session:
        assert evidence.find_record(session, several[1])
        with pytest.raises(RecordNotFoundError):
            evidence.find_record(session, poison.id)
        # The attempts that this test wrote into the rows are all that contradicts the log.
        found = {finding.sentence for finding in verify_log(session).findings}
        assert found == {"Its attempts is 3, and by the log it is 1."}
    while run_next(services):
        pass
    assert shop.find(behind).state == "completed"


@pytest.mark.usefixtures("request_id")
def test_sweeps_do_not_pile_up_messages_while_every_worker_is_busy(services, shop):
    for _ in range(3):
        sweep(services)
    assert shop.rings() == 1


@pytest.mark.parametrize(
    "error", [OperationalError("SELECT", {}, ConnectionError("away")), RuntimeError("else")]
)
def test_the_sweeper_goes_on_after_a_sweep_that_failed(make_services, monkeypatch, error):
    services = make_services(sweep_seconds=0.01)
    sweeps = []

    def flaky(_services):
        sweeps.append(1)
        if len(sweeps) == 1:
            raise error

    monkeypatch.setattr(sweeper, "sweep", flaky)
    thread = Sweeper(services)
    thread.start()
    wait_until(lambda: len(sweeps) > 2)
    thread.stop()
    stopped_at = len(sweeps)
    time.sleep(0.05)
    assert len(sweeps) == stopped_at


@pytest.mark.parametrize("failing", ["sweep", "clean"])
def test_what_stands_against_one_task_keeps_no_other_from_its_turn(services, monkeypatch, failing):
    turns = dict.fromkeys(("sweep", "clean", "anchor"), 0)

    def counted(name):
        def act(*_):
            turns[name] += 1
            if name == failing:
                raise ConnectionError("the broker, or the bucket of artifacts")

        return act

    monkeypatch.setattr(sweeper, "sweep", counted("sweep"))
    monkeypatch.setattr(sweeper, "clean", counted("clean"))
    monkeypatch.setattr(sweeper.Anchoring, "turn", counted("anchor"))
    thread = Sweeper(services)
    thread.start()
    wait_until(lambda: turns["sweep"] > 2)
    thread.stop()
    assert all(turns.values()), turns


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


def test_what_was_kept_for_a_time_is_shredded_after_it_and_the_log_says_so(
    make_shop, make_problem, monkeypatch
):
    shop, problem = make_shop(replay_days=3), make_problem()
    monkeypatch.setattr(store, "DUE_BATCH", 2)
    monkeypatch.setattr(sweeper, "DUE_BATCH", 2)
    request = shop.request(shop.register(problem), problem, [1])
    run_next(shop.services)
    clean(shop.services)
    with shop.services.sessions.begin() as session:
        kept = session.query(Artifact).filter(Artifact.retain_until.is_not(None))
        assert {artifact.kind for artifact in kept} == {"weights", "statistics", "forget_samples"}
        assert all(artifact.wrapped_key is not None for artifact in kept)
        kept.update({"retain_until": Artifact.created_at})
    clean(shop.services)
    with shop.services.sessions() as session:
        assert all(artifact.wrapped_key is None for artifact in kept.with_session(session))
    ended, *later = shop.log("artifact.keys-destroyed")
    assert ended["subject"]["request_id"] == str(request)
    assert len(ended["payload"]["retained"]) == 3
    assert {entry["payload"]["reason"] for entry in later} == {"retention-ended"}
    assert [len(entry["payload"]["artifacts"]) for entry in later] == [2, 1]
