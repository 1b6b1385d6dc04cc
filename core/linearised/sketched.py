r"""Tier `certified` for networks: a sketch of the Gauss–Newton matrix is stored (METHOD §6).

The step goes from the sketch's anchor: V = −A⁻¹g_r with the retain gradient g_r there, and leaves

    ∇L(anchor + V; D_r) = [g_r + AV] + (H_r − A)V,

of which the bracket is computed, and (8) bounds the rest.
"""

import dataclasses
import math

import torch
from torch import Tensor

from core import bounds, gate
from core.errors import InvalidOptionError
from core.gate import GateFailedError
from core.linearised.bounds import sketch_bounds
from core.linearised.deletion import NetworkDeletion, NetworkOutcome
from core.linearised.sketch import SketchStatistics
from core.linearised.sketched_curvature import SketchedCurvature
from core.problem import Ridge
from core.results import Bound, GateResult, SolverReport
from core.rounding import PRODUCT_ROUND_OFF, UNIT_ROUND_OFF, upward
from core.vocabulary import Anchor, RefusalCause

_BETTER = (
    "collect a sketch of a higher rank, or along a basis from public data, train with a stronger "
    "ridge, or retrain"
)


def run(deletion: NetworkDeletion) -> NetworkOutcome:
    """Take the step that the sketch's curvature gives, and bound the gradient that it leaves.

    Args:
        deletion: An admitted deletion.

    Returns:
        New weights, the downdated sketch and certifying bounds.

    Raises:
        InvalidOptionError: No sketch is stored.
        GateFailedError: The bound says no more than doing nothing, or the forget set cannot have
            been in the training set.
        StatisticsMismatchError: The forget set cannot have been in the training set.
        IllConditionedError: The sketch's core has no Cholesky factor, or something overflows.
    """
    ridge = deletion.model.ridge
    deletion.progress("estimate", 0.1)
    curvature = downdated_curvature(deletion)
    remaining = curvature.statistics
    deletion.progress("step", 0.6)
    change, report = curvature.solve(-remaining.gradient(ridge))
    deletion.progress("bound", 0.8)
    view = SketchView.at(curvature, ridge, change)
    deletion.gates.append(_require_informative(deletion, view))
    found = sketch_bounds(view.residual, deletion.n_remaining, ridge, certifies=True)
    weights = remaining.anchor + change
    if deletion.options.anchor is Anchor.MOVE:
        remaining = view.moved(weights)
    return NetworkOutcome(
        weights=weights,
        remaining=remaining,
        bounds=found,
        solvers=(sketch_report(remaining), report),
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=None,
    )


def downdated_curvature(deletion: NetworkDeletion) -> SketchedCurvature:
    """Return what the sketch says of the retain set, once the forget set can have been trained on.

    Args:
        deletion: From a network with a stored sketch.

    Returns:
        The curvature that the downdated sketch tells.

    Raises:
        InvalidOptionError: No sketch is stored.
        GateFailedError: The rest would have more curvature than the declared norms allow.
        StatisticsMismatchError: The forget set cannot have been in the training set.
        IllConditionedError: The sketch's core has no Cholesky factor.
    """
    statistics = deletion.statistics
    if not isinstance(statistics, SketchStatistics):
        raise InvalidOptionError("method: `stored-sketch` needs a sketch, and none is stored")
    linearisation = deletion.model.linearisation
    remaining = statistics.downdate(linearisation, deletion.forget)
    deletion.gates.append(gate.downdate_passed())
    limit = upward(
        deletion.n_remaining * linearisation.num_outputs * deletion.jacobian_norm_bound**2
    )
    result = GateResult(
        "rest_is_possible",
        remaining.trace <= limit,
        remaining.trace,
        limit,
        f"the squared norms of the remaining samples' Jacobians add up to {remaining.trace:.6g}",
    )
    if not result.passed:
        raise GateFailedError(
            result,
            RefusalCause.NOT_IN_TRAINING_SET,
            "send the samples exactly as the network was trained on them",
        )
    deletion.gates.append(result)
    return SketchedCurvature.of(remaining, deletion.model.ridge)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SketchView:
    """What a sketch sees of a step from its anchor.

    Attributes:
        statistics: Of the retain set.
        ridge: The L2 term.
        gradient: g_r + AV, the part of the retain gradient that it tells, shape (D, 1), float64.
        error: Bound on the part that it does not: ‖(H_r − A)V‖ by (8), and rounding.
        untouched: ‖g_r‖, what doing nothing since the anchor leaves, as far as it is known.
    """

    statistics: SketchStatistics
    ridge: Ridge
    gradient: Tensor
    error: float
    untouched: float

    @classmethod
    def at(cls, curvature: SketchedCurvature, ridge: Ridge, change: Tensor) -> "SketchView":
        """Look at a step that does not depend on the sketch's error probes.

        Args:
            curvature: A.
            ridge: The L2 term.
            change: V, shape (D, 1), float64.

        Returns:
            The view.
        """
        statistics = curvature.statistics
        gradient, product = statistics.gradient(ridge), curvature.times(change)
        error = curvature.error(change) + _rounding(statistics, ridge, change, gradient, product)
        untouched = float(torch.linalg.vector_norm(gradient))
        return cls(statistics, ridge, gradient.add_(product), upward(error), untouched)

    @property
    def own(self) -> float:
        """Return a bound on what this step leaves of the gradient that it set out to remove."""
        return upward(float(torch.linalg.vector_norm(self.gradient)) + self.error)

    @property
    def residual(self) -> float:
        """Return a bound on ‖∇L‖ at the end of the step, what earlier ones left included."""
        return upward(self.own + self.statistics.gradient_uncertainty)

    def moved(self, weights: Tensor) -> SketchStatistics:
        """Return the statistics with the end of the step as their anchor.

        Args:
            weights: There, shape (D, 1), float64.

        Returns:
            New statistics, whose gradient is as uncertain as the sketch was about the step.
        """
        statistics = self.statistics
        shift = self.ridge.shift(statistics.n_samples)
        return dataclasses.replace(
            statistics,
            anchor=weights,
            data_gradient=torch.sub(self.gradient, weights, alpha=shift),
            gradient_uncertainty=upward(statistics.gradient_uncertainty + self.error),
        )


def inspect(
    deletion: NetworkDeletion, curvature: SketchedCurvature, weights: Tensor
) -> tuple[SketchStatistics, tuple[Bound, ...]]:
    """Look at weights that another tier found through a stored sketch.

    Args:
        deletion: An admitted deletion from a network with a sketch.
        curvature: What the downdated sketch tells.
        weights: w_u, shape (D, 1), float64; they depend on the sketch but for its error probes.

    Returns:
        The sketch to store from now on, and the residual as it tells it, which does not certify.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    ridge, remaining = deletion.model.ridge, curvature.statistics
    view = SketchView.at(curvature, ridge, weights - remaining.anchor)
    found = sketch_bounds(view.residual, deletion.n_remaining, ridge, certifies=False)
    if deletion.options.anchor is Anchor.MOVE:
        remaining = view.moved(weights)
    return remaining, found


def sketch_report(statistics: SketchStatistics) -> SolverReport:
    """Say what the sketch is.

    Args:
        statistics: The sketch.

    Returns:
        A report with `rank`, `error_probes` and whether a `chosen_basis` spans it.
    """
    figures = {
        "rank": float(statistics.rank),
        "error_probes": float(statistics.error_probes),
        "chosen_basis": float(statistics.basis is not None),
    }
    return SolverReport("stored-sketch", "direct", figures)


def _rounding(
    statistics: SketchStatistics, ridge: Ridge, change: Tensor, gradient: Tensor, product: Tensor
) -> float:
    # Of products and sums, also where what was summed has cancelled, as it has at an optimum; and
    # of anchor + V, which the curvature multiplies.
    norm, shift = torch.linalg.vector_norm, ridge.shift(statistics.n_samples)
    anchor = float(norm(statistics.anchor))
    summed = float(norm(gradient) + norm(product) + norm(statistics.data_gradient)) + shift * anchor
    moved = UNIT_ROUND_OFF * (anchor + float(norm(change)))
    return PRODUCT_ROUND_OFF * summed + (shift + statistics.trace) * moved


def _require_informative(deletion: NetworkDeletion, view: SketchView) -> GateResult:
    # Else it would certify what doing nothing leaves as well. What earlier deletions left is in
    # the certified residual, but no reason to leave these samples in.
    threshold, size = deletion.options.gate.threshold, view.untouched
    ratio = view.own / size if size != 0 else 0.0
    result = GateResult(
        "bound_says_something",
        ratio < threshold,  # False for NaN
        ratio if math.isfinite(ratio) else None,
        threshold,
        f"the bound on what is left is {ratio:.3g} of what doing nothing leaves; earlier deletions "
        f"left at most {view.statistics.gradient_uncertainty:.3g} beside",
    )
    if not result.passed:
        raise GateFailedError(result, RefusalCause.ESTIMATE_UNRELIABLE, _BETTER)
    return result
