"""Unlearning requests: asking, reading, cancelling, and the queue that workers take them from.

The request table is the queue (DESIGN). A worker owns a request through a job: a lease whose id is
the fencing token. Every write of a worker checks it, so that one which was given up for dead and
comes back can change nothing.

Functions flush; whoever opened the session commits.
"""

import datetime
import os
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.artifacts.keys import KEY_BYTES, MasterKey
from app.artifacts.models import Artifact, ArtifactKind
from app.artifacts.store import ArtifactStore, Shredding
from app.db import new_id
from app.errors import (
    InvalidInputError,
    LeaseLostError,
    ModelNotActiveError,
    RequestNotCancellableError,
    RequestNotFoundError,
)
from app.evidence import service as evidence
from app.evidence._fields import write_time
from app.jobs import JobQueue
from app.logging import current_request_id
from app.registry import policy, samples
from app.registry import repository as registry_repository
from app.registry import service as registry
from app.registry.models import Model, ModelState, Revision
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.settings import Settings
from app.tracing import current_trace_parent
from app.unlearning import deadline_periods, repository
from app.unlearning import digests as keyed_digests
from app.unlearning.deadline_models import CheckOutcome
from app.unlearning.models import (
    WAITING_STATES,
    RequestState,
    UnlearningJob,
    UnlearningRequest,
)
from app.unlearning.schemas import UnlearningIn
from app.webhooks import outbox
from app.webhooks.models import WebhookEvent
from core.options import PerturbationOptions, sdp_floats
from core.vocabulary import Method, tier_of

# cvxpy builds the program of `paper-sdp` as one matrix of m·d² floats: 512 MiB at most.
MAX_SDP_ENTRIES = 2**26
# Our own solver multiplies by them some hundred times instead: about 20 minutes on two cores.
MAX_FIRST_ORDER_STEPS = 2**33
# What it holds: 2 GiB.
MAX_SDP_NUMBERS = 2**28

_HELD = "lethe.unlearning.held"  # where a session keeps the job that its transaction has locked

_TOLD = frozenset(WebhookEvent)  # an attempt that starts over is nobody else's business

LOST = "lost"
RELEASED = "released"


def create(
    session: Session,
    store: ArtifactStore,
    keys: MasterKey,
    queue: JobQueue,
    settings: Settings,
    *,
    wanted: UnlearningIn,
    forget: Samples,
    actor: str,
) -> UnlearningRequest:
    """Record an unlearning request and queue it; the transaction decides whether it happens.

    Args:
        session: Its commit queues the request and rings the workers.
        store: Where the samples go, encrypted under a key of their own.
        keys: Wraps the key of the samples' commitment.
        queue: The workers' doorbell.
        settings: The gate's policy, which is fixed here, before anything is measured.
        wanted: The request.
        forget: Its samples, checked against the model's manifest.
        actor: Who asks, for the audit log.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelNotActiveError: It is retired, or has to be retrained.
        InvalidInputError: The request contradicts the model.
    """
    request = admit(session, store, keys, settings, wanted=wanted, forget=forget)
    log_received(session, [request], actor=actor)
    queue.ring(session)
    return request


def admit(
    session: Session,
    store: ArtifactStore,
    keys: MasterKey,
    settings: Settings,
    *,
    wanted: UnlearningIn,
    forget: Samples,
) -> UnlearningRequest:
    """Write a request down as `create` does, but for its entry in the log and the doorbell.

    Apart, because many requests can be admitted before the log is locked, which all writers share:
    call `log_received` in the same transaction.

    Raises:
        ModelNotFoundError: There is no such model.
        ModelNotActiveError: It is retired, or has to be retrained.
        InvalidInputError: The request contradicts the model.
    """
    model, manifest = describe(session, wanted.model_id)
    samples.require_norms(forget.features, manifest, field="samples")
    # Requests of one model arrive one after the other: `arrival` is then the order of commits too.
    locked = registry_repository.lock_model(session, model.id)
    if locked is None or locked.state != ModelState.ACTIVE:
        raise ModelNotActiveError(
            f"model {model.id} is {model.state} and takes no deletions"
            + (f": {model.state_reason}" if model.state_reason else ""),
            field="model_id",
            remedy="Train and register a new model.",
        )
    revision = registry.current_revision(session, model)
    samples.require_fewer(len(forget), revision.n_samples, field="samples.x")
    method = _choose_method(wanted, model, revision, manifest)
    received_at, due_at = deadline_periods.begin(session, settings, wanted.received_at)
    key = os.urandom(KEY_BYTES)
    request = UnlearningRequest(
        id=new_id(),
        tenant_id=model.tenant_id,
        model_id=model.id,
        method=method,
        tier=tier_of(method, manifest.loss),
        options=_options(wanted, manifest, settings),
        subject_reference=wanted.subject_reference,
        legal_ground=wanted.legal_ground,
        sample_count=len(forget),
        sample_commitment=keyed_digests.commitment(forget, key),
        samples_artifact_id=store.put(
            session, ArtifactKind.FORGET_SAMPLES, samples.to_bytes(forget)
        ).id,
        state=RequestState.QUEUED,
        received_at=received_at,
        due_at=due_at,
        extension_months=0,
        http_request_id=current_request_id(),
        trace_parent=current_trace_parent(),
        attempts=0,
    )
    request.wrapped_commitment_key = keys.wrap(key, f"lethe/sample-commitment/{request.id}")
    session.add(request)
    session.flush()
    return request


def log_received(session: Session, requests: Iterable[UnlearningRequest], *, actor: str) -> None:
    """Log that requests were admitted, in their order. Take every other lock before."""
    admitted = list(requests)
    for request in admitted:
        _tell(session, request, "unlearning-request.received")
    evidence.append_many(
        session,
        [
            evidence.NewEntry(
                "unlearning-request.received",
                subject=_subject(request),
                payload={
                    "actor": actor,
                    "method": request.method,
                    "options": request.options,
                    "sample_count": request.sample_count,
                    "sample_commitment": request.sample_commitment,
                    "received_at": write_time(request.received_at),
                    "due_at": None if request.due_at is None else write_time(request.due_at),
                },
            )
            for request in admitted
        ],
    )


def describe(session: Session, model_id: uuid.UUID) -> tuple[Model, Manifest]:
    """Return a model and what its samples have to look like.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    model = registry.get(session, model_id)
    return model, registry.manifest_of(model)


def get(session: Session, request_id: uuid.UUID) -> UnlearningRequest:
    """Return a request.

    Raises:
        RequestNotFoundError: There is none with this id.
    """
    request = session.get(UnlearningRequest, request_id)
    if request is None:
        raise _not_found(request_id)
    return request


def lock(session: Session, request_id: uuid.UUID) -> UnlearningRequest:
    """Return a request as it is now, locked until the transaction ends.

    Raises:
        RequestNotFoundError: There is none with this id.
    """
    request = repository.lock_request(session, request_id)
    if request is None:
        raise _not_found(request_id)
    return request


def cancel(
    session: Session, store: ArtifactStore, request_id: uuid.UUID, *, actor: str
) -> UnlearningRequest:
    """Cancel a request that nobody has begun; its samples are shredded. Twice is as good as once.

    Raises:
        RequestNotFoundError: There is none with this id.
        RequestNotCancellableError: It is running or has ended.
    """
    request = lock(session, request_id)
    if request.state == RequestState.CANCELLED:
        return request
    if request.state not in WAITING_STATES:
        raise RequestNotCancellableError(
            f"unlearning request {request_id} is {request.state}",
            field="request_id",
            remedy="Only requests that nobody has begun to compute can be cancelled.",
        )
    end_waiting(session, store, request, RequestState.CANCELLED, CheckOutcome.ENDED)
    _log(session, request, "cancelled", actor=actor)
    return request


def end_waiting(
    session: Session,
    store: ArtifactStore,
    request: UnlearningRequest,
    state: RequestState,
    outcome: CheckOutcome,
) -> None:
    """End a request that nobody has begun, locked: its samples are shredded, its clock stops.

    Args:
        session: Its commit ends the request.
        store: Where the samples are.
        request: The request.
        state: What it ends as.
        outcome: How a check of the identity ends that it was waiting for.
    """
    deadline_periods.stop(session, request, outcome)
    _end(session, request, state)
    _shred(session, store, request)


# The worker's side


def claim(
    session: Session, *, worker: str, lease_seconds: float, max_attempts: int
) -> UnlearningJob | None:
    """Take the oldest request whose model is idle; None when there is nothing to do.

    Commit before working: until then other workers do not see that the model is busy.
    """
    busy: list[uuid.UUID] = []
    while True:
        request = repository.lock_next(session, max_attempts=max_attempts, busy=busy)
        if request is None:
            return None
        job = repository.insert_job(
            session, model_id=request.model_id, worker=worker, lease_seconds=lease_seconds
        )
        if job is not None:
            break
        # Another worker took the model in between; look past it.
        busy.append(request.model_id)
    request.state = RequestState.RUNNING
    request.job_id = job.id
    request.attempts += 1
    request.started_at = session.scalar(select(repository.CLOCK))
    session.flush()
    _log(session, request, "started", job_id=str(job.id), worker=worker, attempt=request.attempts)
    return job


def request_of(session: Session, job: UnlearningJob) -> UnlearningRequest:
    """Return the request that a job runs."""
    return session.scalars(
        select(UnlearningRequest).where(UnlearningRequest.job_id == job.id)
    ).one()


def renew(
    session: Session, job_id: uuid.UUID, *, lease_seconds: float, progress: dict[str, Any] | None
) -> bool:
    """Extend a lease and report progress; False means that it was lost, and all work in vain.

    Stop calling it before `hold`: that keeps the job locked until its transaction ends, and nobody
    can take it meanwhile.
    """
    renewed = session.scalar(
        update(UnlearningJob)
        .where(UnlearningJob.id == job_id, repository.is_held())
        .values(lease_expires_at=repository.lease_end(lease_seconds))
        .returning(UnlearningJob.id)
        .execution_options(synchronize_session=False)
    )
    if renewed is None:
        return False
    if progress is not None:
        session.execute(
            update(UnlearningRequest)
            .where(UnlearningRequest.job_id == job_id)
            .values(progress=progress)
            .execution_options(synchronize_session=False)
        )
    return True


def hold(session: Session, job_id: uuid.UUID) -> UnlearningJob:
    """Return a job for writing; nobody can take it away until the transaction ends.

    Raises:
        LeaseLostError: The lease ran out, or the job was finished or given to another worker.
    """
    held = (job_id, session.get_nested_transaction() or session.get_transaction())
    if session.info.get(_HELD) == held:
        # Locked by this very transaction: a lease that runs out meanwhile is in nobody's way.
        return session.get_one(UnlearningJob, job_id)
    job = repository.lock_job(session, job_id)
    if job is None:
        raise LeaseLostError(
            f"job {job_id} is not held any more: its lease ran out or it was finished",
            remedy="Drop what was computed; whoever holds the request now computes it again.",
        )
    repository.lock_request_of(session, job)
    session.info[_HELD] = (job_id, session.get_nested_transaction() or session.get_transaction())
    return job


def complete(
    session: Session,
    store: ArtifactStore,
    job: UnlearningJob,
    *,
    result: dict[str, Any],
    resulting_revision: int,
    digests: Iterable[bytes],
    shredding: Shredding | None = None,
    keep_samples_until: datetime.datetime | None = None,
) -> UnlearningRequest:
    """End a request with a new revision, remember what was forgotten, and shred the samples.

    Args:
        session: Its commit ends the request.
        store: Where the samples are.
        job: The lease.
        result: Figures, as the API shows them.
        resulting_revision: Number of the new revision.
        digests: Keyed digests of the samples.
        shredding: The occasion that destroyed the old revision's keys, which this is part of; one
            of its own if None.
        keep_samples_until: Keep the samples for a replay until then. The key of their commitment
            goes in any case.

    Raises:
        LeaseLostError: The job is not held any more.
    """
    request = _finish(session, job, RequestState.COMPLETED)
    request.result = result
    request.resulting_revision = resulting_revision
    repository.insert_forgotten(session, request, digests)
    occasion = nullcontext(shredding) if shredding else ending(session, store, request)
    with occasion as shared:
        _dispose(session, request, shared, keep_samples_until)
    _log(session, request, "completed", job_id=str(job.id), revision=resulting_revision)
    return request


def refuse(
    session: Session, store: ArtifactStore, job: UnlearningJob, *, refusal: dict[str, Any]
) -> UnlearningRequest:
    """End a request because a gate failed; the model is unchanged, the samples are shredded.

    Raises:
        LeaseLostError: The job is not held any more.
    """
    request = _finish(session, job, RequestState.REFUSED)
    _shred(session, store, request)
    request.refusal = refusal
    session.flush()
    _log(session, request, "refused", job_id=str(job.id), cause=str(refusal["cause"]))
    return request


def fail(
    session: Session, store: ArtifactStore, job: UnlearningJob, *, failure: dict[str, Any]
) -> UnlearningRequest:
    """End a request because something broke; the model is unchanged, the samples are shredded.

    Raises:
        LeaseLostError: The job is not held any more.
    """
    request = _finish(session, job, RequestState.FAILED)
    _shred(session, store, request)
    request.failure = failure
    session.flush()
    _log(session, request, "failed", job_id=str(job.id), cause=str(failure["cause"]))
    return request


def release(session: Session, job: UnlearningJob) -> UnlearningRequest:
    """Give a request back to the queue after an attempt that broke; the attempt stays counted.

    Raises:
        LeaseLostError: The job is not held any more.
    """
    job = hold(session, job.id)
    session.info.pop(_HELD)
    return _requeue(session, job, RELEASED)


def lost_jobs(session: Session) -> list[uuid.UUID]:
    """Return the jobs of workers that have fallen silent, for `requeue_lost`."""
    return repository.lost_jobs(session)


def requeue_lost(session: Session, job_id: uuid.UUID) -> UnlearningRequest | None:
    """Take back what a silent worker held: its request waits again, at its old place.

    One a transaction: what goes wrong with one of them must not stop the others.

    Returns:
        The request, or None if the job was closed meanwhile, or is just being closed.
    """
    job = repository.lock_lost(session, job_id)
    return None if job is None else _requeue(session, job, LOST)


def exhausted_requests(session: Session, *, max_attempts: int) -> list[uuid.UUID]:
    """Return waiting requests that have no attempt left, for `fail_exhausted`."""
    return repository.exhausted_requests(session, max_attempts)


def fail_exhausted(
    session: Session, store: ArtifactStore, request_id: uuid.UUID, *, max_attempts: int
) -> UnlearningRequest | None:
    """End a request that has no attempt left; its model goes on with the next one.

    Returns:
        The request, or None if somebody else ended it, or is just ending it.
    """
    request = repository.lock_exhausted(session, request_id, max_attempts)
    if request is None:
        return None
    _end(session, request, RequestState.FAILED)
    request.failure = {
        "cause": "attempts-exhausted",
        "detail": f"{request.attempts} attempts broke off, at most {max_attempts} are made",
    }
    session.flush()
    _shred(session, store, request)
    _log(session, request, "failed", cause=request.failure["cause"])
    return request


def queued_models(session: Session) -> list[uuid.UUID]:
    """Return the models that have something to do and nobody who does it."""
    return repository.claimable_models(session)


def load_samples(session: Session, store: ArtifactStore, request: UnlearningRequest) -> Samples:
    """Return the samples that a request wants forgotten.

    Raises:
        ArtifactShreddedError: The request has ended, and they are not kept for a replay.
        ArtifactCorruptError: They are not what was stored.
    """
    artifact = session.get_one(Artifact, request.samples_artifact_id)
    return samples.from_bytes(store.get(artifact))


def already_forgotten(session: Session, model: Model, digests: Iterable[bytes]) -> set[bytes]:
    """Return which samples, by their digests, the model has forgotten before."""
    return repository.forgotten(session, model.id, digests)


def ending(
    session: Session,
    store: ArtifactStore,
    request: UnlearningRequest,
    state: RequestState = RequestState.COMPLETED,
) -> AbstractContextManager[Shredding]:
    """Return the occasion on which a request's end destroys keys."""
    return store.shredding(session, reason=f"request-{state}", subject=_subject(request))


def _finish(session: Session, job: UnlearningJob, state: RequestState) -> UnlearningRequest:
    """End a job and its request, in the order of locks that all writers share."""
    job = hold(session, job.id)
    request = request_of(session, job)
    job.finished_at = session.scalar(select(repository.CLOCK))
    job.outcome = state
    session.info.pop(_HELD)
    _end(session, request, state)
    return request


def _end(session: Session, request: UnlearningRequest, state: RequestState) -> None:
    request.state = state
    request.finished_at = session.scalar(select(func.clock_timestamp()))
    session.flush()


def _shred(session: Session, store: ArtifactStore, request: UnlearningRequest) -> None:
    """Destroy what opens a request's samples: nothing was made of them that could be replayed."""
    with ending(session, store, request, RequestState(request.state)) as shredding:
        _dispose(session, request, shredding, None)


def _dispose(
    session: Session,
    request: UnlearningRequest,
    shredding: Shredding,
    keep_samples_until: datetime.datetime | None,
) -> None:
    request.wrapped_commitment_key = None
    session.flush()
    shredding.note_key("sample-commitment")
    shredding.dispose(session.get_one(Artifact, request.samples_artifact_id), keep_samples_until)


def _requeue(session: Session, job: UnlearningJob, outcome: str) -> UnlearningRequest:
    request = repository.lock_request_of(session, job)
    job.finished_at = session.scalar(select(repository.CLOCK))
    job.outcome = outcome
    request.state = RequestState.QUEUED
    request.job_id = None
    request.progress = None
    session.flush()
    _log(session, request, "requeued", job_id=str(job.id), cause=outcome, attempt=request.attempts)
    return request


def _choose_method(
    wanted: UnlearningIn, model: Model, revision: Revision, manifest: Manifest
) -> Method:
    has_statistics = revision.statistics_artifact_id is not None
    has_surrogate = model.surrogate_artifact_id is not None
    methods = policy.methods(manifest, has_statistics=has_statistics, has_surrogate=has_surrogate)
    if not methods:
        raise ModelNotActiveError(
            f"model {model.id}: what it has now allows none of its methods",
            field="model_id",
            remedy="Train and register a new model.",
        )
    method = wanted.method or methods[0]
    if method not in methods:
        raise _refused_method(
            method, methods, manifest, has_statistics=has_statistics, has_surrogate=has_surrogate
        )
    if method is Method.PAPER_SDP:
        _require_solvable(wanted, manifest)
    return method


def _refused_method(
    method: Method,
    methods: list[Method],
    manifest: Manifest,
    *,
    has_statistics: bool,
    has_surrogate: bool,
) -> InvalidInputError:
    """Return why a method cannot be taken, and what would help."""
    others = f"take one of the methods this model allows: {', '.join(methods)}"
    possible = policy.possible_methods(
        manifest, has_statistics=has_statistics, has_surrogate=has_surrogate
    )
    if (misfit := policy.misfit(method, manifest)) is not None:
        finding = misfit
        remedy = others.capitalize() + "."
    elif method in policy.STORED_METHODS and not has_statistics:
        finding = "needs stored statistics, and the model has none"
        remedy = f"Register the model with statistics, or {others}."
    elif method is Method.SURROGATE and not has_surrogate:
        finding = "needs surrogate features, and the model has none"
        remedy = f"Register the model with the part `surrogate`, or {others}."
    elif method not in possible:
        finding = "has no true bound that the model's declared noise could be held against"
        remedy = others.capitalize() + "."
    else:
        finding = "is excluded by the policy of the model's manifest"
        remedy = others.capitalize() + "."
    return InvalidInputError(f"method: '{method}' {finding}", field="method", remedy=remedy)


def _require_solvable(wanted: UnlearningIn, manifest: Manifest) -> None:
    d = manifest.num_features
    m = PerturbationOptions(count=wanted.perturbation.count).equations(d)
    # cvxpy gets the equations as one matrix; our own solver holds directions and d×d iterates, and
    # takes m·d² steps an iteration.
    entries, largest = m * d**2, MAX_SDP_ENTRIES
    numbers = sdp_floats(wanted.solver, m, d) + manifest.num_outputs * d**2
    if wanted.solver == "FIRST_ORDER":
        largest = MAX_FIRST_ORDER_STEPS
    if entries > largest or numbers > MAX_SDP_NUMBERS:
        raise InvalidInputError(
            f"perturbation.count: {m} perturbations of {d} features make a program of {entries}"
            f" coefficients, held in {numbers} numbers; the solver {wanted.solver} gets at most"
            f" {largest} in {MAX_SDP_NUMBERS}",
            field="perturbation.count",
            remedy="Ask for fewer perturbations, take the solver FIRST_ORDER, reduce the features'"
            " dimension, or take the method 'forget-curvature', the closed form of the same"
            " program.",
        )


def _options(wanted: UnlearningIn, manifest: Manifest, settings: Settings) -> dict[str, Any]:
    """Return every choice as it is recorded; thresholds are set before anything is measured."""
    return {
        "seed": wanted.seed,
        "perturbation": wanted.perturbation.model_dump(mode="json"),
        "floor": str(wanted.floor),
        "solver": wanted.solver,
        "prior": wanted.prior.model_dump(mode="json"),
        "anchor": str(policy.anchor(manifest, settings)),
        "gate": policy.gate_in_force(manifest, settings).model_dump(mode="json"),
    }


def _log(session: Session, request: UnlearningRequest, event: str, **payload: Any) -> None:
    name = f"unlearning-request.{event}"
    _tell(session, request, name)
    evidence.append(
        session,
        name,
        subject=_subject(request),
        payload=payload,
    )


def _tell(session: Session, request: UnlearningRequest, event: str) -> None:
    """Have webhooks told, before the log is locked."""
    if event in _TOLD:
        told = {**_subject(request), "state": str(request.state)}
        outbox.enqueue(session, WebhookEvent(event), told)


def _subject(request: UnlearningRequest) -> dict[str, str]:
    return {"model_id": str(request.model_id), "request_id": str(request.id)}


def _not_found(request_id: uuid.UUID) -> RequestNotFoundError:
    return RequestNotFoundError(
        f"no unlearning request {request_id}",
        field="request_id",
        remedy="GET /v1/unlearning-requests lists them.",
    )
