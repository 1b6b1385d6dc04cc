"""Tier `exact`: squared loss with stored statistics; the Newton step is retraining (METHOD §4)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core import bounds
from core.errors import InvalidOptionError
from core.hessian.stored import statistics_report, stored
from core.newton import expand, newton_step, refine
from core.results import SolverReport
from core.statistics import StoredStatistics
from core.statistics.squared import is_small
from core.tiers._deletion import Deletion, Outcome

# A factor that takes more products with P than this is built anew for the deletions to come.
_GOOD_PRODUCTS = 6


@dataclass(frozen=True, slots=True, eq=False)
class _Solution:
    """Weights with what bounds and losses need of them.

    Attributes:
        weights: W_u, shape (d, C), float64.
        gradient: ∇L(W_u; D_r), computed from the statistics.
        old_gradient: ∇L(W; D_r) at the weights before, likewise.
        evaluation: What rounding the terms of `gradient` can amount to, if it is known.
        remaining: Statistics of the retain set, with the factor for the next deletion.
        solvers: Reports of the Hessian and of the linear solve.
    """

    weights: Tensor
    gradient: Tensor
    old_gradient: Tensor
    evaluation: float | None
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
    found = bounds.exact_bounds(
        remaining, solution.weights, model.ridge, solution.gradient, solution.evaluation
    )
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
    # W + H_r⁻¹∇_f: where the training gradient was 0, and P is exact, nothing is left to correct.
    # The gradient is linear, so that what it was at W follows from how it changes on the way.
    gap = factor.shift - model.ridge.shift(remaining.n_samples)
    if len(forget) < remaining.num_outputs and gap == deletion.forgotten_shift == 0:
        # ∇_f = X_fᵀE, so that products with n_f rows do.
        misfit = torch.addmm(forget.targets, forget.features, model.weights, beta=-1)
        images = forget.features @ factor.inverse
        start = torch.addmm(model.weights, images.T, misfit)
        gradient, changes = remaining.training_gradient_and_change(start, images, model.ridge)
        old_gradient, terms = torch.addmm(gradient, changes.T, misfit, alpha=-1), 1
        target = evaluation = remaining.evaluation_round_off(start, model.ridge)
    else:
        target, evaluation = remaining.evaluation_round_off(model.weights, model.ridge), None
        change, terms = expand(deletion.forget_gradient(), factor.inverse, gap, target)
        start = model.weights + change
        gradient, changes = remaining.training_gradient_and_change(start, change.T, model.ridge)
        old_gradient = gradient - changes.T
    refined = refine(
        start,
        gradient,
        factor.inverse,
        lambda moved: remaining.training_gradient(moved, model.ridge),
        target,
    )
    if refined is None:
        return None
    if refined.corrections + terms > _GOOD_PRODUCTS:
        remaining = remaining.prepare(model.ridge)
    figures = {**refined.report.figures, "terms": terms}
    reports = (statistics_report(remaining), replace(refined.report, figures=figures))
    return _Solution(
        refined.weights,
        refined.gradient,
        old_gradient,
        evaluation if refined.corrections == 0 else None,
        remaining,
        reports,
    )


def _direct(deletion: Deletion, remaining: StoredStatistics) -> _Solution:
    # In O(d³), by a Cholesky factorisation of the retain Hessian.
    model = deletion.model
    old_gradient = remaining.training_gradient(model.weights, model.ridge)
    estimate = stored(remaining, model.ridge)
    step = newton_step(model.weights, estimate.matrix, -old_gradient)
    gradient = remaining.training_gradient(step.weights, model.ridge)
    return _Solution(
        step.weights, gradient, old_gradient, None, remaining, (estimate.report, step.report)
    )
