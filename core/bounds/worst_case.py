"""What is provable when nothing is stored: the worst case over all retain sets."""

import torch
from torch import Tensor

from core.bounds._assumptions import EXCHANGEABLE, WORST_CASE_ASSUMPTIONS
from core.bounds._parts import distance_bound, finite
from core.problem import Ridge
from core.results import Bound
from core.rounding import gamma, upward
from core.vocabulary import Loss


def worst_case_residual(
    *,
    change: Tensor,
    forget_gradient: Tensor,
    forget_gradient_round_off: float,
    n_remaining: int,
    ridge: Ridge,
    feature_norm_bound: float,
    training_gradient_bound: float,
    largest_curvature: float = 1.0,
) -> float:
    r"""Bound ‖∇L(W+V; D_r)‖_F when nothing is known of the retain set but its size and R_x.

    With q = ∇_f and g = ∇L(W; D), the retain gradient at W is g − q. With H_r its mean Hessian on
    the way from W to W+V, an output at a time (for squared loss it is constant), ∇L(W+V; D_r) =
    g + (H_rV − q). Every retain sample has ‖x‖ ≤ R_x and 0 ≤ ℓ'' ≤ ℓ''_max, hence

        aI ⪯ H_r ⪯ bI,   a = shift(n_r),   b = shift(n_r) + ℓ''_max·n_r·R_x²,

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
        largest_curvature: ℓ''_max: 1 for squared loss, which is safe for both, ¼ for logistic.

    Returns:
        A number >= ‖∇L(W+V; D_r)‖_F, sum form.
    """
    lowest = ridge.shift(n_remaining)
    half_spread = 0.5 * largest_curvature * n_remaining * feature_norm_bound**2
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


def worst_case_bounds(
    residual: float, n_remaining: int, ridge: Ridge, loss: Loss = Loss.SQUARED
) -> tuple[Bound, Bound]:
    """Return what is provable in tier `estimated`; it certifies nothing.

    Args:
        residual: From `worst_case_residual`.
        n_remaining: n_r.
        ridge: The L2 term.
        loss: Per-sample loss, which the assumptions name.

    Returns:
        `residual_gradient_norm_worst_case` and `distance_to_retraining_worst_case`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    return (
        Bound(
            "residual_gradient_norm_worst_case",
            "METHOD §3, over all H_r between shift(n_r) and shift(n_r) + ℓ''_max·n_r·R_x²",
            finite(residual),
            certifies=False,
            note="holds, but is of the size of the forget gradient itself: it shows no removal",
            assumptions=WORST_CASE_ASSUMPTIONS[loss],
        ),
        distance_bound(
            "distance_to_retraining_worst_case",
            residual,
            n_remaining,
            ridge,
            WORST_CASE_ASSUMPTIONS[loss],
            certifies=False,
        ),
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
