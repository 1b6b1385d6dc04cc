"""What is left of the forget set: bounds that hold, and published ones that are only reported.

A bound certifies only where every term of METHOD (5) was computed or bounded from what is stored.
"""

import math

import torch
from torch import Tensor

from core.errors import IllConditionedError
from core.problem import Ridge
from core.results import Assumption, Bound
from core.rounding import gamma, upward
from core.statistics import StoredStatistics
from core.vocabulary import Standing

ATTESTED_STATISTICS = Assumption(
    "the stored statistics are those of the training set, summed in float64 with the round-off "
    "that travels with them",
    Standing.ATTESTED,
)
# No computation can show it for a single sample: sums of different data sets may look alike.
ATTESTED_MEMBERSHIP = Assumption(
    "every forget sample is a member of the training set, sent with the target that it was trained "
    "with, and has not been removed before; nothing but the owner's word says so of each one",
    Standing.ATTESTED,
)
ATTESTED_OBJECTIVE = Assumption(
    "the model's training objective is the squared loss with the declared ridge",
    Standing.ATTESTED,
)
ATTESTED_SIZE = Assumption(
    "the training set has the declared number of samples, none longer than the declared norm bound "
    "by more than 1e-6 of it",
    Standing.ATTESTED,
)
ATTESTED_OPTIMUM = Assumption(
    "the training gradient at the weights before the deletion is within the bound on record",
    Standing.ATTESTED,
)
POSSIBLE_DOWNDATE = Assumption(
    "the downdated statistics are positive semidefinite up to round-off", Standing.COMPUTED
)
ROUND_OFF_MODEL = Assumption(
    "float64 arithmetic rounds as IEEE-754 says, in sums of any order, without underflow",
    Standing.ASSUMED,
)
EXCHANGEABLE = Assumption(
    "the forget set is drawn like the retain set (a person or a class is not)", Standing.ASSUMED
)

_EXACT_ASSUMPTIONS = (
    ATTESTED_STATISTICS,
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    POSSIBLE_DOWNDATE,
    ROUND_OFF_MODEL,
)
_WORST_CASE_ASSUMPTIONS = (
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    ATTESTED_SIZE,
    ATTESTED_OPTIMUM,
    ROUND_OFF_MODEL,
)
_NO_CERTIFICATE = "published bound, not a certificate"


def residual_from_statistics(remaining: StoredStatistics, weights: Tensor, ridge: Ridge) -> float:
    r"""Bound ‖∇L(W; D_r)‖_F for the true retain set, from its statistics: METHOD (5) in exact form.

    For squared loss the retain gradient is H_rW − B_r, so nothing has to be expanded around the old
    weights: it is computed, and two errors are added (`training_gradient_round_off`): that of the
    evaluation in float64, and that of the statistics themselves against the samples. At weights
    from (1) with Ĥ = H_r the computed part is round-off as well; it is never taken for 0.

    Args:
        remaining: Statistics of the retain set.
        weights: W, shape (d, C), float64, exactly as they are released.
        ridge: The L2 term.

    Returns:
        A number >= ‖∇L(W; D_r)‖_F, sum form.
    """
    computed = float(torch.linalg.norm(remaining.training_gradient(weights, ridge)))
    return upward(computed + remaining.training_gradient_round_off(weights, ridge))


def worst_case_residual(
    *,
    change: Tensor,
    forget_gradient: Tensor,
    forget_gradient_round_off: float,
    n_remaining: int,
    ridge: Ridge,
    feature_norm_bound: float,
    training_gradient_bound: float,
) -> float:
    r"""Bound ‖∇L(W+V; D_r)‖_F when nothing is known of the retain set but its size and R_x.

    With q = ∇_f and g = ∇L(W; D), the retain gradient at W is g − q and its Hessian is constant, so
    ∇L(W+V; D_r) = g + (H_rV − q). Every retain sample has ‖x‖ ≤ R_x, hence

        aI ⪯ H_r ⪯ bI,   a = shift(n_r),   b = shift(n_r) + n_r·R_x²,

    and H_r = ((a+b)/2)I + Δ with ‖Δ‖₂ ≤ (b−a)/2. The triangle inequality gives

        ‖∇L(W+V; D_r)‖_F ≤ ‖g‖_F + ‖((a+b)/2)V − q‖_F + ((b−a)/2)‖V‖_F.

    For one output some H in that interval attains it: a reflection turns V into any direction. Even
    the best V leaves ((b−a)/(b+a))‖q‖, which is why the `estimated` tier certifies nothing.
    Round-off: a, b, V and ((a+b)/2)V − q take fewer than 8 roundings relative to b‖V‖ + ‖q‖.

    Args:
        change: V, shape (d, C), float64: released minus old weights.
        forget_gradient: ∇_f, shape (d, C), float64, with the forget set's share of the ridge.
        forget_gradient_round_off: Bound on the round-off in `forget_gradient`, Frobenius norm.
        n_remaining: n_r.
        ridge: The L2 term.
        feature_norm_bound: R_x.
        training_gradient_bound: Bound on ‖∇L(W; D)‖_F.

    Returns:
        A number >= ‖∇L(W+V; D_r)‖_F, sum form.
    """
    lowest = ridge.shift(n_remaining)
    half_spread = 0.5 * n_remaining * feature_norm_bound**2
    size = float(torch.linalg.norm(change))
    centred = change.mul(lowest + half_spread).sub_(forget_gradient)
    largest = (lowest + 2.0 * half_spread) * size + float(torch.linalg.norm(forget_gradient))
    return upward(
        training_gradient_bound
        + float(torch.linalg.norm(centred))
        + half_spread * size
        + gamma(8) * largest
        + forget_gradient_round_off
    )


def distance_to_retraining(residual: float, n_remaining: int, ridge: Ridge) -> float:
    """Bound ‖W − W_r*‖_F by METHOD (6): ‖∇L(W; D_r)‖_F over the strong convexity of L(·; D_r).

    X_rᵀX_r ⪰ 0, so the retain objective is at least shift(n_r)-strongly convex.

    Args:
        residual: Bound on ‖∇L(W; D_r)‖_F, sum form.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        residual / shift(n_r).

    >>> from core.vocabulary import RidgeConvention
    >>> round(distance_to_retraining(2.0, 10, Ridge(RidgeConvention.PER_SAMPLE, 0.1)), 4)
    2.0
    """
    return upward(residual / ridge.shift(n_remaining))


def lemma_1(largest_difference: float, num_features: int) -> float:
    """Return the published bound (3) on ‖Ĥ_r − H_r‖_F. It is false (METHOD §2).

    Args:
        largest_difference: ε = max_i |δL_r(δ_i) − δL_f(δ_i)|, which needs the retain data.
        num_features: d.

    Returns:
        2ε√d / (2 + d).

    >>> lemma_1(1.0, 2)
    0.7071067811865476
    """
    return 2.0 * largest_difference * math.sqrt(num_features) / (2.0 + num_features)


def theorem_1(
    *,
    curvature_lipschitz: float,
    gradient_bound: float,
    n_forget: int,
    n_samples: int,
    ridge_strength: float,
    largest_difference: float,
    num_features: int,
) -> float:
    """Return the published bound (4) on ‖∇L(W_u; D_r)‖₂. It is false (METHOD §2).

    Args:
        curvature_lipschitz: γ, Lipschitz constant of ℓ''; 0 for squared loss.
        gradient_bound: C with ‖∇ℓ‖ ≤ C for every sample.
        n_forget: n_f.
        n_samples: n.
        ridge_strength: λ, per sample.
        largest_difference: ε of (3).
        num_features: d.

    Returns:
        4γC²n_f²(n−n_f) / [λ(n−n_f) − 2ε/(2+d)]²; infinity where the bracket is 0.
    """
    n_remaining = n_samples - n_forget
    top = 4.0 * curvature_lipschitz * gradient_bound**2 * n_forget**2 * n_remaining
    bottom = ridge_strength * n_remaining - 2.0 * largest_difference / (2.0 + num_features)
    if bottom == 0:
        return math.inf
    return top / bottom**2


def _finite(residual: float) -> float:
    # JSON and everything that is signed hold finite numbers only.
    if not math.isfinite(residual):
        raise IllConditionedError("residual bound: overflows float64; rescale the features")
    return residual


def _distance_bound(
    name: str,
    residual: float,
    n_remaining: int,
    ridge: Ridge,
    assumptions: tuple[Assumption, ...],
    *,
    certifies: bool,
) -> Bound:
    distance = distance_to_retraining(residual, n_remaining, ridge)
    if not math.isfinite(distance):
        return Bound(name, "METHOD (6)", None, certifies=False, note="overflows: the ridge is tiny")
    return Bound(
        name,
        "METHOD (6)",
        distance,
        certifies=certifies,
        note="the residual over the strong convexity that the ridge gives",
        assumptions=assumptions,
    )


def exact_bounds(remaining: StoredStatistics, weights: Tensor, ridge: Ridge) -> tuple[Bound, Bound]:
    """Return the certifying bounds of tier `exact`: (5), then (6).

    Args:
        remaining: Statistics of the retain set.
        weights: W_u, shape (d, C), float64.
        ridge: The L2 term.

    Returns:
        `residual_gradient_norm` and `distance_to_retraining`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    residual = _finite(residual_from_statistics(remaining, weights, ridge))
    return (
        Bound(
            "residual_gradient_norm",
            "METHOD (5)",
            residual,
            certifies=True,
            note="the retain gradient computed from the statistics, plus bounds on its round-off "
            "and on theirs",
            assumptions=_EXACT_ASSUMPTIONS,
        ),
        _distance_bound(
            "distance_to_retraining",
            residual,
            remaining.n_samples,
            ridge,
            _EXACT_ASSUMPTIONS,
            certifies=True,
        ),
    )


def worst_case_bounds(residual: float, n_remaining: int, ridge: Ridge) -> tuple[Bound, Bound]:
    """Return what is provable in tier `estimated`; it certifies nothing.

    Args:
        residual: From `worst_case_residual`.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        `residual_gradient_norm_worst_case` and `distance_to_retraining_worst_case`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    return (
        Bound(
            "residual_gradient_norm_worst_case",
            "METHOD §3, over all H_r between shift(n_r) and shift(n_r) + n_r·R_x²",
            _finite(residual),
            certifies=False,
            note="holds, but is of the size of the forget gradient itself: it shows no removal",
            assumptions=_WORST_CASE_ASSUMPTIONS,
        ),
        _distance_bound(
            "distance_to_retraining_worst_case",
            residual,
            n_remaining,
            ridge,
            _WORST_CASE_ASSUMPTIONS,
            certifies=False,
        ),
    )


def measured_bound(remaining: StoredStatistics, weights: Tensor, ridge: Ridge) -> Bound:
    """Return the true residual of an estimated step where statistics happen to be stored.

    Args:
        remaining: Statistics of the retain set.
        weights: W_u, shape (d, C), float64.
        ridge: The L2 term.

    Returns:
        `residual_gradient_norm`, not certifying: the tier stays `estimated`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    return Bound(
        "residual_gradient_norm",
        "METHOD (5)",
        _finite(residual_from_statistics(remaining, weights, ridge)),
        certifies=False,
        note="what the estimate left, seen from the statistics; method `stored` would remove it",
        assumptions=_EXACT_ASSUMPTIONS,
    )


def cross_fitted_estimate(reliability: float) -> Bound:
    """Return METHOD (7) beside the bounds: an estimate, which is no bound.

    Args:
        reliability: ρ̂_g that the gate accepted.

    Returns:
        `cross_fitted_residual`, relative to ‖∇_f‖.
    """
    return Bound(
        "cross_fitted_residual",
        "METHOD (7)",
        reliability,
        certifies=False,
        note="an estimate of what this deletion leaves relative to the forget gradient, no bound; "
        "doing nothing scores 1, and what earlier estimates left is not in it",
        assumptions=(EXCHANGEABLE,),
    )


def carried_gradient_norm(found: tuple[Bound, ...]) -> float:
    """Return the bound on ‖∇L(W_u; D_r)‖_F that the next deletion starts from.

    Args:
        found: Bounds of this deletion, of either tier.

    Returns:
        The smallest of the true residual bounds; estimates and published ones do not count.
    """
    true_bounds = ("residual_gradient_norm", "residual_gradient_norm_worst_case")
    return min(
        bound.value for bound in found if bound.name in true_bounds and bound.value is not None
    )


def published_bounds() -> tuple[Bound, Bound]:
    """Return (3) and (4) as the service can report them for squared loss.

    Returns:
        (3) without a value, since ε cannot be observed; (4), which is 0 whatever Ĥ is.
    """
    return (
        Bound(
            "published_lemma_1",
            "METHOD (3)",
            None,
            certifies=False,
            note=f"{_NO_CERTIFICATE}: ε compares losses on the retain set, which is not here, and "
            "the lemma is false",
        ),
        Bound(
            "published_theorem_1",
            "METHOD (4)",
            0.0,
            certifies=False,
            note=f"{_NO_CERTIFICATE}: it is 0 for squared loss whatever the estimate is, since it "
            "leaves out the first-order term of (5)",
        ),
    )
