"""One job from its claim to its signed record; read `run_next` from top to bottom.

Everything before the closing transaction may be lost at any moment, with its worker or its lease:
the job is then done again by another. Nothing but the closing transaction leaves a trace, and that
one holds the lease.
"""

import time
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import partial

import structlog
import torch

from app.errors import LeaseLostError
from app.registry import service as registry
from app.registry.models import Revision
from app.registry.schemas import Manifest
from app.services import Services
from app.unlearning import digests as keyed_digests
from app.unlearning import service as unlearning
from app.unlearning.models import UnlearningJob
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Refused, Unlearned
from core.serialization import (
    dump_statistics,
    dump_weights,
    load_samples,
    load_statistics,
    load_weights,
)
from core.statistics import StoredStatistics
from core.vocabulary import TIER_OF, RefusalCause
from worker import records
from worker.leases import Heartbeat, insist
from worker.options import options_of

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed request and everything that its computation needs."""

    job_id: uuid.UUID
    model: LinearModel
    forget: SampleSet
    statistics: StoredStatistics | None
    holdout: SampleSet | None
    manifest: Manifest
    options: UnlearningOptions
    revision: int
    digests: list[bytes]
    forgotten_before: int  # how many of the samples this model has already forgotten


def run_next(services: Services) -> bool:
    """Claim the next job and bring it to an end; return False when none was left to claim."""
    job = _claim(services)
    if job is None:
        return False
    log = logger.bind(job_id=str(job.id), model_id=str(job.model_id))
    try:
        with Heartbeat(services, job.id) as heartbeat:
            started = time.monotonic()
            work = insist(services, partial(_load, services, job))
            result = _compute(work, heartbeat)
            seconds = time.monotonic() - started
        if isinstance(result, Unlearned):
            insist(services, partial(_complete, services, work, result, seconds))
        else:
            insist(services, partial(_refuse, services, work, result))
    except LeaseLostError:
        log.warning("job.lease_lost", exc_info=True)
    except Exception as error:
        # Whatever it was: one request's misfortune must not end the worker.
        log.exception("job.attempt_failed")
        # Not again at once: whatever it was may pass until the sweeper rings.
        return insist(services, partial(_give_up, services, job, error))
    else:
        log.info("job.finished", outcome=type(result).__name__.lower(), seconds=seconds)
    return True


def _claim(services: Services) -> UnlearningJob | None:
    """Take a lease on the next model's first request."""
    with services.sessions.begin() as session:
        return unlearning.claim(
            session,
            worker=services.process,
            lease_seconds=services.settings.lease_seconds,
            max_attempts=services.settings.max_attempts,
        )


def _load(services: Services, job: UnlearningJob) -> Work:
    """Read and decrypt everything that the computation needs."""
    with services.sessions() as session:
        request = unlearning.request_of(session, job)
        model = registry.get(session, request.model_id)
        revision = registry.current_revision(session, model)
        weights = registry.load_weights(session, services.store, revision)
        statistics = registry.load_statistics(session, services.store, revision)
        holdout = registry.load_holdout(session, services.store, model)
        forget = unlearning.load_samples(session, services.store, request)
        digests = keyed_digests.of_each(forget, registry.digest_key(services.keys, model))
        forgotten = unlearning.already_forgotten(session, model, digests)
    manifest = Manifest.model_validate(model.manifest)
    return Work(
        job_id=job.id,
        model=_linear_model(manifest, revision, weights),
        forget=SampleSet(torch.from_numpy(forget.features), torch.from_numpy(forget.targets)),
        statistics=None if statistics is None else load_statistics(statistics),
        holdout=None if holdout is None else load_samples(holdout, manifest.num_outputs),
        manifest=manifest,
        options=options_of(request),
        revision=revision.number,
        digests=digests,
        forgotten_before=len(forgotten),
    )


def _linear_model(manifest: Manifest, revision: Revision, weights: bytes) -> LinearModel:
    return LinearModel(
        weights=load_weights(weights),
        ridge=Ridge(manifest.ridge.convention, manifest.ridge.strength),
        n_samples=revision.n_samples,
        feature_norm_bound=manifest.feature_norm_bound,
        gradient_norm_bound=revision.gradient_norm_bound,
        loss=manifest.loss,
    )


def _compute(work: Work, heartbeat: Heartbeat) -> Unlearned | Refused:
    """Unlearn, unless the samples themselves forbid it."""
    return _doubly_deleted(work) or unlearn(
        work.model,
        work.forget,
        statistics=work.statistics,
        holdout=work.holdout,
        task=work.manifest.task,
        options=work.options,
        progress=heartbeat.report,
    )


def _doubly_deleted(work: Work) -> Refused | None:
    """Refuse what would subtract a sample twice, which corrupts a model silently (METHOD §4)."""
    copies = sum(count - 1 for count in Counter(work.digests).values())
    if work.forgotten_before:
        return _refused_samples(
            work,
            RefusalCause.ALREADY_FORGOTTEN,
            f"{work.forgotten_before} of the {len(work.digests)} samples were forgotten by this "
            "model before; subtracting them again would corrupt it.",
            "Send only samples that were not part of an earlier completed request.",
        )
    if copies:
        return _refused_samples(
            work,
            RefusalCause.DUPLICATE_SAMPLES,
            f"{copies} of the {len(work.digests)} samples are copies of others in the request; "
            "whether the training set held as many copies is not known.",
            "Send each sample once.",
        )
    return None


def _refused_samples(work: Work, cause: RefusalCause, detail: str, remedy: str) -> Refused:
    return Refused(
        cause=cause,
        detail=detail,
        remedy=remedy,
        tier=TIER_OF[work.options.method],
        method=work.options.method,
        gates=(),
        seeds={},
    )


def _complete(services: Services, work: Work, unlearned: Unlearned, seconds: float) -> None:
    """Replace the weights, and say so: all of it or nothing."""
    statistics = unlearned.statistics
    weights = dump_weights(unlearned.weights)
    with services.sessions.begin() as session:
        job = unlearning.hold(session, work.job_id)
        request = unlearning.request_of(session, job)
        model = registry.get(session, request.model_id)
        before = registry.current_revision(session, model)
        after = registry.add_revision(
            session,
            services.store,
            model,
            expected_revision=work.revision,
            n_samples=unlearned.n_samples,
            gradient_norm_bound=unlearned.gradient_norm_bound,
            weights=weights,
            statistics=None if statistics is None else dump_statistics(statistics),
            request_id=request.id,
            keep_superseded_weights=services.settings.keep_superseded_weights,
        )
        unlearning.complete(
            session,
            services.store,
            job,
            result=records.describe_result(unlearned, after.weights_sha256, seconds),
            resulting_revision=after.number,
            digests=work.digests,
        )
        # Last, so that every key it calls destroyed is.
        records.issue_completion(session, services, request, unlearned, before=before, after=after)


def _refuse(services: Services, work: Work, refused: Refused) -> None:
    """Say that a gate failed; weights and statistics stay as they are."""
    with services.sessions.begin() as session:
        job = unlearning.hold(session, work.job_id)
        request = unlearning.refuse(
            session, services.store, job, refusal=records.describe_refusal(refused)
        )
        records.issue_refusal(session, services, request, refused)


def _give_up(services: Services, claimed: UnlearningJob, error: Exception) -> bool:
    """Put the request back into the queue, or say that it failed if that was its last attempt.

    Returns:
        Whether it has ended, so that the next one's turn has come.
    """
    try:
        with services.sessions.begin() as session:
            job = unlearning.hold(session, claimed.id)
            request = unlearning.request_of(session, job)
            if request.attempts < services.settings.max_attempts:
                unlearning.release(session, job)
                return False
            failure = records.describe_failure(error)
            request = unlearning.fail(session, services.store, job, failure=failure)
            records.issue_failure_if_possible(session, services, request, failure)
    except LeaseLostError:
        logger.warning("job.lease_lost", job_id=str(claimed.id), exc_info=True)
        return False
    return True
