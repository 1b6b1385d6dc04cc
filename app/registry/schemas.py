"""What clients declare about a model, and what they get to see of it."""

import datetime
import enum
import math
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from app.registry.models import ModelState
from core.linearised.architectures import Architecture, NetworkSpec, Shape, feature_shape
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
Limit = Annotated[float, Field(gt=-_EXACT, lt=_EXACT, allow_inf_nan=False)]

_MOST_KEYS = 100
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Of a network's lists: dimensions of a sample, or layers of one kind.
_MOST_SIZES = 64
Sizes = Annotated[list[Count], Field(max_length=_MOST_SIZES)]


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
            description="move: a deletion forgets the weights that logistic statistics or a sketch"
            " were collected at; keep: they stay, encrypted, and bounds grow with the net step"
            " alone"
        ),
    ] = None


class SampleKind(enum.StrEnum):
    """What a network's samples are when they arrive."""

    INPUTS = "inputs"  # what the network is fed with; this service computes the frozen layers
    FEATURES = "features"  # what the frozen layers make of it, computed by whoever sends it


class StatisticsKind(enum.StrEnum):
    """What is stored of the Jacobians of a network's training set."""

    GRAM = "gram"  # all of ΣJᵀJ, D² numbers: deletions are exact
    SKETCH = "sketch"  # ΣJᵀJ along some directions: deletions are certified


class NetworkDeclaration(Declared):
    """A network that is linearised in its last layers (METHOD §6): f(x; w) = f(x; w_c) + J(x)w.

    Its weights w_c are the part `network`; what is trained and unlearned is w, the part `weights`.
    """

    architecture: Annotated[Architecture, Field(strict=False)]
    input_shape: Annotated[
        Sizes, Field(min_length=1, description="Of one input, e.g. [1, 28, 28]: no batch")
    ]
    layers: Annotated[Count, Field(description="k, how many of the last layers are linearised")]
    widths: Annotated[Sizes, Field(description="Of the hidden dense layers, in order")] = []
    channels: Annotated[
        Sizes, Field(description="Of the convolutions of `small-cnn`, in order")
    ] = []
    samples: Annotated[
        SampleKind,
        Field(
            strict=False,
            description="features: the frozen layers are not sent, and samples are what these make"
            " of an input",
        ),
    ] = SampleKind.INPUTS
    input_range: Annotated[
        Annotated[list[Limit], Field(min_length=2, max_length=2)] | None,
        Field(description="[lo, hi]: every number of every input lies in it; only for `inputs`"),
    ] = None
    statistics: Annotated[
        StatisticsKind,
        Field(strict=False, description="What the part `statistics` is, where it is sent"),
    ] = StatisticsKind.GRAM
    centre_sha256: Annotated[
        Sha256 | None,
        Field(description="Of the part `network` as it is sent, which is held against it"),
    ] = None
    weights_sha256: Annotated[
        Sha256 | None,
        Field(description="Of the part `weights` as it is sent, which is held against it"),
    ] = None

    def to_core(self, num_outputs: int) -> NetworkSpec:
        """Return it in the core's words.

        Raises:
            InvalidOptionError: There is no such network; what is registered is one.
        """
        return NetworkSpec(
            self.architecture,
            tuple(self.input_shape),
            num_outputs,
            self.layers,
            tuple(self.widths),
            tuple(self.channels),
        )


class Manifest(Declared):
    """What a model's owner declares once, at registration."""

    name: Text
    task: Annotated[Task, Field(strict=False)]
    loss: Annotated[
        Loss,
        Field(strict=False, description="logistic: one-vs-rest, for classification only"),
    ] = Loss.SQUARED
    num_features: Annotated[
        Count,
        Field(description="d; of a network D, the number of parameters that are linearised"),
    ]
    num_outputs: Annotated[
        Count, Field(description="C; with the logistic loss 1 means two classes, labels 0 and 1")
    ]
    ridge: RidgeDeclaration
    n_samples: Annotated[Count, Field(description="n, size of the training set")]
    feature_norm_bound: Annotated[
        Positive,
        Field(description="R_x: ‖x‖₂ ≤ R_x for every sample; of a network R_J with ‖J(x)‖₂ ≤ R_J"),
    ]
    training_gradient_norm: Annotated[
        NotNegative,
        Field(description="‖∇L(W; D)‖_F, sum form; attested, used where there are no statistics"),
    ] = 0.0
    training_gradient_tolerance: Annotated[
        Positive,
        Field(
            description="Statistics with ‖∇L(W; D)‖_F beyond it, relative to ‖B‖_F (squared"
            " loss), n·R_x (logistic) or √(n·trace) (a sketch), are not of these weights"
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
    network: Annotated[
        NetworkDeclaration | None,
        Field(description="null: a linear head, whose samples are features of any backbone"),
    ] = None

    @property
    def sample_shape(self) -> Shape:
        """Return the shape of x of one sample, as requests send it."""
        if self.network is None:
            return (self.num_features,)
        if self.network.samples is SampleKind.INPUTS:
            return tuple(self.network.input_shape)
        return feature_shape(self.network.to_core(self.num_outputs))

    @property
    def sample_width(self) -> int:
        """Return how many numbers x of one sample has."""
        return math.prod(self.sample_shape)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Return the shape of W; the weights of a network are one column."""
        return (self.num_features, self.num_outputs if self.network is None else 1)


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
    network_sha256: str | None = Field(
        description="Of the file of w_c as stored, tensors in the order of safetensors; null for a"
        " linear head"
    )
    has_statistics: bool
    has_surrogate: bool
    has_membership: bool = Field(
        description="Whether the forget samples' membership is checked, or taken on trust"
    )
    privacy: PrivacyDeclaration | None
    policy: PolicyOut
    n_samples: int = Field(description="Size of the training set after all deletions")
    created_at: datetime.datetime
