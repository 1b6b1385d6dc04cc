"""What `core.pipeline.unlearn` answers: frozen records that state their assumptions."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from core.linearised.sketch import SketchStatistics
from core.statistics import Statistics
from core.vocabulary import Mechanism, Method, RefusalCause, Standing, Tier

AnyStatistics = Statistics | SketchStatistics


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something a bound or a tier rests on, and on whose word."""

    text: str
    standing: Standing


@dataclass(frozen=True, slots=True)
class Bound:
    """One number that bounds (or claims to bound) what is left of the forget set.

    Attributes:
        name: Stable identifier, e.g. `residual_gradient_norm`.
        equation: Where it comes from, e.g. `METHOD (5)`.
        value: The bound, or None where it cannot be computed; then `note` says why.
        certifies: False for what is only reported: the published bounds, estimates.
        note: What a reader has to know beside the number.
        assumptions: What it rests on.
    """

    name: str
    equation: str
    value: float | None
    certifies: bool
    note: str
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True, slots=True)
class GateResult:
    """One test that a request has to pass before anything is written.

    Attributes:
        name: Stable identifier, e.g. `cross_fitted_residual`.
        passed: Whether it passed.
        value: The measured figure; None where there is nothing to measure.
        threshold: What it was held against, set beforehand by policy.
        detail: The finding in words.
    """

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class SolverReport:
    """How a Hessian estimate or a linear solve came about; the status is never dropped.

    Attributes:
        name: Program and method, e.g. `cvxpy/CLARABEL` or `cholesky`.
        status: The solver's own word, e.g. `optimal_inaccurate`, or `direct`.
        figures: Objective, iterations, identifiability and the like.
    """

    name: str
    status: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Score:
    """Loss and accuracy on one set of samples.

    Attributes:
        mean_loss: Per-sample loss without the ridge term, mean over the samples.
        accuracy: Share of samples whose largest output is their class; None for regression.
        n_samples: How many samples it was measured on.
    """

    mean_loss: float
    accuracy: float | None
    n_samples: int


@dataclass(frozen=True, slots=True)
class MembershipInference:
    """How well a loss threshold tells forget samples from holdout samples (METHOD §7).

    A figure near ½ proves nothing for a random forget set: the untouched model scores the same.

    Attributes:
        auc: Area under the ROC curve; ½ is guessing.
        tpr_at_1_percent_fpr: Share of forget samples found when 1 % of the holdout is accused.
    """

    auc: float
    tpr_at_1_percent_fpr: float


@dataclass(frozen=True, slots=True)
class ReconstructionLeak:
    """What the old and the new weights together reveal of the forget samples (METHOD §5).

    Attributes:
        cosine: Largest |cosine| between a forget sample's features and the leading left singular
            vector of ΔW, all that someone without the statistics has.
        cosine_with_statistics: As `cosine`, of H_rΔW: what a thief of the statistics has; None
            without them.
    """

    cosine: float
    cosine_with_statistics: float | None


@dataclass(frozen=True, slots=True)
class PrivacyStatement:
    """An (ε, δ) guarantee and how much of its budget is used.

    Attributes:
        mechanism: Where the noise enters.
        epsilon: ε.
        delta: δ.
        sigma: Standard deviation of the noise.
        measure: Name of the bound that is held against the budget: `residual_gradient_norm` for
            objective perturbation, `distance_to_retraining` for output perturbation.
        limit: Largest value of it that the noise hides.
        spent: Its value at the new weights, all deletions of the lineage included.
        assumptions: What the guarantee rests on beside the bound.
    """

    mechanism: Mechanism
    epsilon: float
    delta: float
    sigma: float
    measure: str
    limit: float
    spent: float
    assumptions: tuple[Assumption, ...]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores before and after.

    Attributes:
        forget_before: On the forget set, with the old weights.
        forget_after: On the forget set, with the new weights.
        holdout_before: On samples that were never trained on; None without a holdout.
        holdout_after: As `holdout_before`, with the new weights.
        retain_loss_before: L(W; D_r) in sum form with the ridge, at the old weights, from
            statistics; None without them.
        retain_loss_after: As `retain_loss_before`, at the new weights.
        weight_change: ‖W_u − W‖_F.
        membership_before: Membership inference at the old weights; None without a holdout.
        membership_after: As `membership_before`, at the new weights.
        reconstruction: What both weights together reveal, as released; None where the change is 0.
        missing: Why something is None, by `holdout`, `retain_loss`, `membership`,
            `reconstruction` or `reference_models` (which LiRA needs, and the service never has).
    """

    forget_before: Score
    forget_after: Score
    holdout_before: Score | None
    holdout_after: Score | None
    retain_loss_before: float | None
    retain_loss_after: float | None
    weight_change: float
    membership_before: MembershipInference | None
    membership_after: MembershipInference | None
    reconstruction: ReconstructionLeak | None
    missing: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Unlearned:
    """The forget set's influence was removed, to the extent that `tier` and `bounds` say.

    Attributes:
        weights: W_u, shape (d, C), float64. With output perturbation a secret of the model.
        release: What may leave the service, shape (d, C), float64: W_u, or W_u with the noise.
        statistics: Downdated statistics of the retain set, or None where none were stored.
        n_samples: n_r = n − n_f.
        gradient_norm_bound: Bound on ‖∇L(W_u; D_r)‖_F to carry to the next deletion.
        tier: Guarantee of this result.
        method: How the retain Hessian was obtained.
        bounds: Every bound, certifying or not.
        gates: Every gate, all passed.
        solvers: Reports of the Hessian estimate and of the linear solve, in order.
        metrics: Scores before and after.
        seeds: Every seed that was used, by purpose.
        assumptions: What the tier rests on.
        privacy: The (ε, δ) guarantee, where noise was declared and the tier has a true bound.
    """

    weights: Tensor
    release: Tensor
    statistics: AnyStatistics | None
    n_samples: int
    gradient_norm_bound: float
    tier: Tier
    method: Method
    bounds: tuple[Bound, ...]
    gates: tuple[GateResult, ...]
    solvers: tuple[SolverReport, ...]
    metrics: Metrics
    seeds: Mapping[str, int]
    assumptions: tuple[Assumption, ...]
    privacy: PrivacyStatement | None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was changed: a gate failed.

    Attributes:
        cause: Coded reason.
        detail: The finding in words, with the figures.
        remedy: What would help.
        tier: Tier that the request was for.
        method: Method that the request was for.
        gates: Every gate that was evaluated, the failed one last.
        seeds: Every seed that was used, by purpose.
    """

    cause: RefusalCause
    detail: str
    remedy: str
    tier: Tier
    method: Method
    gates: tuple[GateResult, ...]
    seeds: Mapping[str, int]
