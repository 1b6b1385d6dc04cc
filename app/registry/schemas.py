"""What clients declare about a model, and what they get to see of it."""

import datetime
import enum
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.registry.models import ModelState
from core.privacy import Privacy
from core.vocabulary import Anchor, Loss, Mechanism, Method, RidgeConvention, Task

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
    strength: Annotated[
        NotNegative, Field(description="λ or α; 0 with `total` and squared loss: least squares")
    ]


class Provenance(enum.StrEnum):
    """What is known of the data behind the frozen backbone; unlearning only reaches the head."""

    PUBLIC = "public"
    DP = "dp"
    UNKNOWN = "unknown"


class BackboneDeclaration(Declared):
    """The frozen feature extractor in front of the head."""

    provenance: Annotated[Provenance, Field(strict=False)] = Provenance.UNKNOWN
    description: Text | None = None


class PrivacyDeclaration(Declared):
    """What hides that a deletion is not quite retraining (METHOD §5)."""

    mechanism: Annotated[
        Mechanism,
        Field(
            strict=False,
            description="objective-perturbation: trained with bᵀw, b kept secret in the statistics'"
            " gradient; output-perturbation: this service adds the noise to all that it serves",
        ),
    ]
    epsilon: Positive
    delta: Annotated[Positive, Field(lt=1, description="Less than 1/n")]
    sigma: Annotated[
        Positive,
        Field(description="Standard deviation of each entry of b, or of the noise on each weight"),
    ]

    def to_core(self) -> Privacy:
        """Return it in the core's words."""
        return Privacy(self.mechanism, self.epsilon, self.delta, self.sigma)


class GateDeclaration(Declared):
    """What estimated deletions of this model are held against; null: the service's setting.

    Only ever as strict as the service's settings or stricter.
    """

    threshold: Annotated[
        Positive | None, Field(description="Refused from this residual estimate on; at most 1")
    ] = None
    splits: Annotated[
        Annotated[int, Field(ge=1, le=1000)] | None,
        Field(description="Random half-splits that the estimate averages"),
    ] = None
    skew_level: Annotated[
        Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None,
        Field(description="Refused when skewed at this level of significance; higher is stricter"),
    ] = None


class PolicyDeclaration(Declared):
    """What the owner allows for this model; null: the service's setting."""

    methods: Annotated[
        Annotated[
            list[Annotated[Method, Field(strict=False)]],
            Field(min_length=1, max_length=len(Method)),
        ]
        | None,
        Field(
            description="Methods that a request may name; null: all that the model's parts allow"
        ),
    ] = None
    gate: GateDeclaration = GateDeclaration()
    anchor: Annotated[
        Annotated[Anchor, Field(strict=False)] | None,
        Field(
            description="move: a deletion forgets the weights that logistic statistics were"
            " collected at; keep: they stay, encrypted, and bounds grow with the net step alone"
        ),
    ] = None


class Manifest(Declared):
    """What a model's owner declares once, at registration."""

    name: Text
    task: Annotated[Task, Field(strict=False)]
    loss: Annotated[
        Loss,
        Field(strict=False, description="logistic: one-vs-rest, for classification only"),
    ] = Loss.SQUARED
    num_features: Annotated[Count, Field(description="d")]
    num_outputs: Annotated[
        Count, Field(description="C; with the logistic loss 1 means two classes, labels 0 and 1")
    ]
    ridge: RidgeDeclaration
    n_samples: Annotated[Count, Field(description="n, size of the training set")]
    feature_norm_bound: Annotated[Positive, Field(description="R_x: ‖x‖₂ ≤ R_x for every sample")]
    training_gradient_norm: Annotated[
        NotNegative,
        Field(description="‖∇L(W; D)‖_F, sum form; attested, used where there are no statistics"),
    ] = 0.0
    training_gradient_tolerance: Annotated[
        Positive,
        Field(
            description="Statistics with ‖∇L(W; D)‖_F beyond it, relative to ‖B‖_F (squared loss)"
            " or n·R_x (logistic), are not of these weights"
        ),
    ] = 1e-6
    surrogate_distance: Annotated[
        NotNegative | None,
        Field(
            description="Declared bound on ‖H̄ − H̄_S‖₂, the mean Hessians without ridge of the"
            " training set and the surrogate at these weights; null where it can only be"
            " estimated, as it is after the first deletion in any case"
        ),
    ] = None
    privacy: PrivacyDeclaration | None = None
    policy: PolicyDeclaration = PolicyDeclaration()
    backbone: BackboneDeclaration = BackboneDeclaration()


class RevisionOut(BaseModel):
    """Weights of a model after a number of deletions."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    n_samples: int
    gradient_norm_bound: float = Field(
        description="Bound on ‖∇L(W; D)‖_F; no noise hides it, and no (ε, δ) guarantee covers it"
    )
    weights_sha256: str = Field(description="Of the file that is served")
    weights_available: bool = Field(description="False once superseded weights were shredded")
    statistics_sha256: str | None = Field(
        description="A keyed digest where noise was declared: the statistics are secret then"
    )
    request_id: uuid.UUID | None = Field(description="The unlearning request that made it")
    created_at: datetime.datetime


class GatePolicyOut(BaseModel):
    """What the next estimated deletion is held against."""

    threshold: float
    splits: int
    skew_level: float


class PolicyOut(BaseModel):
    """What is in force now: the stricter of the manifest's policy and the service's settings."""

    methods: list[Method] = Field(description="What a request may name; the first is the default")
    gate: GatePolicyOut
    anchor: Anchor


class ModelOut(BaseModel):
    """A registered model."""

    id: uuid.UUID
    name: str
    state: ModelState
    state_reason: str | None = Field(description="Why it takes no deletions any more")
    loss: Loss
    manifest: Manifest
    current_revision: int
    has_statistics: bool
    has_surrogate: bool
    has_membership: bool = Field(
        description="Whether the forget samples' membership is checked, or taken on trust"
    )
    privacy: PrivacyDeclaration | None
    policy: PolicyOut
    n_samples: int = Field(description="Size of the training set after all deletions")
    created_at: datetime.datetime
