"""What stored statistics say of a step that another tier took without them."""

from dataclasses import dataclass

from torch import Tensor

from core import bounds
from core.results import Bound
from core.statistics import LogisticStatistics, Statistics, StoredStatistics
from core.tiers._deletion import Deletion
from core.vocabulary import Anchor


@dataclass(frozen=True, slots=True)
class Inspection:
    """What there is to see.

    Attributes:
        remaining: Statistics to store from now on; None where there were none.
        bounds: The true residual, which does not certify; empty without statistics.
        retain_losses: L(W; D_r) before and after; None where the statistics do not tell it.
    """

    remaining: Statistics | None
    bounds: tuple[Bound, ...] = ()
    retain_losses: tuple[float, float] | None = None


def inspect(deletion: Deletion, weights: Tensor) -> Inspection:
    """Look at new weights through the downdated statistics, if any are stored.

    Args:
        deletion: An admitted deletion.
        weights: W_u, shape (d, C), float64.

    Returns:
        The statistics to store, and what they show.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    remaining, model = deletion.remaining, deletion.model
    if isinstance(remaining, StoredStatistics):
        return Inspection(
            remaining,
            (bounds.measured_bound(remaining, weights, model.ridge),),
            (
                remaining.retain_loss(model.weights, model.ridge),
                remaining.retain_loss(weights, model.ridge),
            ),
        )
    if isinstance(remaining, LogisticStatistics):
        expansion = bounds.expand(remaining, weights, model.ridge)
        if deletion.options.anchor is Anchor.MOVE:
            remaining = bounds.move_anchor(remaining, weights, expansion)
        return Inspection(remaining, (bounds.measured_from_expansion(expansion),))
    return Inspection(None)
