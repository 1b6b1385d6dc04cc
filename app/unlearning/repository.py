"""Queries on unlearning requests and the jobs that run them.

Locks are taken in one order everywhere, so that nobody waits in a circle: job, request, model,
artifact, audit_log.
"""

import datetime
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.db import new_id
from app.unlearning.models import ForgottenSample, RequestState, UnlearningJob, UnlearningRequest
from core.vocabulary import Method, Tier

# Leases are held against the database's clock: the hosts' may differ. now() is when the transaction
# began, and it may have waited for a lock since.
CLOCK = func.clock_timestamp()


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list of requests is narrowed to; each that is given has to hold."""

    states: Sequence[RequestState] = ()
    model_id: uuid.UUID | None = None
    tier: Tier | None = None
    method: Method | None = None
    subject_reference: str | None = None
    created_from: datetime.datetime | None = None
    created_to: datetime.datetime | None = None  # exclusive: months can be put side by side


def list_requests(filters: Filters) -> Select[UnlearningRequest]:
    """Return the statement for requests, newest first."""
    statement = select(UnlearningRequest).order_by(UnlearningRequest.arrival.desc())
    if filters.states:
        statement = statement.where(UnlearningRequest.state.in_(filters.states))
    for column, value in (
        (UnlearningRequest.model_id, filters.model_id),
        (UnlearningRequest.tier, filters.tier),
        (UnlearningRequest.method, filters.method),
        (UnlearningRequest.subject_reference, filters.subject_reference),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if filters.created_from is not None:
        statement = statement.where(UnlearningRequest.created_at >= filters.created_from)
    if filters.created_to is not None:
        statement = statement.where(UnlearningRequest.created_at < filters.created_to)
    return statement


def lock_request(session: Session, request_id: uuid.UUID) -> UnlearningRequest | None:
    """Return a request as it is now, locked until the transaction ends."""
    return session.scalar(
        select(UnlearningRequest)
        .where(UnlearningRequest.id == request_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def lock_request_of(session: Session, job: UnlearningJob) -> UnlearningRequest:
    """Return the request that a job runs, locked until the transaction ends."""
    return session.scalars(
        select(UnlearningRequest)
        .where(UnlearningRequest.job_id == job.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one()


def claimable() -> ColumnElement[bool]:
    """Return whether it is a request's turn: first of its model in the queue, nothing running."""
    earlier = aliased(UnlearningRequest)
    waits_longer = select(earlier.id).where(
        earlier.model_id == UnlearningRequest.model_id,
        earlier.state == RequestState.QUEUED,
        earlier.arrival < UnlearningRequest.arrival,
    )
    runs = select(UnlearningJob.id).where(
        UnlearningJob.model_id == UnlearningRequest.model_id, UnlearningJob.finished_at.is_(None)
    )
    return (
        (UnlearningRequest.state == RequestState.QUEUED)
        & ~waits_longer.correlate(UnlearningRequest).exists()
        & ~runs.correlate(UnlearningRequest).exists()
    )


def lock_next(
    session: Session, *, max_attempts: int, busy: Iterable[uuid.UUID]
) -> UnlearningRequest | None:
    """Return the oldest request whose turn it is, locked; what another worker holds is skipped."""
    return session.scalar(
        select(UnlearningRequest)
        .where(
            claimable(),
            UnlearningRequest.attempts < max_attempts,
            UnlearningRequest.model_id.not_in(list(busy)),
        )
        .order_by(UnlearningRequest.arrival)
        .limit(1)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )


def insert_job(
    session: Session, *, model_id: uuid.UUID, worker: str, lease_seconds: float
) -> UnlearningJob | None:
    """Return a new job, or None if the model has a running one: the partial index decides."""
    inserted = session.execute(
        insert(UnlearningJob)
        .values(
            id=new_id(),
            model_id=model_id,
            worker=worker,
            lease_expires_at=lease_end(lease_seconds),
        )
        .on_conflict_do_nothing(
            index_elements=["model_id"], index_where=UnlearningJob.finished_at.is_(None)
        )
        .returning(UnlearningJob.id)
    ).scalar_one_or_none()
    return None if inserted is None else session.get_one(UnlearningJob, inserted)


def is_held() -> ColumnElement[bool]:
    """Return whether a job still belongs to its worker."""
    return UnlearningJob.finished_at.is_(None) & (UnlearningJob.lease_expires_at > CLOCK)


def lock_job(session: Session, job_id: uuid.UUID) -> UnlearningJob | None:
    """Return a job that still belongs to its worker, locked until the transaction ends."""
    return session.scalar(
        select(UnlearningJob)
        .where(UnlearningJob.id == job_id, is_held())
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def lost_jobs(session: Session) -> list[uuid.UUID]:
    """Return the jobs whose lease ran out, the oldest first."""
    return list(
        session.scalars(
            select(UnlearningJob.id).where(_is_lost()).order_by(UnlearningJob.created_at)
        )
    )


def lock_lost(session: Session, job_id: uuid.UUID) -> UnlearningJob | None:
    """Return a job if its lease ran out, locked; one that its worker is closing is skipped."""
    return session.scalar(
        select(UnlearningJob)
        .where(UnlearningJob.id == job_id, _is_lost())
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )


def _is_lost() -> ColumnElement[bool]:
    return UnlearningJob.finished_at.is_(None) & (UnlearningJob.lease_expires_at <= CLOCK)


def exhausted_requests(session: Session, max_attempts: int) -> list[uuid.UUID]:
    """Return waiting requests without an attempt left: they would block their model for ever."""
    return list(session.scalars(select(UnlearningRequest.id).where(_is_exhausted(max_attempts))))


def lock_exhausted(
    session: Session, request_id: uuid.UUID, max_attempts: int
) -> UnlearningRequest | None:
    """Return a waiting request if it has no attempt left, locked; one in use is skipped."""
    return session.scalar(
        select(UnlearningRequest)
        .where(UnlearningRequest.id == request_id, _is_exhausted(max_attempts))
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )


def _is_exhausted(max_attempts: int) -> ColumnElement[bool]:
    return (UnlearningRequest.state == RequestState.QUEUED) & (
        UnlearningRequest.attempts >= max_attempts
    )


def claimable_models(session: Session) -> list[uuid.UUID]:
    """Return the models that have something to do and nobody who does it."""
    return list(
        session.scalars(
            select(UnlearningRequest.model_id)
            .where(claimable())
            .order_by(UnlearningRequest.arrival)
        )
    )


def forgotten(session: Session, model_id: uuid.UUID, digests: Iterable[bytes]) -> set[bytes]:
    """Return which of the digests a model has forgotten before."""
    return set(
        session.scalars(
            select(ForgottenSample.digest).where(
                ForgottenSample.model_id == model_id, ForgottenSample.digest.in_(list(digests))
            )
        )
    )


def forgotten_by(session: Session, request: UnlearningRequest) -> set[bytes]:
    """Return the digests that a request added to what its model has forgotten."""
    return set(
        session.scalars(
            select(ForgottenSample.digest).where(ForgottenSample.request_id == request.id)
        )
    )


def insert_forgotten(
    session: Session, request: UnlearningRequest, digests: Iterable[bytes]
) -> None:
    """Remember what a request forgot; a copy of what was forgotten before is forgotten already."""
    rows = [
        {"model_id": request.model_id, "digest": digest, "request_id": request.id}
        for digest in set(digests)
    ]
    if rows:
        session.execute(insert(ForgottenSample).on_conflict_do_nothing(), rows)


def lease_end(lease_seconds: float) -> ColumnElement[object]:
    """Return when a lease that starts now ends."""
    return CLOCK + func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds)
