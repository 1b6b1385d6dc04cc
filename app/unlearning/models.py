"""Tables of unlearning requests, the jobs that run them, and what was forgotten."""

import datetime
import enum
import uuid
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    String,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id
from app.tenants.models import DEFAULT_TENANT_ID, OF_THE_DEFAULT, Owned, PartOfModel


class RequestState(enum.StrEnum):
    """The life of an unlearning request (DESIGN): queued -> running -> one of the final states."""

    QUEUED = "queued"
    # Back to queued, or ended. A state of its own, since whatever takes from the queue takes what
    # is queued: nothing can claim what is in doubt.
    IDENTITY_CHECK = "identity_check"
    RUNNING = "running"
    COMPLETED = "completed"
    REFUSED = "refused"  # a gate failed, or the controller rejected it; weights unchanged
    FAILED = "failed"  # something broke; weights unchanged
    CANCELLED = "cancelled"


FINAL_STATES = frozenset(
    {RequestState.COMPLETED, RequestState.REFUSED, RequestState.FAILED, RequestState.CANCELLED}
)
# Nobody has begun: it can be cancelled, or rejected by the controller.
WAITING_STATES = frozenset({RequestState.QUEUED, RequestState.IDENTITY_CHECK})
OPEN_STATES = WAITING_STATES | {RequestState.RUNNING}


class UnlearningRequest(Owned, Base):
    """A request to forget samples. This table is the queue; Celery's message is only a doorbell."""

    __tablename__ = "unlearning_request"
    __subject__ = "request_id"
    __table_args__ = (
        CheckConstraint(
            "state IN ('queued', 'identity_check', 'running', 'completed', 'refused', 'failed',"
            " 'cancelled')",
            name="state",
        ),
        Index("ix_unlearning_request_queue", "arrival", postgresql_where=text("state = 'queued'")),
        Index("ix_unlearning_request_model_id_arrival", "model_id", "arrival"),
        Index("ix_unlearning_request_tenant_id_arrival", "tenant_id", "arrival"),
        Index("ix_unlearning_request_due_at_arrival", "due_at", "arrival"),
        # Metrics read this index alone, however wide the rows are.
        Index(
            "ix_unlearning_request_figures",
            "state",
            "tier",
            postgresql_include=["created_at", "started_at", "finished_at"],
        ),
        # What lists are filtered by (EXPLAIN on 10^5 rows: tests/app/unlearning/test_filters.py).
        Index(
            "ix_unlearning_request_subject_reference_arrival",
            "subject_reference",
            "arrival",
            postgresql_where=text("subject_reference IS NOT NULL"),
        ),
        Index("ix_unlearning_request_state_arrival", "state", "arrival"),
        Index("ix_unlearning_request_created_at", "created_at"),
    )

    id: Mapped[Id]
    # Its model's. No foreign key: every request at once would share a lock on one tenant's row.
    tenant_id: Mapped[uuid.UUID] = mapped_column(
        default=DEFAULT_TENANT_ID, server_default=OF_THE_DEFAULT
    )
    # Order of arrival within a model; ids from several API hosts may tie.
    arrival: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"))
    state: Mapped[str] = mapped_column(default=RequestState.QUEUED)
    method: Mapped[str]
    tier: Mapped[str]  # what the method aims at for the model's loss
    options: Mapped[dict[str, Any]]
    subject_reference: Mapped[str | None]
    legal_ground: Mapped[str | None]  # the controller's word, coded; copied and not judged
    sample_count: Mapped[int]
    # HMAC under a key of this request alone, which is shredded with the samples.
    sample_commitment: Mapped[str]
    wrapped_commitment_key: Mapped[bytes | None]
    samples_artifact_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("artifact.id"))
    job_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("unlearning_job.id"))
    # X-Request-ID of the HTTP request that made it: the worker's log lines name it. Of no record,
    # and of no entry of the audit log, since clients choose it.
    http_request_id: Mapped[str | None]
    # The W3C `traceparent` of its span, where traces are sent: the worker's continue it.
    trace_parent: Mapped[str | None] = mapped_column(String(55))
    attempts: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any] | None]  # {"stage": str, "fraction": 0..1}
    result: Mapped[dict[str, Any] | None]  # figures of a completed request
    refusal: Mapped[dict[str, Any] | None]  # cause, detail, remedy, gates
    failure: Mapped[dict[str, Any] | None]  # cause, detail
    resulting_revision: Mapped[int | None]
    created_at: Mapped[CreatedAt]
    # When the controller got it, which may be long before this service did: its clock starts then.
    received_at: Mapped[CreatedAt]
    due_at: Mapped[datetime.datetime | None]  # None while the clock stands still
    extension_months: Mapped[int] = mapped_column(default=0, server_default="0")
    started_at: Mapped[datetime.datetime | None]
    finished_at: Mapped[datetime.datetime | None]


class UnlearningJob(PartOfModel, Base):
    """One worker's lease on a model. Its id is the fencing token that every write checks."""

    __tablename__ = "unlearning_job"
    __table_args__ = (
        Index(
            "uq_unlearning_job_one_running_a_model",
            "model_id",
            unique=True,
            postgresql_where=text("finished_at IS NULL"),
        ),
    )

    id: Mapped[Id]
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"))
    worker: Mapped[str]
    lease_expires_at: Mapped[datetime.datetime]
    created_at: Mapped[CreatedAt]
    finished_at: Mapped[datetime.datetime | None]
    outcome: Mapped[str | None]  # final state of its request, or "lost"


class ForgottenSample(PartOfModel, Base):
    """Keyed digest of a sample that a model has forgotten: a second deletion is refused."""

    __tablename__ = "forgotten_sample"

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    request_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("unlearning_request.id"))
