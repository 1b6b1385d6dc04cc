"""What clients declare about a model, and what they get to see of it."""

import datetime
import enum
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.registry.models import ModelState
from core.vocabulary import Loss, RidgeConvention, Task

# PostgreSQL has no NUL in texts, and a log line no line break.
Text = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Number = Annotated[float, Field(allow_inf_nan=False)]
# Beyond, JSONB gives a float back as an integer, and RFC 8785 has none for the signed records.
_EXACT = 2.0**53
Positive = Annotated[float, Field(gt=0, lt=_EXACT, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, lt=_EXACT, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]

_MOST_KEYS = 100


class Declared(BaseModel):
    """Base of what clients send: nothing unknown, nothing converted on the quiet."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_keys(cls, value: Any) -> Any:
        # Each unknown key becomes an error of its own: megabytes of them would become gigabytes.
        if isinstance(value, dict) and len(value) > _MOST_KEYS:
            raise ValueError(f"{len(value)} keys, and there are only {len(cls.model_fields)}")
        return value


class RidgeDeclaration(Declared):
    """The L2 term of the training objective (METHOD §4, "Ridge convention")."""

    convention: Annotated[RidgeConvention, Field(strict=False)]
    strength: Positive


class Provenance(enum.StrEnum):
    """What is known of the data behind the frozen backbone; unlearning only reaches the head."""

    PUBLIC = "public"
    DP = "dp"
    UNKNOWN = "unknown"


class BackboneDeclaration(Declared):
    """The frozen feature extractor in front of the head."""

    provenance: Annotated[Provenance, Field(strict=False)] = Provenance.UNKNOWN
    description: Text | None = None


class Manifest(Declared):
    """What a model's owner declares once, at registration."""

    name: Text
    task: Annotated[Task, Field(strict=False)]
    loss: Annotated[Loss, Field(strict=False)] = Loss.SQUARED
    num_features: Annotated[Count, Field(description="d")]
    num_outputs: Annotated[Count, Field(description="C")]
    ridge: RidgeDeclaration
    n_samples: Annotated[Count, Field(description="n, size of the training set")]
    feature_norm_bound: Annotated[Positive, Field(description="R_x: ‖x‖₂ ≤ R_x for every sample")]
    training_gradient_norm: Annotated[
        NotNegative,
        Field(description="‖∇L(W; D)‖_F, sum form; attested, used where there are no statistics"),
    ] = 0.0
    training_gradient_tolerance: Annotated[
        Positive,
        Field(description="Statistics with ‖HW − B‖_F / ‖B‖_F beyond it are not of these weights"),
    ] = 1e-6
    backbone: BackboneDeclaration = BackboneDeclaration()


class RevisionOut(BaseModel):
    """Weights of a model after a number of deletions."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    n_samples: int
    gradient_norm_bound: float
    weights_sha256: str
    weights_available: bool = Field(description="False once superseded weights were shredded")
    statistics_sha256: str | None
    request_id: uuid.UUID | None = Field(description="The unlearning request that made it")
    created_at: datetime.datetime


class ModelOut(BaseModel):
    """A registered model."""

    id: uuid.UUID
    name: str
    state: ModelState
    manifest: Manifest
    current_revision: int
    has_statistics: bool
    n_samples: int = Field(description="Size of the training set after all deletions")
    created_at: datetime.datetime
