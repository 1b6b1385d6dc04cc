"""Tier `exact`: squared loss with stored statistics; the Newton step is retraining (METHOD §4)."""

from dataclasses import dataclass

from torch import Tensor

from core import bounds
from core.errors import InvalidOptionError
from core.hessian.stored import statistics_report, stored
from core.newton import newton_step, refine
from core.results import SolverReport
from core.statistics import StoredStatistics
from core.statistics.squared import is_small
from core.tiers._deletion import Deletion, Outcome

# A factor that takes more corrections than this is built anew for the deletions to come.
_GOOD_CORRECTIONS = 5


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """Weights with what bounds and losses need of them.

    Attributes:
        weights: W_u, shape (d, C), float64.
        gradient: ∇L(W_u; D_r), computed from the statistics.
        old_gradient: ∇L(W; D_r) at the weights before, likewise.
        remaining: Statistics of the retain set, with the factor for the next deletion.
        solvers: Reports of the Hessian and of the linear solve.
    """

    weights: Tensor
    gradient: Tensor
    old_gradient: Tensor
    remaining: StoredStatistics
    solvers: tuple[SolverReport, ...]


def run(deletion: Deletion) -> Outcome:
    """Move the weights to the optimum of the retained statistics.

    Args:
        deletion: An admitted deletion with downdated statistics.

    Returns:
        Weights that equal retraining to round-off, with computed bounds.

    Raises:
        InvalidOptionError: No statistics are stored.
        IllConditionedError: The retain Hessian has no Cholesky factor, or something overflows.
    """
    remaining = deletion.remaining
    if not isinstance(remaining, StoredStatistics):
        raise InvalidOptionError("method: `stored` needs statistics, and none are stored")
    model = deletion.model
    deletion.progress("estimate", 0.1)
    if remaining.factor is None and is_small(len(deletion.forget), remaining.num_features):
        remaining = remaining.prepare(model.ridge)
    deletion.progress("step", 0.6)
    solution = _refined(deletion, remaining) or _direct(deletion, remaining)
    deletion.progress("bound", 0.8)
    remaining = solution.remaining
    found = bounds.exact_bounds(remaining, solution.weights, model.ridge, solution.gradient)
    return Outcome(
        weights=solution.weights,
        remaining=remaining,
        bounds=found,
        solvers=solution.solvers,
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=(
            remaining.retain_loss(model.weights, model.ridge, solution.old_gradient),
            remaining.retain_loss(solution.weights, model.ridge, solution.gradient),
        ),
        # The gradient is linear in the weights.
        hessian_change=solution.gradient - solution.old_gradient,
    )


def _refined(deletion: Deletion, remaining: StoredStatistics) -> _Solution | None:
    # In O(d²) from the stored factor; None where it is missing or of no use.
    factor = remaining.factor
    if factor is None:
        return None
    model, forget = deletion.model, deletion.forget
    weights = model.weights
    start = weights
    if len(forget) < remaining.num_outputs:
        # H_r⁻¹∇_f without the ridge's share, in one product with n_f rows: with `total` and an
        # exact inverse nothing is left to correct.
        misfit = forget.features @ weights - forget.targets
        start = weights + (misfit.T @ (forget.features @ factor.inverse)).T
    gradient, old_gradient = remaining.training_gradients((start, weights), model.ridge)
    refined = refine(
        start,
        gradient,
        factor.inverse,
        lambda moved: remaining.training_gradient(moved, model.ridge),
        remaining.evaluation_round_off(weights, model.ridge),
    )
    if refined is None:
        return None
    if refined.corrections > _GOOD_CORRECTIONS:
        remaining = remaining.prepare(model.ridge)
    reports = (statistics_report(remaining), refined.report)
    return _Solution(refined.weights, refined.gradient, old_gradient, remaining, reports)


def _direct(deletion: Deletion, remaining: StoredStatistics) -> _Solution:
    # In O(d³), by a Cholesky factorisation of the retain Hessian.
    model = deletion.model
    old_gradient = remaining.training_gradient(model.weights, model.ridge)
    estimate = stored(remaining, model.ridge)
    step = newton_step(model.weights, estimate.matrix, -old_gradient)
    gradient = remaining.training_gradient(step.weights, model.ridge)
    return _Solution(
        step.weights, gradient, old_gradient, remaining, (estimate.report, step.report)
    )
