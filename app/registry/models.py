"""Tables of registered models, the chain of their revisions, and what they were trained on."""

import datetime
import enum
import uuid
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, CreatedAt, Id
from app.tenants.models import Owned, PartOfModel


class ModelState(enum.StrEnum):
    """Whether a model takes deletions."""

    ACTIVE = "active"
    RETRAINING_REQUIRED = "retraining_required"  # budget spent, or told so
    RETIRED = "retired"


class Model(Owned, Base):
    """A registered model: what its owner declared once, and where its chain of revisions ends."""

    __tablename__ = "model"
    __subject__ = "model_id"
    __table_args__ = (
        CheckConstraint("state IN ('active', 'retraining_required', 'retired')", name="state"),
        CheckConstraint(
            "(network_artifact_id IS NULL) = (network_sha256 IS NULL)", name="network_has_a_digest"
        ),
    )

    id: Mapped[Id]
    name: Mapped[str]
    state: Mapped[str] = mapped_column(default=ModelState.ACTIVE)
    state_reason: Mapped[str | None]  # why it is not active any more
    manifest: Mapped[dict[str, Any]]
    # Compare-and-swap on this number: two jobs can never extend the same revision.
    current_revision: Mapped[int] = mapped_column(default=0)
    # Keys the digests in `forgotten_sample` and `training_digest`: without it nobody can test a
    # guessed record. The owner's where they sent a multiset of digests, else drawn here.
    wrapped_digest_key: Mapped[bytes]
    # What the noise of every release is derived from; None unless the model has output
    # perturbation. A recorded seed would give the noise away.
    wrapped_noise_key: Mapped[bytes | None]
    # Whether `training_digest` holds the multiset of its training set.
    has_membership: Mapped[bool] = mapped_column(default=False)
    holdout_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    surrogate_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    # What a network is linearised around; None for a linear head. No deletion changes it.
    network_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    network_sha256: Mapped[str | None]
    created_at: Mapped[CreatedAt]


class Revision(PartOfModel, Base):
    """Weights (and statistics) of a model after a number of deletions."""

    __tablename__ = "revision"
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        CheckConstraint(
            "(release_artifact_id IS NULL) = (release_sha256 IS NULL)", name="release_has_a_digest"
        ),
    )

    id: Mapped[Id]
    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"))
    number: Mapped[int]
    n_samples: Mapped[int]
    # Bound on the training gradient's norm at these weights; METHOD (5) adds it to every estimate.
    gradient_norm_bound: Mapped[float]
    weights_artifact_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("artifact.id"))
    # Keyed with a release, which hides the weights; that of statistics wherever noise was declared:
    # a plain digest of a secret would let anybody test a guessed training set.
    weights_sha256: Mapped[str]
    statistics_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    statistics_sha256: Mapped[str | None]
    # What is served instead of the weights; None unless the model has output perturbation.
    release_artifact_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("artifact.id"))
    release_sha256: Mapped[str | None]
    # Once superseded: until when it can be downloaded, whatever its files are kept for beside. None
    # while it is current, and of what was superseded before there were deadlines.
    served_until: Mapped[datetime.datetime | None]
    # The request that made it; None for the one that was registered.
    request_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("unlearning_request.id"))
    created_at: Mapped[CreatedAt]


class TrainingDigest(PartOfModel, Base):
    """Keyed digest of a training sample, and how many copies of it the model still has.

    A row stays when its last copy is gone: "forgotten" and "never trained on" are two answers.
    """

    __tablename__ = "training_digest"
    __table_args__ = (CheckConstraint("copies >= 0", name="copies"),)

    model_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("model.id"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(primary_key=True)
    copies: Mapped[int]
