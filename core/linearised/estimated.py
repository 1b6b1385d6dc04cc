"""Tier `estimated` for networks: the forget set stands for the retain set (METHOD §4, §6)."""

import torch
from torch import Tensor

from core import bounds, gate
from core.linearised import sketched
from core.linearised.bounds import of_network
from core.linearised.deletion import NetworkDeletion, NetworkOutcome
from core.linearised.exact import admitted_rows
from core.linearised.exchangeability import require_exchangeable
from core.linearised.forget_curvature import ForgetCurvature
from core.linearised.options import HeadSolver
from core.linearised.rows import row_model
from core.linearised.sketch import SketchStatistics
from core.linearised.sketched_curvature import SketchedCurvature
from core.results import AnyStatistics, Bound, GateResult, SolverReport
from core.rounding import PRODUCT_ROUND_OFF
from core.statistics import StoredStatistics


def run(deletion: NetworkDeletion) -> NetworkOutcome:
    """Take the Newton step with the forget set's mean curvature.

    Args:
        deletion: An admitted deletion.

    Returns:
        Weights about which nothing is guaranteed, with the worst case.

    Raises:
        GateFailedError: The estimate would do harm, or cannot be judged.
        IllConditionedError: A kernel has no Cholesky factor, or something overflows.
        SolverError: The system is not solved to its tolerance.
    """
    model = deletion.model
    deletion.gates.append(gate.require_halves(len(deletion.forget)))
    deletion.progress("estimate", 0.1)
    sketch = sketched.downdated_curvature(deletion) if _has_sketch(deletion) else None
    curvature = ForgetCurvature.of(
        model.linearisation,
        deletion.forget.features,
        deletion.n_remaining,
        model.ridge.shift(deletion.n_remaining),
        solver=deletion.solver,
        seed=deletion.seed("perturbation") if deletion.solver is HeadSolver.DIAGONAL else 0,
        preconditioner=None if sketch is None else sketch.precondition,
    )
    reliability = _require_reliable(deletion, curvature)
    deletion.gates.append(_require_exchangeable(deletion))
    deletion.progress("step", 0.6)
    solution = curvature.solve(deletion.forget_gradient())
    weights = model.weights + solution.change
    deletion.progress("bound", 0.8)
    remaining, seen, losses = _inspect(deletion, sketch, weights)
    found = (
        *_worst_case(deletion, weights - model.weights),
        bounds.cross_fitted_estimate(reliability),
        *seen,
    )
    return NetworkOutcome(
        weights=weights,
        remaining=remaining,
        bounds=of_network(found),
        solvers=(_report(curvature), solution.report),
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=losses,
    )


def _require_reliable(deletion: NetworkDeletion, curvature: ForgetCurvature) -> float:
    policy = deletion.options.gate
    reliability = curvature.cross_fitted_residual(
        deletion.forget_gradient(), splits=policy.splits, seed=deletion.seed("gate")
    )
    deletion.gates.append(gate.require_reliable("cross_fitted_residual", reliability, policy))
    return reliability


def _require_exchangeable(deletion: NetworkDeletion) -> GateResult:
    level = deletion.options.gate.skew_level
    if level == 0:
        return gate.skew_not_tested()
    return require_exchangeable(
        deletion.model, deletion.forget, level=level, seed=deletion.seed("skew")
    )


def _worst_case(deletion: NetworkDeletion, change: Tensor) -> tuple[Bound, ...]:
    # Of the retain Hessian nothing but its range is known: the ridge, and what norms allow.
    model, forget_gradient = deletion.model, deletion.forget_gradient()
    size = float(torch.linalg.vector_norm(forget_gradient))
    residual = bounds.worst_case_residual(
        change=change,
        forget_gradient=forget_gradient,
        forget_gradient_round_off=PRODUCT_ROUND_OFF * size,
        n_remaining=deletion.n_remaining,
        ridge=model.ridge,
        feature_norm_bound=deletion.jacobian_norm_bound,
        training_gradient_bound=model.gradient_norm_bound,
    )
    return bounds.worst_case_bounds(residual, deletion.n_remaining, model.ridge, model.loss)


def _has_sketch(deletion: NetworkDeletion) -> bool:
    return isinstance(deletion.statistics, SketchStatistics)


def _inspect(
    deletion: NetworkDeletion, sketch: SketchedCurvature | None, weights: Tensor
) -> tuple[AnyStatistics | None, tuple[Bound, ...], tuple[float, float] | None]:
    # What stored statistics say of a step that was taken without them, and what is stored next.
    if sketch is not None:
        return *sketched.inspect(deletion, sketch, weights), None
    if not isinstance(deletion.statistics, StoredStatistics):
        return None, (), None
    rows = admitted_rows(deletion)
    remaining, ridge = rows.remaining, row_model(deletion.model).ridge
    assert isinstance(remaining, StoredStatistics)  # noqa: S101 - a downdate keeps the kind
    return (
        remaining,
        (bounds.measured_bound(remaining, weights, ridge),),
        (
            remaining.retain_loss(deletion.model.weights, ridge),
            remaining.retain_loss(weights, ridge),
        ),
    )


def _report(curvature: ForgetCurvature) -> SolverReport:
    rows = len(curvature.features) * curvature.linearisation.num_outputs
    figures = {
        "rank_at_most": float(min(rows, curvature.linearisation.num_parameters)),
        "scale": curvature.scale,
    }
    return SolverReport("forget-curvature", "matrix-free", figures)
