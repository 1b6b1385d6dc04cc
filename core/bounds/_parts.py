"""What several bounds have in common: finiteness, METHOD (6), and what the next step carries."""

import math

from core.errors import IllConditionedError
from core.problem import Ridge
from core.results import Assumption, Bound
from core.rounding import upward


def distance_to_retraining(residual: float, n_remaining: int, ridge: Ridge) -> float:
    """Bound ‖W − W_r*‖_F by METHOD (6): ‖∇L(W; D_r)‖_F over the strong convexity of L(·; D_r).

    X_rᵀX_r ⪰ 0, so the retain objective is at least shift(n_r)-strongly convex.

    Args:
        residual: Bound on ‖∇L(W; D_r)‖_F, sum form.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        residual / shift(n_r); infinity without a ridge.

    >>> from core.vocabulary import RidgeConvention
    >>> round(distance_to_retraining(2.0, 10, Ridge(RidgeConvention.PER_SAMPLE, 0.1)), 4)
    2.0
    """
    convexity = ridge.shift(n_remaining)
    return upward(residual / convexity) if convexity > 0 else math.inf


def finite(residual: float) -> float:
    # JSON and everything that is signed hold finite numbers only.
    if not math.isfinite(residual):
        raise IllConditionedError("residual bound: overflows float64; rescale the features")
    return residual


def distance_bound(
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
        why = "overflows: the ridge is tiny"
        if ridge.shift(n_remaining) == 0:
            why = "without a ridge nothing is known of the curvature in every direction"
        return Bound(name, "METHOD (6)", None, certifies=False, note=why)
    return Bound(
        name,
        "METHOD (6)",
        distance,
        certifies=certifies,
        note="the residual over the strong convexity that the ridge gives",
        assumptions=assumptions,
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
