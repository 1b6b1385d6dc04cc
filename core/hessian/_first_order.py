r"""Our own solver of (2): accelerated proximal gradients with a certificate, in torch.

The directions δ are whitened, δ̃ = Bᵀδ with (1/m)Σδ̃δ̃ᵀ = I: congruence Z = BZ̃Bᵀ keeps the cone.
Steps are measured in ‖H‖² + θ·tr(H)², because for normal directions the Hessian of (2) is
H ↦ ½H + ¼tr(H)·I: the plain norm would make all other directions d/2 times too slow. The cone's
projection in that norm has a closed form. Memory: four times m·d and about twelve d×d matrices.

The solver stops by its duality gap. The dual of (2) without a prior is

    max_y −⟨b, y⟩ − (m/4)‖y‖²   subject to   A*(y) = ½ Σ y_i δ̃_i δ̃_iᵀ ⪰ 0,

where y = 2r/m of the residuals r is made feasible by adding a multiple of A*(1) = (m/2)·I, and is
then scaled to the best multiple. With a prior the dual is free of constraints,

    −⟨b, y⟩ − (m/4)‖y‖² + w‖K‖² − w‖(K − A*(y)/2w)₊‖².
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from core.errors import SolverError
from core.hessian._program import Program, Solution, quadratic

# Of the objective. Against cvxpy, objectives are compared to 1e-6.
RELATIVE_GAP = 1e-7
# Of the objective at Z = 0: where the equations can all be satisfied the optimum is 0.
ABSOLUTE_GAP = 1e-17
# Of the objective at Z = 0: residuals are differences of numbers of its size, so a gap below this
# is round-off. It is taken for reached when the objective no longer changes either.
ROUND_OFF_GAP = 1e-14
_UNCHANGED = 1e-8
# Beyond this share of the objective at Z = 0, an unfinished solution is no solution.
LARGEST_USABLE_GAP = 1e-4

MAX_ITERATIONS = 20_000
_CHECK_EVERY = 10
_POWER_ITERATIONS = 10
_SAFETY = 1.1
_GROWTH = 1.25
_NEGLIGIBLE = 1e-26


@dataclass(slots=True)
class _Certificate:
    """A lower bound of the optimum, and how far the optimality conditions are from holding."""

    dual: float
    residual: float


@dataclass(frozen=True, slots=True)
class _Scales:
    """What is attained at Z = 0, the floor itself: the objective, and the norm of its gradient."""

    objective: float
    slope: float

    def reached(self, objective: float, dual: float, before: float) -> bool:
        gap = objective - dual
        if gap <= max(RELATIVE_GAP * objective, ABSOLUTE_GAP * self.objective):
            return True
        settled = abs(objective - before) <= _UNCHANGED * objective
        return settled and gap <= ROUND_OFF_GAP * self.objective

    def is_optimal(self, objective: float, gap: float) -> bool:
        # Twice: taking the whitening back moves the last digits.
        return gap <= 2.0 * max(RELATIVE_GAP * objective, ROUND_OFF_GAP * self.objective)


@dataclass(slots=True)
class _Metric:
    """L·(‖H‖²_F + θ·tr(H)²), an upper bound of ⟨H, ∇²f·H⟩."""

    curvature: float
    trace_weight: float

    def size(self, change: Tensor) -> float:
        trace = float(change.diagonal().sum())
        return float(change.square().sum()) + self.trace_weight * trace**2

    def product(self, first: Tensor, second: Tensor) -> float:
        traces = float(first.diagonal().sum()) * float(second.diagonal().sum())
        return float((first * second).sum()) + self.trace_weight * traces

    def project(self, moved: Tensor, trace: float) -> Tensor:
        # argmin over Z ⪰ 0 of ½‖Z − moved‖² + (θ/2)(tr Z − trace)² is (moved − θsI)₊ with
        # s = tr Z − trace: linear in s between the eigenvalues, solved as on the simplex.
        # Returns a square root of Z.
        values: Tensor
        vectors: Tensor
        values, vectors = torch.linalg.eigh(moved)
        falling = values.flip(0)
        counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
        surplus = (falling.cumsum(0) - trace) / (1.0 + self.trace_weight * counts)
        active = int((falling > self.trace_weight * surplus).sum())
        if active == 0:
            return vectors[:, :0]
        level = self.trace_weight * float(surplus[active - 1])
        return vectors[:, -active:] * (values[-active:] - level).clamp(min=0.0).sqrt()


def solve(program: Program) -> Solution:
    """Solve (2) until the duality gap is at most 1e-7 of the objective.

    Where the optimum is 0, or next to it, a relative gap cannot be reached in float64: then to
    1e-17 of the objective at Z = 0, or to 1e-14 of it, which is round-off, once the objective does
    not change by more than 1e-8 of itself in ten iterations.

    Args:
        program: The equations, and the prior if any.

    Returns:
        Z = RRᵀ, positive semidefinite but for round-off, with status `optimal`, or with
        `iteration_limit` where 20,000 iterations did not suffice; then `duality_gap` says how good
        Z is nevertheless. Figures: `iterations`, `duality_gap` (the objective exceeds the optimum
        by at most that, but for round-off), `relative_gap` (over the objective at Z = 0) and
        `kkt_residual` (the larger of −λ_min of the gradient over its norm at Z = 0, and of
        |⟨gradient, Z⟩| over the objective at Z = 0).

    Raises:
        SolverError: The iterations did not come within 1e-4 of the objective at Z = 0.
    """
    unit = float(program.targets.abs().max())
    if program.weight > 0:
        unit = max(unit, float(program.centre.abs().max()))
    if unit == 0:
        # The floor satisfies every equation, and is what the prior draws to.
        return Solution(torch.zeros_like(program.centre), "optimal", _figures(0, 0.0, 0.0, 0.0))
    scaled, basis = _scaled(program, unit)
    scales = _scales(scaled)
    excess, iterations, certificate = _iterate(scaled, scales)
    root = unit**0.5 * (excess if basis is None else basis @ excess)
    solution = root @ root.T
    # Once more, at the solution that leaves: taking the basis back costs digits.
    objective = program.objective(solution) / unit**2
    gap = max(objective - certificate.dual, 0.0)
    relative = gap / scales.objective
    if not relative <= LARGEST_USABLE_GAP:
        raise SolverError(
            f"first-order: ended with status iteration_limit after {iterations} iterations, with "
            f"a duality gap of {relative:.3g} of the objective at the floor"
        )
    status = "optimal" if scales.is_optimal(objective, gap) else "iteration_limit"
    return Solution(
        solution, status, _figures(iterations, gap * unit**2, relative, certificate.residual)
    )


def _figures(iterations: int, gap: float, relative: float, residual: float) -> dict[str, float]:
    return {
        "projected": 0.0,
        "iterations": float(iterations),
        "duality_gap": gap,
        "relative_gap": relative,
        "kkt_residual": residual,
    }


def _scaled(program: Program, unit: float) -> tuple[Program, Tensor | None]:
    # Brings targets and centre to about 1. Without a prior also whitens the directions within
    # their span: outside of it (2) says nothing, and the solution stays at the floor.
    targets, centre = program.targets / unit, program.centre / unit
    if program.weight > 0:
        return replace(program, targets=targets, centre=centre), None
    directions = program.directions
    triangle = torch.linalg.qr(directions, mode="r").R
    _, values, vectors = torch.linalg.svd(triangle, full_matrices=False)
    cut = max(directions.shape) * torch.finfo(values.dtype).eps * float(values[0])
    rank = int((values > cut).sum())
    basis = vectors[:rank].T * (len(directions) ** 0.5 / values[:rank])
    centre = directions.new_zeros(rank, rank)
    return replace(program, directions=directions @ basis, targets=targets, centre=centre), basis


def _scales(program: Program) -> _Scales:
    zero = torch.zeros_like(program.centre)
    slope = _gradient(program, zero, torch.zeros_like(program.targets))
    values = torch.linalg.eigvalsh(slope)
    return _Scales(program.objective(zero), float(values.abs().max()))


def _iterate(program: Program, scales: _Scales) -> tuple[Tensor, int, _Certificate]:
    # Returns a square root R of Z.
    metric = _metric(program)
    excess = previous = torch.zeros_like(program.centre)
    fitted = fitted_before = torch.zeros_like(program.targets)
    momentum, iteration = 1.0, 0
    certificate, before = _Certificate(0.0, math.inf), math.inf
    while iteration < MAX_ITERATIONS:
        iteration += 1
        following = 0.5 + (0.25 + momentum**2) ** 0.5
        factor = (momentum - 1.0) / following
        ahead = excess + factor * (excess - previous)
        fitted_ahead = fitted + factor * (fitted - fitted_before)
        root, moved, fitted_moved = _step(program, metric, ahead, fitted_ahead)
        # Momentum that points uphill is dropped (adaptive restart, O'Donoghue and Candès 2015).
        uphill = metric.product(ahead - moved, moved - excess) > 0
        momentum = 1.0 if uphill else following
        previous, excess = excess, moved
        fitted_before, fitted = fitted, fitted_moved
        if iteration % _CHECK_EVERY == 0 or iteration == MAX_ITERATIONS:
            found = _certify(program, scales, excess, fitted)
            certificate = _Certificate(max(certificate.dual, found.dual), found.residual)
            objective = float((fitted - program.targets).square().mean()) + program.penalty(excess)
            if scales.reached(objective, certificate.dual, before):
                break
            before = objective
    return root, iteration, certificate


def _step(
    program: Program, metric: _Metric, ahead: Tensor, fitted_ahead: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    slope = _gradient(program, ahead, fitted_ahead)
    trace = float(ahead.diagonal().sum())
    while True:
        root = metric.project(ahead - slope / metric.curvature, trace)
        moved = root @ root.T
        fitted = quadratic(program.directions, moved)
        change = moved - ahead
        bend = 2.0 * float((fitted - fitted_ahead).square().mean())
        bend += 2.0 * program.weight * float(change.square().sum())
        # Changes of the size of round-off say nothing about the curvature.
        if bend <= metric.curvature * metric.size(change) or bend <= _NEGLIGIBLE:
            return root, moved, fitted
        metric.curvature *= _GROWTH


def _adjoint(directions: Tensor, dual: Tensor) -> Tensor:
    # A*(y) = ½ Σ y_i δ_i δ_iᵀ
    product = (directions * dual[:, None]).T @ directions
    return 0.25 * (product + product.T)


def _gradient(program: Program, excess: Tensor, fitted: Tensor) -> Tensor:
    dual = (fitted - program.targets) * (2.0 / len(fitted))
    slope = _adjoint(program.directions, dual)
    if program.weight > 0:
        slope.add_(excess - program.centre, alpha=2.0 * program.weight)
    return slope


def _metric(program: Program) -> _Metric:
    directions, width = program.directions, len(program.centre)
    along = 0.5 * float(directions.square().sum(dim=1).square().mean()) / width
    # Power iteration for the largest curvature off the identity, from a start without chance.
    signs = torch.ones_like(program.targets)
    signs[::2] = -1.0
    other, largest = _adjoint(directions, signs), 0.0
    for _ in range(_POWER_ITERATIONS):
        other.diagonal().sub_(float(other.diagonal().sum()) / width)
        size = float(torch.linalg.norm(other))
        if size <= _NEGLIGIBLE:
            break
        fitted = quadratic(directions, other / size)
        other = _adjoint(directions, fitted * (2.0 / len(fitted)))
        largest = float(torch.linalg.norm(other))
    curvature = _SAFETY * (largest if largest > 0 else along) + 2.0 * program.weight
    excess = _SAFETY * along + 2.0 * program.weight
    return _Metric(curvature, max(excess / curvature - 1.0, 0.0) / width)


def _certify(program: Program, scales: _Scales, excess: Tensor, fitted: Tensor) -> _Certificate:
    dual = (fitted - program.targets) * (2.0 / len(fitted))
    slope = _gradient(program, excess, fitted)
    infeasible = max(-float(torch.linalg.eigvalsh(slope)[0]), 0.0)
    if program.weight > 0:
        value = _dual_with_prior(program, dual)
    else:
        value = _dual_without_prior(program, dual + infeasible * (2.0 / len(dual)))
    alignment = abs(float((slope * excess).sum())) / scales.objective
    return _Certificate(value, max(infeasible / scales.slope, alignment))


def _dual_without_prior(program: Program, feasible: Tensor) -> float:
    # The best multiple of a feasible y is feasible as well, and so is 0.
    inner, size = -float(program.targets @ feasible), float(feasible.square().sum())
    return inner**2 / (len(feasible) * size) if inner > 0 and size > 0 else 0.0


def _dual_with_prior(program: Program, dual: Tensor) -> float:
    centre, weight = program.centre, program.weight
    moved = centre - _adjoint(program.directions, dual) / (2.0 * weight)
    values = torch.linalg.eigvalsh(moved).clamp(min=0.0)
    value = -float(program.targets @ dual) - 0.25 * len(dual) * float(dual.square().sum())
    return value + weight * (float(centre.square().sum()) - float(values.square().sum()))
