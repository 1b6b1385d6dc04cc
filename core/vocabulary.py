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
    LOGISTIC = "logistic"  # one-vs-rest; targets are 0 or 1 in each of the C columns


class RidgeConvention(StrEnum):
    """How the ridge strength enters the training objective (METHOD §4)."""

    PER_SAMPLE = "per_sample"  # λ·n/2·‖W‖², the shift shrinks as samples go
    TOTAL = "total"  # α/2·‖W‖², scikit-learn's Ridge(alpha)


class Method(StrEnum):
    """How the retain Hessian is obtained."""

    STORED = "stored"
    SKETCH = "stored-sketch"  # of a mixed-linear network, whose Gram matrix would not fit
    SURROGATE = "surrogate"
    FORGET_CURVATURE = "forget-curvature"
    PAPER_SDP = "paper-sdp"


class Tier(StrEnum):
    """What kind of guarantee a result carries (METHOD §4)."""

    EXACT = "exact"
    CERTIFIED = "certified"
    SURROGATE = "surrogate"
    ESTIMATED = "estimated"


_TIER_OF_STORED: Mapping[Loss, Tier] = {
    Loss.SQUARED: Tier.EXACT,
    Loss.LOGISTIC: Tier.CERTIFIED,
}
_TIER_OF_OTHERS: Mapping[Method, Tier] = {
    Method.SKETCH: Tier.CERTIFIED,
    Method.SURROGATE: Tier.SURROGATE,
}


def tier_of(method: Method, loss: Loss) -> Tier:
    """Return the tier that a method aims at for a loss; there is no other place that knows.

    >>> tier_of(Method.STORED, Loss.LOGISTIC)
    <Tier.CERTIFIED: 'certified'>
    """
    if method is Method.STORED:
        return _TIER_OF_STORED[loss]
    return _TIER_OF_OTHERS.get(method, Tier.ESTIMATED)


class PerturbationLaw(StrEnum):
    """How the perturbations δ_i of stage 1 are drawn."""

    GAUSSIAN = "gaussian"  # the paper's: independent N(0, s²) entries
    ANTITHETIC = "antithetic"  # pairs ±δ, which cancel the linear term exactly


class Floor(StrEnum):
    """Lower bound F of the constraint X ⪰ F in equation (2)."""

    ZERO = "zero"
    RIDGE = "ridge"  # λI, what the ridge guarantees of any retain Hessian
    FORGET = "forget"  # H̄_f, the floor of the authors' own program


class Prior(StrEnum):
    """H_0 of the penalty weight·‖X − H_0‖²_F that may be added to equation (2)."""

    NONE = "none"
    FORGET = "forget"  # H̄_f with the ridge of the mean retain objective


class Mechanism(StrEnum):
    """What hides the residual of a deletion (METHOD §5)."""

    OBJECTIVE = "objective-perturbation"  # trained with bᵀw, b ~ N(0, σ²I), b a secret
    OUTPUT = "output-perturbation"  # every release is W + N(0, σ²I)


class Anchor(StrEnum):
    """What becomes of the weights that logistic statistics were collected at (METHOD §5)."""

    MOVE = "move"  # forgotten with each deletion; the drift is bounded and adds up
    KEEP = "keep"  # stay a secret of the statistics; bounds depend on the sum of all steps alone


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
    FORGET_SET_SKEWED = "forget-set-skewed"
    BUDGET_SPENT = "budget-spent"
    RETRAINING_REQUIRED = "retraining-required"


class Standing(StrEnum):
    """On whose word an assumption of a bound rests."""

    COMPUTED = "computed"
    ATTESTED = "attested"  # by the model's owner
    ASSUMED = "assumed"
