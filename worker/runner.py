"""One job from its claim to its signed record; read `run_next` from top to bottom.

Everything before the closing transaction may be lost at any moment, with its worker or its lease:
the job is then done again by another. Nothing but the closing transaction leaves a trace, and that
one holds the lease.
"""

import time
from functools import partial

import structlog
import torch
from opentelemetry.trace import Span
from sqlalchemy.exc import OperationalError

from app.artifacts.retention import Deadlines
from app.budget import service as budget
from app.errors import AppError, LeaseLostError, SigningKeyError
from app.evidence.keys import keyring
from app.evidence.models import KeyRole
from app.registry import membership
from app.registry import service as registry
from app.registry.models import Revision
from app.services import Services
from app.tracing import mark_failed
from app.unlearning import service as unlearning
from app.unlearning.models import UnlearningJob
from core.linearised.sketch import SketchStatistics
from core.results import Refused, Unlearned
from core.serialization import dump_statistics, dump_weights
from core.statistics import LogisticStatistics
from core.vocabulary import Anchor, RefusalCause, Standing
from worker import loading, log_context, records, tracing
from worker.leases import Heartbeat, insist
from worker.loading import Work

logger = structlog.get_logger(__name__)


def run_next(services: Services) -> bool:
    """Claim the next job and bring it to an end; return False when none was left to claim."""
    job = _claim(services)
    if job is None:
        return False
    with (
        insist(services, partial(log_context.of_job, services, job)),
        tracing.of_job(services, job) as span,
    ):
        return _run(services, job, span)


def _run(services: Services, job: UnlearningJob, span: Span) -> bool:
    log = logger.bind(job_id=str(job.id), model_id=str(job.model_id))
    try:
        with Heartbeat(services, job.id) as heartbeat:
            started = time.monotonic()
            with tracing.stage(services, "load"):
                work = insist(services, partial(_load, services, job))
            result = _compute(services, work, heartbeat) if isinstance(work, Work) else work
            seconds = time.monotonic() - started
        with tracing.stage(services, "commit"):
            if isinstance(work, Work) and isinstance(result, Unlearned):
                insist(services, partial(_complete, services, work, result, seconds))
            elif isinstance(result, Refused):
                insist(services, partial(_refuse, services, job, result))
    except LeaseLostError as error:
        mark_failed(span, error)
        log.warning("job.lease_lost", exc_info=True)
    except Exception as error:
        # Whatever it was: one request's misfortune must not end the worker.
        mark_failed(span, error)
        log.exception("job.attempt_failed")
        # Not again at once: whatever it was may pass until the sweeper rings.
        return insist(services, partial(_give_up, services, job, error))
    else:
        outcome = type(result).__name__.lower()
        span.set_attribute("lethe.outcome", outcome)
        log.info("job.finished", outcome=outcome, seconds=seconds)
        _cover(services)
    return True


def _claim(services: Services) -> UnlearningJob | None:
    """Take a lease on the next model's first request."""
    with services.sessions.begin() as session:
        objection = keyring.objection(session, KeyRole.RECORDS, services.signer.key_id)
        if objection is not None:
            # No record of it could be signed: it would use up its attempts for nothing.
            logger.error("job.none_claimed", why=objection.detail, remedy=objection.remedy)
            return None
        return unlearning.claim(
            session,
            worker=services.process,
            lease_seconds=services.settings.lease_seconds,
            max_attempts=services.settings.max_attempts,
        )


def _load(services: Services, job: UnlearningJob) -> Work | Refused:
    """Reserve the budget and read what the computation needs, or say why there will be none."""
    return loading.prepare(services, job) or loading.load(services, job)


def _compute(services: Services, work: Work, heartbeat: Heartbeat) -> Unlearned | Refused:
    with tracing.stages(services, heartbeat.report) as report:
        return work.computation.run(report)


def _complete(services: Services, work: Work, unlearned: Unlearned, seconds: float) -> None:
    """Replace the weights, and say so: all of it or nothing."""
    computation, statistics = work.computation, unlearned.statistics
    noisy = computation.noise_key is not None
    weights, release = dump_weights(unlearned.weights), dump_weights(unlearned.release)
    with services.sessions.begin() as session:
        job = unlearning.hold(session, work.job_id)
        request = unlearning.request_of(session, job)
        model = registry.get(session, request.model_id)
        before = registry.current_revision(session, model)
        deadlines = Deadlines.of(session, services.settings)
        # One occasion: one entry of the log names every key that goes with this deletion.
        with unlearning.ending(session, services.store, request) as shredding:
            after = registry.add_revision(
                session,
                services.store,
                model,
                expected_revision=work.revision,
                n_samples=unlearned.n_samples,
                gradient_norm_bound=unlearned.gradient_norm_bound,
                weights=weights,
                release=release if noisy else None,
                statistics=None if statistics is None else dump_statistics(statistics),
                request_id=request.id,
                shredding=shredding,
                deadlines=deadlines,
            )
            if computation.membership is Standing.COMPUTED:
                membership.consume(session, model, work.digests)
            budget.spend(
                session,
                model.id,
                None if unlearned.privacy is None else unlearned.privacy.spent,
                job_id=job.id,
                request_id=request.id,
            )
            unlearning.complete(
                session,
                services.store,
                job,
                result=records.describe_result(unlearned, after, computation.membership, seconds),
                resulting_revision=after.number,
                digests=work.digests,
                shredding=shredding,
                keep_samples_until=deadlines.replay,
            )
        # Last, so that every key it calls destroyed is.
        records.issue_completion(
            session,
            services,
            request,
            unlearned,
            before=before,
            after=after,
            anchor=_fate_of_anchor(computation.options.anchor, unlearned),
            device=computation.device_name,
            retention=_retention(before, deadlines),
        )


def _retention(before: Revision, deadlines: Deadlines) -> records.Retention:
    """Return what the record has to say was kept; of what is kept it never says `key_destroyed`."""
    weights: records.WeightsFate = "key_destroyed"
    if deadlines.downloads is not None:
        weights = "kept_by_policy"
    if deadlines.replay is not None and (
        before.release_artifact_id is not None or deadlines.downloads is None
    ):
        # With a release, what is kept for a replay is what the noise hides: the graver of the two.
        weights = "kept_for_replay"
    return records.Retention(
        weights=weights,
        statistics=deadlines.replay is not None and before.statistics_artifact_id is not None,
        samples=deadlines.replay is not None,
        until=deadlines.last,
    )


def _fate_of_anchor(asked: Anchor, unlearned: Unlearned) -> records.AnchorFate:
    """Return what became of the weights that statistics with an anchor were collected at."""
    statistics = unlearned.statistics
    if not isinstance(statistics, LogisticStatistics | SketchStatistics):
        return "none"
    # A kept one may equal the new weights all the same: a deletion can be too small to move them.
    moved = asked is Anchor.MOVE and torch.equal(statistics.anchor, unlearned.weights)
    return "moved" if moved else "kept_as_secret"


def _refuse(services: Services, job: UnlearningJob, refused: Refused) -> None:
    """Say that a gate failed; weights and statistics stay as they are."""
    with services.sessions.begin() as session:
        job = unlearning.hold(session, job.id)
        request = unlearning.request_of(session, job)
        if refused.cause is RefusalCause.BUDGET_SPENT:
            # Before the log's head is locked, as everybody locks the model.
            model = registry.get(session, request.model_id)
            registry.require_retraining(session, model, refused.detail)
        budget.release(session, request.model_id, job_id=job.id, request_id=request.id)
        request = unlearning.refuse(
            session, services.store, job, refusal=records.describe_refusal(refused)
        )
        records.issue_refusal(session, services, request, refused)


def _cover(services: Services) -> None:
    """Sign a checkpoint that covers the new record, now that it is committed.

    What stands against it ends nobody's request: the sweeper tries again, and so does whoever first
    asks for the record.
    """
    try:
        services.notary.sign()
    except (AppError, SigningKeyError, OperationalError):
        logger.exception("checkpoint.not_signed")


def _give_up(services: Services, claimed: UnlearningJob, error: Exception) -> bool:
    """Put the request back into the queue, or say that it failed if that was its last attempt.

    Returns:
        Whether it has ended, so that the next one's turn has come.
    """
    try:
        with services.sessions.begin() as session:
            job = unlearning.hold(session, claimed.id)
            request = unlearning.request_of(session, job)
            budget.release(session, request.model_id, job_id=job.id, request_id=request.id)
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
