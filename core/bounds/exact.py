"""Squared loss with stored statistics: the retain gradient is computed, not expanded."""

import torch
from torch import Tensor

from core.bounds._assumptions import EXACT_ASSUMPTIONS
from core.bounds._parts import distance_bound, finite
from core.problem import Ridge
from core.results import Bound
from core.rounding import upward
from core.statistics import StoredStatistics


def residual_from_statistics(
    remaining: StoredStatistics,
    weights: Tensor,
    ridge: Ridge,
    gradient: Tensor | None = None,
    evaluation: float | None = None,
) -> float:
    r"""Bound ‖∇L(W; D_r)‖_F for the true retain set, from its statistics: METHOD (5) in exact form.

    For squared loss the retain gradient is H_rW − B_r, so nothing has to be expanded around the old
    weights: it is computed, and two errors are added (`training_gradient_round_off`): that of the
    evaluation in float64, and that of the statistics themselves against the samples. At weights
    from (1) with Ĥ = H_r the computed part is round-off as well; it is never taken for 0.

    Args:
        remaining: Statistics of the retain set.
        weights: W, shape (d, C), float64, exactly as they are released.
        ridge: The L2 term.
        gradient: `remaining.training_gradient(weights, ridge)`, if it has been computed before.
        evaluation: `remaining.evaluation_round_off(weights, ridge)`, likewise.

    Returns:
        A number >= ‖∇L(W; D_r)‖_F, sum form.
    """
    if gradient is None:
        gradient = remaining.training_gradient(weights, ridge)
    computed = float(torch.linalg.norm(gradient))
    return upward(computed + remaining.training_gradient_round_off(weights, ridge, evaluation))


def exact_bounds(
    remaining: StoredStatistics,
    weights: Tensor,
    ridge: Ridge,
    gradient: Tensor | None = None,
    evaluation: float | None = None,
) -> tuple[Bound, Bound]:
    """Return the certifying bounds of tier `exact`: (5), then (6).

    Args:
        remaining: Statistics of the retain set.
        weights: W_u, shape (d, C), float64.
        ridge: The L2 term.
        gradient: As for `residual_from_statistics`.
        evaluation: Likewise.

    Returns:
        `residual_gradient_norm` and `distance_to_retraining`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    residual = finite(residual_from_statistics(remaining, weights, ridge, gradient, evaluation))
    return (
        Bound(
            "residual_gradient_norm",
            "METHOD (5)",
            residual,
            certifies=True,
            note="the retain gradient computed from the statistics, plus bounds on its round-off "
            "and on theirs",
            assumptions=EXACT_ASSUMPTIONS,
        ),
        distance_bound(
            "distance_to_retraining",
            residual,
            remaining.n_samples,
            ridge,
            EXACT_ASSUMPTIONS,
            certifies=True,
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
        finite(residual_from_statistics(remaining, weights, ridge)),
        certifies=False,
        note="what the estimate left, seen from the statistics; method `stored` would remove it",
        assumptions=EXACT_ASSUMPTIONS,
    )
