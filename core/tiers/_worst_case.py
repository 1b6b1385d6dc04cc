"""What holds of a step whatever the retain set is, for tiers that do not know its curvature."""

from torch import Tensor

from core import bounds, losses
from core.results import Bound
from core.tiers._deletion import Deletion


def worst_case(deletion: Deletion, change: Tensor) -> tuple[Bound, Bound]:
    """Return the worst case over all retain sets of the declared size and norm.

    It certifies nothing.

    Args:
        deletion: An admitted deletion.
        change: V, shape (d, C), float64: new minus old weights.

    Returns:
        As `core.bounds.worst_case_bounds`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    model = deletion.model
    residual = bounds.worst_case_residual(
        change=change,
        forget_gradient=deletion.forget_gradient(),
        forget_gradient_round_off=deletion.forget_gradient_round_off(),
        n_remaining=deletion.n_remaining,
        ridge=model.ridge,
        feature_norm_bound=deletion.feature_norm_bound,
        training_gradient_bound=model.gradient_norm_bound,
        largest_curvature=losses.OF[model.loss].LARGEST_CURVATURE,
    )
    return bounds.worst_case_bounds(residual, deletion.n_remaining, model.ridge, model.loss)
