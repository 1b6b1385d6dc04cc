"""The queue, on committed rows and concurrent sessions: nothing lost, doubled or out of order."""

import random
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts.keys import MasterKey
from app.artifacts.models import Artifact
from app.artifacts.store import ArtifactStore
from app.db import make_sessions
from app.errors import LeaseLostError, RequestNotCancellableError
from app.evidence.models import AuditEntry
from app.jobs import JobQueue
from app.registry import service as registry
from app.registry.repository import lock_model
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.settings import Settings
from app.unlearning import repository, service
from app.unlearning.models import RequestState, UnlearningJob, UnlearningRequest
from app.unlearning.schemas import UnlearningIn

WAIT = 20  # seconds that a thread or a lock may take


@dataclass
class World:
    """A database of this test alone, and what fills it."""

    sessions: sessionmaker[Session]
    settings: Settings
    store: ArtifactStore
    keys: MasterKey
    queue: JobQueue
    trained: object

    def register(self) -> uuid.UUID:
        with self.sessions.begin() as session:
            return registry.register(
                session,
                self.store,
                self.keys,
                self.settings,
                manifest=Manifest.model_validate(self.trained.manifest()),
                weights=self.trained.weights_file(),
                statistics=None,
                holdout=None,
                actor="test",
            ).id

    def create(self, session: Session, model_id: uuid.UUID) -> UnlearningRequest:
        return service.create(
            session,
            self.store,
            self.keys,
            self.queue,
            self.settings,
            wanted=UnlearningIn(model_id=model_id),
            forget=Samples(self.trained.x[:1], self.trained.y[:1]),
            actor="test",
        )

    def enqueue(self, model_id: uuid.UUID) -> uuid.UUID:
        with self.sessions.begin() as session:
            return self.create(session, model_id).id

    def claim(self, lease_seconds: float = 60, worker: str = "w") -> UnlearningJob | None:
        with self.sessions.begin() as session:
            return service.claim(
                session, worker=worker, lease_seconds=lease_seconds, max_attempts=3
            )

    def complete(self, job: UnlearningJob, digests: tuple[bytes, ...] = ()) -> None:
        with self.sessions.begin() as session:
            held = service.hold(session, job.id)
            service.complete(
                session, self.store, held, result={}, resulting_revision=1, digests=digests
            )

    def requeue_lost(self) -> list[UnlearningRequest]:
        """Sweep, and return what was taken back or ended."""
        returned = {}
        with self.sessions.begin() as session:
            for job_id in service.lost_jobs(session):
                request = service.requeue_lost(session, job_id)
                if request is not None:
                    returned[request.id] = request
        with self.sessions.begin() as session:
            for request_id in service.exhausted_requests(session, max_attempts=3):
                request = service.fail_exhausted(session, self.store, request_id, max_attempts=3)
                if request is not None:
                    returned[request.id] = request
        return list(returned.values())

    def request(self, request_id: uuid.UUID) -> UnlearningRequest:
        with self.sessions() as session:
            return session.get_one(UnlearningRequest, request_id)

    def request_of(self, job: UnlearningJob) -> UnlearningRequest:
        with self.sessions() as session:
            return service.request_of(session, job)

    def events(self) -> list[str]:
        with self.sessions() as session:
            bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
            return [body.split(b'"event":"')[1].split(b'"')[0].decode() for body in bodies]


@pytest.fixture
def world(fresh_engine, fresh_settings, trained):
    with fresh_engine.begin() as connection:
        # A wait in a circle fails the test instead of stopping the run.
        name = connection.engine.url.database
        connection.execute(text(f"ALTER DATABASE \"{name}\" SET lock_timeout = '{WAIT}s'"))
    fresh_engine.dispose()
    keys = MasterKey.load(fresh_settings.master_key_file)
    queue = JobQueue(fresh_settings.redis_url)
    yield World(
        make_sessions(fresh_engine),
        fresh_settings,
        ArtifactStore(fresh_settings.artifacts_url, keys),
        keys,
        queue,
        trained,
    )
    queue.close()


def test_many_workers_run_every_request_once_in_order_and_one_a_model_at_a_time(world):
    models = [world.register() for _ in range(3)]
    arrived = defaultdict(list)
    for _ in range(5):
        for model in models:
            arrived[model].append(world.enqueue(model))
    guard, running, begun = threading.Lock(), set(), defaultdict(list)
    overlaps = []

    def work(seed: int) -> None:
        pause = random.Random(seed)
        deadline = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            job = world.claim(worker=f"w{seed}")
            if job is None:
                with world.sessions() as session:
                    left = session.scalars(
                        select(UnlearningRequest.id).where(UnlearningRequest.finished_at.is_(None))
                    ).first()
                if left is None:
                    return
                time.sleep(0.005)
                continue
            with guard:
                overlaps.extend({job.model_id} & running)
                running.add(job.model_id)
                begun[job.model_id].append(world.request_of(job).id)
            time.sleep(pause.uniform(0, 0.02))
            with guard:
                # Before the row says so: from the commit on another worker may begin.
                running.remove(job.model_id)
            world.complete(job)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result(timeout=2 * WAIT)

    assert overlaps == []
    assert begun == arrived
    with world.sessions() as session:
        rows = session.scalars(select(UnlearningRequest)).all()
    assert {(row.state, row.attempts) for row in rows} == {(RequestState.COMPLETED, 1)}
    assert world.events().count("unlearning-request.completed") == 15


def test_of_workers_that_claim_at_once_one_gets_the_request(world):
    model = world.register()
    for _ in range(5):
        world.enqueue(model)
        barrier = threading.Barrier(6)

        def race(barrier: threading.Barrier = barrier) -> UnlearningJob | None:
            barrier.wait(WAIT)
            return world.claim()

        with ThreadPoolExecutor(6) as pool:
            jobs = [done.result(WAIT) for done in [pool.submit(race) for _ in range(6)]]
        (job,) = [job for job in jobs if job is not None]
        world.complete(job)


def test_a_worker_that_meets_a_job_in_the_making_waits_and_looks_past_its_model(world):
    busy, idle = world.register(), world.register()
    first, other = world.enqueue(busy), world.enqueue(idle)
    with world.sessions() as session, ThreadPoolExecutor(1) as pool:
        # A job of another worker, not committed yet: only the partial unique index sees it.
        repository.insert_job(session, model_id=busy, worker="v", lease_seconds=60)
        claimed = pool.submit(world.claim)
        with pytest.raises(TimeoutError):
            claimed.result(0.3)
        session.commit()
        job = claimed.result(WAIT)
    assert job.model_id == idle
    assert world.request_of(job).id == other
    assert world.request(first).state == RequestState.QUEUED


def test_the_database_itself_refuses_a_second_running_job(world):
    model = world.register()
    with world.sessions.begin() as session:
        assert repository.insert_job(session, model_id=model, worker="a", lease_seconds=60)
        assert repository.insert_job(session, model_id=model, worker="b", lease_seconds=60) is None


def test_the_oldest_request_of_any_idle_model_comes_first(world):
    busy, idle = world.register(), world.register()
    first, _, third = world.enqueue(busy), world.enqueue(busy), world.enqueue(idle)
    assert world.request_of(world.claim()).id == first
    assert world.request_of(world.claim()).id == third
    assert world.claim() is None


def test_requests_of_a_model_arrive_in_the_order_of_their_commits(world):
    model = world.register()
    with world.sessions() as session, ThreadPoolExecutor(1) as pool:
        # One that is being made, before it has its number: a later one must not overtake it.
        lock_model(session, model)
        second = pool.submit(world.enqueue, model)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        first = world.create(session, model)
        session.commit()
        assert world.request(second.result(WAIT)).arrival > world.request(first.id).arrival


def test_a_model_whose_request_waits_is_named_until_somebody_works_on_it(world):
    first, second = world.register(), world.register()
    world.enqueue(first)
    world.enqueue(second)
    world.enqueue(first)
    with world.sessions() as session:
        assert service.queued_models(session) == [first, second]
    job = world.claim()
    with world.sessions() as session:
        assert service.queued_models(session) == [second]
    world.complete(job)
    with world.sessions() as session:
        assert service.queued_models(session) == [second, first]


def test_a_claim_that_is_rolled_back_never_happened(world):
    request = world.enqueue(world.register())
    with world.sessions() as session:
        assert service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
        session.rollback()
    assert (world.request(request).state, world.request(request).attempts) == ("queued", 0)
    assert world.request_of(world.claim()).id == request


WRITES = {
    "hold": lambda session, _, job: service.hold(session, job.id),
    "complete": lambda session, world, job: service.complete(
        session, world.store, job, result={}, resulting_revision=1, digests=[b"x"]
    ),
    "refuse": lambda session, world, job: service.refuse(
        session, world.store, job, refusal={"cause": "ill-conditioned"}
    ),
    "fail": lambda session, world, job: service.fail(
        session, world.store, job, failure={"cause": "bug"}
    ),
    "release": lambda session, _, job: service.release(session, job),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("fate", ["expired", "requeued", "taken over", "finished"])
def test_a_worker_that_lost_its_lease_can_write_nothing(world, write, fate):
    request = world.enqueue(world.register())
    job = world.claim(lease_seconds=60 if fate == "finished" else 0)
    if fate in {"requeued", "taken over"}:
        world.requeue_lost()
    if fate == "taken over":
        assert world.claim().id != job.id
    if fate == "finished":
        world.complete(job)
    before = (world.request(request).state, world.request(request).job_id, world.events())
    with world.sessions() as session:
        with pytest.raises(LeaseLostError):
            write(session, world, job)
        session.commit()  # Even if the caller went on.
        assert service.renew(session, job.id, lease_seconds=60, progress={"stage": "x"}) is False
        session.commit()
    assert (world.request(request).state, world.request(request).job_id, world.events()) == before


def test_only_the_worker_that_took_over_writes_the_result(world):
    request = world.enqueue(world.register())
    late = world.claim(lease_seconds=0)
    world.requeue_lost()
    now = world.claim(worker="second")
    with pytest.raises(LeaseLostError):
        world.complete(late)
    world.complete(now)
    row = world.request(request)
    assert (row.state, row.job_id, row.attempts) == (RequestState.COMPLETED, now.id, 2)


def test_a_lost_request_returns_to_its_place_and_fails_after_the_third_loss(world):
    model = world.register()
    first, second = world.enqueue(model), world.enqueue(model)
    for attempt in (1, 2):
        assert world.request_of(world.claim(lease_seconds=0)).id == first
        assert world.request(first).attempts == attempt
        (returned,) = world.requeue_lost()
        assert (returned.id, returned.state) == (first, RequestState.QUEUED)
    assert world.request_of(world.claim(lease_seconds=0)).id == first
    (returned,) = world.requeue_lost()
    assert (returned.id, returned.state) == (first, RequestState.FAILED)
    row = world.request(first)
    assert row.failure["cause"] == "attempts-exhausted"
    assert row.wrapped_commitment_key is None
    with world.sessions() as session:
        assert session.get_one(Artifact, row.samples_artifact_id).wrapped_key is None
    # The queue goes on with the next one.
    assert world.request_of(world.claim()).id == second
    assert world.events()[-4:] == [
        "unlearning-request.requeued",
        "artifact.keys-destroyed",
        "unlearning-request.failed",
        "unlearning-request.started",
    ]


def test_a_released_request_keeps_its_place_its_samples_and_its_attempts(world):
    model = world.register()
    first, _ = world.enqueue(model), world.enqueue(model)
    job = world.claim()
    with world.sessions.begin() as session:
        service.release(session, job)
    row = world.request(first)
    assert (row.state, row.attempts, row.job_id) == (RequestState.QUEUED, 1, None)
    again = world.claim()
    assert world.request_of(again).id == first
    with world.sessions() as session:
        assert len(service.load_samples(session, world.store, row)) == 1


def test_a_held_lease_is_left_alone(world):
    world.enqueue(world.register())
    job = world.claim(lease_seconds=60)
    assert world.requeue_lost() == []
    world.complete(job)


def test_a_worker_in_its_closing_transaction_is_neither_robbed_nor_waited_for(world):
    request = world.enqueue(world.register())
    job = world.claim(lease_seconds=0.2)
    with world.sessions() as session:
        held = service.hold(session, job.id)
        time.sleep(0.3)  # The lease runs out while the result is being written.
        assert world.requeue_lost() == []
        service.complete(session, world.store, held, result={}, resulting_revision=1, digests=[])
        session.commit()
    assert world.request(request).state == RequestState.COMPLETED


def test_holding_in_one_transaction_says_nothing_about_the_next(world):
    world.enqueue(world.register())
    job = world.claim(lease_seconds=0.2)
    with world.sessions() as session:
        service.hold(session, job.id)
        session.rollback()
        time.sleep(0.3)
        with pytest.raises(LeaseLostError):
            service.hold(session, job.id)


def test_renewing_keeps_the_lease_and_shows_the_progress(world):
    request = world.enqueue(world.register())
    job = world.claim(lease_seconds=0.3)
    progress = {"stage": "step", "fraction": 0.5}
    with world.sessions.begin() as session:
        assert service.renew(session, job.id, lease_seconds=60, progress=progress)
    time.sleep(0.35)  # The first lease would have run out.
    assert world.requeue_lost() == []
    assert world.request(request).progress == progress
    with world.sessions.begin() as session:
        assert service.renew(session, job.id, lease_seconds=60, progress=None)
    assert world.request(request).progress == progress
    world.complete(job)


def test_cancelling_waits_for_a_claim_that_is_being_made_and_comes_too_late(world):
    request = world.enqueue(world.register())

    def cancel() -> None:
        with world.sessions.begin() as session:
            service.cancel(session, world.store, request, actor="test")

    with world.sessions() as session, ThreadPoolExecutor(1) as pool:
        service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
        cancelled = pool.submit(cancel)
        with pytest.raises(TimeoutError):
            cancelled.result(0.3)
        session.commit()
        with pytest.raises(RequestNotCancellableError):
            cancelled.result(WAIT)
    assert world.request(request).state == RequestState.RUNNING


def test_a_request_that_is_being_cancelled_is_not_claimed(world):
    request = world.enqueue(world.register())
    with world.sessions() as session:
        service.cancel(session, world.store, request, actor="test")
        assert world.claim() is None
        session.commit()
    assert world.claim() is None
    assert world.request(request).state == RequestState.CANCELLED


def test_a_completed_request_remembers_what_it_forgot_and_destroys_the_samples(world):
    model_id = world.register()
    request = world.enqueue(model_id)
    world.complete(world.claim(), digests=(b"one", b"two"))
    with world.sessions() as session:
        model = registry.get(session, model_id)
        known = service.already_forgotten(session, model, [b"two", b"three"])
        row = session.get_one(UnlearningRequest, request)
        artifact = session.get_one(Artifact, row.samples_artifact_id)
    assert known == {b"two"}
    assert artifact.wrapped_key is None
    assert row.wrapped_commitment_key is None
    assert row.started_at is not None
    assert row.created_at <= row.started_at <= row.finished_at


def test_refusals_and_failures_keep_their_words(world):
    model = world.register()
    refused, failed = world.enqueue(model), world.enqueue(model)
    refusal = {"cause": "estimate-unreliable", "detail": "d", "remedy": "r", "gates": []}
    job = world.claim()
    with world.sessions.begin() as session:
        service.refuse(session, world.store, job, refusal=refusal)
    job = world.claim()
    with world.sessions.begin() as session:
        service.fail(session, world.store, job, failure={"cause": "solver", "detail": "d"})
    assert (world.request(refused).state, world.request(refused).refusal) == ("refused", refusal)
    assert world.request(failed).failure == {"cause": "solver", "detail": "d"}
    assert world.request(refused).resulting_revision is None


def test_a_request_without_attempts_left_does_not_block_its_model(world):
    model = world.register()
    first, second = world.enqueue(model), world.enqueue(model)
    with world.sessions.begin() as session:
        # As after an operator lowered MAX_ATTEMPTS.
        session.get_one(UnlearningRequest, first).attempts = 3
    assert world.claim() is None
    assert [row.id for row in world.requeue_lost()] == [first]
    assert world.request_of(world.claim()).id == second
