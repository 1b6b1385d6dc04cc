"""Every setting of the service, read from the environment or `.env`; names as in `.env.example`."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.vocabulary import Anchor


class Settings(BaseSettings):
    """One typed place for what an operator may choose."""

    # URLs may hold passwords, so neither errors nor representations quote them.
    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: str = Field(
        repr=False, description="postgresql+psycopg://user:password@host/database"
    )
    redis_url: str = Field(repr=False, description="redis://host:6379/0, or unix:///path/to/socket")
    artifacts_url: str = Field(
        repr=False, description="fsspec location of encrypted artifacts, e.g. file:///data"
    )
    master_key_file: Path = Field(description="32 random bytes, base64: wraps every artifact's key")
    signing_key_file: Path = Field(
        description="Ed25519 private key, PEM: signs records, checkpoints"
    )

    log_origin: str = Field(
        "lethe.local/audit", description="Name of this audit log on checkpoints"
    )
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="Larger bodies are answered 413")
    max_features: PositiveInt = Field(
        8192, description="Largest d of a linear head, and D of a network with Gram statistics"
    )
    max_parameters: PositiveInt = Field(
        2**20, description="Largest D, parameters of a network that are linearised"
    )
    max_outputs: PositiveInt = Field(4096, description="Largest C that a manifest may declare")
    lease_seconds: PositiveFloat = Field(
        30.0, description="A worker silent for so long is replaced"
    )
    sweep_seconds: PositiveFloat = Field(
        5.0, description="How often forgotten doorbells ring again"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where workers compute; auto: on a GPU where there is one"
    )
    max_attempts: PositiveInt = Field(
        3, description="A request that broke so many workers has failed"
    )
    keep_superseded_weights: bool = Field(
        default=False, description="Keep old weights; whoever holds both can reconstruct a record"
    )
    gate_threshold: PositiveFloat = Field(
        1.0, le=1.0, description="Estimated deletions are refused from this residual estimate on"
    )
    gate_splits: PositiveInt = Field(8, description="Random half-splits that the gate averages")
    gate_skew_level: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Estimated deletions are refused when the forget set differs from the training"
        " set at this level of significance; 0 switches the tests off",
    )
    largest_epsilon: PositiveFloat = Field(
        10.0, description="Largest ε that a manifest's privacy may declare"
    )
    statistics_anchor: Anchor = Field(
        Anchor.MOVE,
        description="What becomes of the weights that logistic statistics or a sketch were"
        " collected at, where a manifest does not say",
    )


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings, read once.

    Raises:
        pydantic.ValidationError: A setting is missing or malformed; the message names it.
    """
    return Settings()  # Values come from the environment.
