"""Table of encrypted blobs. Destroying `wrapped_key` destroys the content (crypto-shredding)."""

import datetime
import enum

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped

from app.db import Base, CreatedAt, Id


class ArtifactKind(enum.StrEnum):
    """What a blob holds; bound to its ciphertext as associated data."""

    WEIGHTS = "weights"
    RELEASE = "release"  # weights with noise: what is served where the weights are a secret
    NETWORK = "network"  # public weights that a network is linearised around
    STATISTICS = "statistics"
    SURROGATE = "surrogate"
    HOLDOUT = "holdout"
    FORGET_SAMPLES = "forget_samples"


class Artifact(Base):
    """One encrypted blob in the artifact store."""

    __tablename__ = "artifact"
    __table_args__ = (
        Index(
            "ix_artifact_due",
            "retain_until",
            postgresql_where=text("retain_until IS NOT NULL AND wrapped_key IS NOT NULL"),
        ),
    )

    id: Mapped[Id]
    kind: Mapped[str]
    location: Mapped[str]
    size_bytes: Mapped[int]
    # Of the ciphertext: a plain hash of a small record could be guessed.
    ciphertext_sha256: Mapped[str]
    wrapped_key: Mapped[bytes | None]
    created_at: Mapped[CreatedAt]
    shredded_at: Mapped[datetime.datetime | None]
    # Kept by policy until then, and shredded by the sweeper; None: as long as it is in use.
    retain_until: Mapped[datetime.datetime | None]
