"""Tier `certified`: logistic loss with stored statistics (METHOD §4, §5).

Always from the anchor of the statistics: one Newton step on their expansion. With `Anchor.KEEP` the
step is the whole way from where they were collected, so any order and batching of deletions gives
the same weights; with `Anchor.MOVE` the anchor is the model's own weights.
"""

from core import bounds
from core.errors import InvalidOptionError
from core.newton import newton_step
from core.results import SolverReport
from core.statistics import LogisticStatistics
from core.tiers._deletion import Deletion, Outcome
from core.vocabulary import Anchor


def run(deletion: Deletion) -> Outcome:
    """Take the Newton step from the anchor, and bound the gradient that it leaves.

    Args:
        deletion: An admitted deletion with downdated statistics.

    Returns:
        New weights, statistics whose anchor moved with them or stayed, and certifying bounds.

    Raises:
        InvalidOptionError: No logistic statistics are stored.
        IllConditionedError: A retain Hessian has no Cholesky factor, or something overflows.
    """
    remaining = deletion.remaining
    if not isinstance(remaining, LogisticStatistics):
        raise InvalidOptionError("method: `stored` needs statistics, and none are stored")
    ridge = deletion.model.ridge
    deletion.progress("estimate", 0.1)
    hessian = remaining.hessian(ridge)
    deletion.progress("step", 0.6)
    step = newton_step(remaining.anchor, hessian, -remaining.training_gradient(ridge))
    del hessian
    deletion.progress("bound", 0.8)
    expansion = bounds.expand(remaining, step.weights, ridge)
    found = bounds.certified_bounds(expansion, deletion.n_remaining, ridge)
    if deletion.options.anchor is Anchor.MOVE:
        remaining = bounds.move_anchor(remaining, step.weights, expansion)
    return Outcome(
        weights=step.weights,
        remaining=remaining,
        bounds=found,
        solvers=(SolverReport("logistic-statistics", "direct", {}), step.report),
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=None,
    )
