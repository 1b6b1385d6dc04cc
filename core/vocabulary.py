"""The words that the whole project shares, free of torch so that the API can use them too."""

from collections.abc import Mapping
from enum import StrEnum


class Task(StrEnum):
    """What a model's outputs mean."""

    CLASSIFICATION = "classification"  # targets are one-hot rows
    REGRESSION = "regression"  # targets are real rows


class Loss(StrEnum):
    """Per-sample training loss (METHOD §1)."""

    SQUARED = "squared"


class RidgeConvention(StrEnum):
    """How the ridge strength enters the training objective (METHOD §4)."""

    PER_SAMPLE = "per_sample"  # λ·n/2·‖W‖², the shift shrinks as samples go
    TOTAL = "total"  # α/2·‖W‖², scikit-learn's Ridge(alpha)


class Method(StrEnum):
    """How the retain Hessian is obtained."""

    STORED = "stored"
    FORGET_CURVATURE = "forget-curvature"
    PAPER_SDP = "paper-sdp"


class Tier(StrEnum):
    """What kind of guarantee a result carries (METHOD §4)."""

    EXACT = "exact"
    ESTIMATED = "estimated"


# The tier that each method aims at; there is no other place that knows.
TIER_OF: Mapping[Method, Tier] = {
    Method.STORED: Tier.EXACT,
    Method.FORGET_CURVATURE: Tier.ESTIMATED,
    Method.PAPER_SDP: Tier.ESTIMATED,
}


class PerturbationLaw(StrEnum):
    """How the perturbations δ_i of stage 1 are drawn."""

    GAUSSIAN = "gaussian"  # the paper's: independent N(0, s²) entries
    ANTITHETIC = "antithetic"  # pairs ±δ, which cancel the linear term exactly


class Floor(StrEnum):
    """Lower bound F of the constraint X ⪰ F in equation (2)."""

    ZERO = "zero"
    RIDGE = "ridge"  # λI, what the ridge guarantees of any retain Hessian
    FORGET = "forget"  # H̄_f, the floor of the authors' own program


class RefusalCause(StrEnum):
    """Why a request was answered by a refusal record instead of new weights."""

    NOT_IN_TRAINING_SET = "not-in-training-set"
    ALREADY_FORGOTTEN = "already-forgotten"
    DUPLICATE_SAMPLES = "duplicate-samples"
    FORGET_SET_TOO_SMALL = "forget-set-too-small"
    ESTIMATE_UNRELIABLE = "estimate-unreliable"
    ESTIMATE_NOT_IDENTIFIED = "estimate-not-identified"
    ILL_CONDITIONED = "ill-conditioned"
    NOTHING_WOULD_REMAIN = "nothing-would-remain"


class Standing(StrEnum):
    """On whose word an assumption of a bound rests."""

    COMPUTED = "computed"
    ATTESTED = "attested"  # by the model's owner
    ASSUMED = "assumed"
