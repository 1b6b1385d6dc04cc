"""Tables of registered models and the chain of their revisions."""

import enum
import uuid
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id


class ModelState(enum.StrEnum):
    """Whether a model takes deletions."""

    ACTIVE = "active"
    RETRAINING_REQUIRED = "retraining_required"  # budget spent, or told so
    RETIRED = "retired"


class Model(Base):
    """A registered model: what its owner declared once, and where its chain of revisions ends."""

    __tablename__ = "model"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'retraining_required', 'retired')", name="state"),
    )

    id: Mapped[Id]
    name: Mapped[str]
    state: Mapped[str] = mapped_column(default=ModelState.ACTIVE)
    manifest: Mapped[dict[str, Any]]
    # Compare-and-swap on this number: two jobs can never extend the same revision.
    current_revision: Mapped[int] = mapped_column(default=0)
    # Keys the digests in `forgotten_sample`: without it nobody can test a guessed record.
    wrapped_digest_key: Mapped[bytes]
    holdout_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    created_at: Mapped[CreatedAt]


class Revision(Base):
    """Weights (and statistics) of a model after a number of deletions."""

    __tablename__ = "revision"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[Id]
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"))
    number: Mapped[int]
    n_samples: Mapped[int]
    # Bound on the training gradient's norm at these weights; METHOD (5) adds it to every estimate.
    gradient_norm_bound: Mapped[float]
    weights_artifact_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("artifact.id"))
    weights_sha256: Mapped[str]
    statistics_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    statistics_sha256: Mapped[str | None]
    # The request that made it; None for the one that was registered.
    request_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("unlearning_request.id"))
    created_at: Mapped[CreatedAt]
