"""Tier `estimated`: nothing is stored but n, or nothing is used; refused when a gate fails."""

from torch import Tensor

from core import bounds, gate
from core.hessian._estimate import HessianEstimate
from core.hessian.forget_curvature import forget_curvature
from core.hessian.paper_sdp import paper_sdp
from core.newton import NewtonStep, newton_step
from core.perturbation import measure
from core.results import Bound
from core.tiers._deletion import Deletion, Outcome
from core.tiers._exchangeability import require_exchangeable
from core.tiers._inspection import inspect
from core.tiers._worst_case import worst_case
from core.vocabulary import Method, Prior


def run(deletion: Deletion) -> Outcome:
    """Estimate the retain Hessian from the forget samples alone, and take the Newton step.

    Args:
        deletion: An admitted deletion.

    Returns:
        Weights about which nothing is guaranteed, with the worst case.

    Raises:
        GateFailedError: The estimate would do harm, or cannot be judged.
        IllConditionedError: The estimate has no Cholesky factor, or something overflows.
        SolverError: The program of `paper-sdp` ended without a usable solution.
    """
    model = deletion.model
    forget_gradient = deletion.forget_gradient()
    reliability = _foresee_reliability(deletion, forget_gradient)
    estimate = _estimate(deletion)
    deletion.progress("step", 0.6)
    step = newton_step(model.weights, estimate.matrix, forget_gradient)
    reliability = _review_reliability(deletion, estimate, step, forget_gradient, reliability)
    deletion.progress("bound", 0.8)
    seen = inspect(deletion, step.weights)
    found = (*_bounds(deletion, step, reliability), *seen.bounds)
    return Outcome(
        weights=step.weights,
        remaining=seen.remaining,
        bounds=found,
        solvers=(estimate.report, step.report),
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=seen.retain_losses,
    )


def _foresee_reliability(deletion: Deletion, forget_gradient: Tensor) -> float:
    # Estimates are refused before anything dear is computed.
    options = deletion.options
    deletion.gates.append(gate.require_halves(len(deletion.forget)))
    # A prior decides what too few equations leave open.
    open_without_more = options.method is Method.PAPER_SDP and options.prior.kind is Prior.NONE
    if open_without_more and options.gate.require_identified:
        width = deletion.model.weights.shape[0]
        count = options.perturbation.equations(width)
        deletion.gates.append(gate.require_identified(count, width))
    reliability = gate.cross_fitted_residual(
        deletion.model,
        deletion.forget,
        forget_gradient,
        deletion.n_remaining,
        splits=options.gate.splits,
        seed=deletion.seed("gate"),
    )
    deletion.gates.append(gate.require_reliable("cross_fitted_residual", reliability, options.gate))
    # What the estimate takes for granted.
    deletion.gates.append(require_exchangeable(deletion))
    return reliability


def _estimate(deletion: Deletion) -> HessianEstimate:
    model, options = deletion.model, deletion.options
    if options.method is Method.FORGET_CURVATURE:
        deletion.progress("estimate", 0.1)
        return forget_curvature(model, deletion.forget, deletion.n_remaining)
    deletion.progress("perturb", 0.0)
    measured = measure(model, deletion.forget, options.perturbation, deletion.seed("perturbation"))
    deletion.progress("estimate", 0.1)
    return paper_sdp(
        measured,
        model,
        deletion.forget,
        deletion.n_remaining,
        floor=options.floor,
        solver=options.solver,
        prior=options.prior,
    )


def _review_reliability(
    deletion: Deletion,
    estimate: HessianEstimate,
    step: NewtonStep,
    forget_gradient: Tensor,
    reliability: float,
) -> float:
    # (7) is about n_r·H̄_f; what another estimate deviates from it in the step taken comes on top.
    if deletion.options.method is not Method.PAPER_SDP:
        return reliability
    reliability += gate.estimate_deviation(
        forget_hessian=forget_curvature(
            deletion.model, deletion.forget, deletion.n_remaining
        ).matrix,
        estimate=estimate.matrix,
        change=step.weights - deletion.model.weights,
        forget_gradient=forget_gradient,
    )
    deletion.gates.append(
        gate.require_reliable(
            "cross_fitted_residual_of_estimate", reliability, deletion.options.gate
        )
    )
    return reliability


def _bounds(deletion: Deletion, step: NewtonStep, reliability: float) -> tuple[Bound, ...]:
    model = deletion.model
    return (
        *worst_case(deletion, step.weights - model.weights),
        bounds.cross_fitted_estimate(reliability),
        *bounds.published_bounds(model.loss),
    )
