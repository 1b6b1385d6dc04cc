"""Method `paper-sdp`: the published estimator, METHOD (2) in its mean-matched form.

arXiv 2508.15127 fits a positive semidefinite X to the differences of the forget loss. Divided by
the set sizes (as printed, with sums, it overshoots by n_r/n_f), eq. (2) is

    min_X̄ (1/m) Σ_i ( ½⟨δ_i, X̄δ_i⟩ − (n_f/n_r)⟨∇̄_f, δ_i⟩ − δL̄_f(δ_i) )²   subject to X̄ ⪰ F,

and Ĥ = n_r·X̄. With X̄ = F + Z the variable is Z ⪰ 0. A prior adds weight·q·‖X̄ − H_0‖²_F, where q is
the mean square of the equations' coefficients ½δ_jδ_k: then (2) has one solution whatever m is.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core import curvature, losses
from core.errors import SolverError
from core.hessian import _cvxpy_program, _first_order
from core.hessian._estimate import HessianEstimate
from core.hessian._program import Program, Solution, quadratic
from core.options import PriorOptions, SdpSolver, unknowns
from core.perturbation import LossDifferences
from core.problem import LinearModel, SampleSet
from core.results import SolverReport
from core.vocabulary import Floor, Prior

# From best to worst: the worst of the outputs' programs is reported.
_STATUSES = ("optimal", "optimal_inaccurate", "iteration_limit")


def paper_sdp(
    measured: LossDifferences,
    model: LinearModel,
    forget: SampleSet,
    n_remaining: int,
    *,
    floor: Floor,
    solver: SdpSolver,
    prior: PriorOptions | None = None,
) -> HessianEstimate:
    """Solve (2), once for squared loss and once an output for logistic loss.

    Args:
        measured: Directions δ_i and what ½⟨δ_i, X̄δ_i⟩ has to match, from `perturbation.measure`.
        model: W, its loss and its ridge.
        forget: D_f, needed for the floor and the prior `forget`.
        n_remaining: n_r.
        floor: F: 0, the ridge of the mean retain Hessian, or H̄_f with that ridge.
        solver: Our own (`core.hessian._first_order`), or a program that cvxpy calls.
        prior: H_0 and its weight; None is no prior.

    Returns:
        Ĥ = n_r·X̄, shape (d, d), or (C, d, d) for logistic loss, and the solver's report: `programs`
        solved, `equations` m, `unknowns` d(d+1)/2, `identified` (0 where neither the equations are
        as many as the unknowns nor a prior decides: then a solver says `optimal` for one of many
        solutions), `misfit` (mean squared residual of X̄ as returned), `objective` (with the prior's
        penalty), `projected` (how far the solver's Z was from the cone, relative to its largest
        eigenvalue), `iterations` and, of our own solver, `duality_gap`, `relative_gap` and
        `kkt_residual`. Of several programs the worst status and the largest figures are reported,
        and the iterations of all.

    Raises:
        SolverError: The solver ended without a usable solution, and the message has its status; or
            the equations overflow or vanish.
    """
    lowest = _floor_matrix(floor, model, forget, n_remaining)
    wanted = prior if prior is not None else PriorOptions()
    centre = torch.zeros_like(lowest)
    if wanted.kind is Prior.FORGET:
        centre = _floor_matrix(Floor.FORGET, model, forget, n_remaining) - lowest
    outputs = 1 if measured.curvatures.ndim == 1 else measured.curvatures.shape[1]
    power = _power(measured.directions)
    solutions = [
        _solve(
            _program(measured, lowest, centre, wanted, output=output, power=power), power, solver
        )
        for output in range(outputs)
    ]
    excess = torch.stack([solution.excess for solution in solutions])
    matrix = lowest + (excess if lowest.ndim == excess.ndim else excess[0])
    figures = _figures(measured.directions, wanted, solutions)
    status = max((solution.status for solution in solutions), key=_STATUSES.index)
    name = "first-order" if solver == "FIRST_ORDER" else f"cvxpy/{solver}"
    return HessianEstimate(n_remaining * matrix, SolverReport(name, status, figures))


def _floor_matrix(floor: Floor, model: LinearModel, forget: SampleSet, n_remaining: int) -> Tensor:
    matrix = losses.OF[model.loss].hessian(model.weights, forget.features).div_(len(forget))
    if floor is not Floor.FORGET:
        matrix.zero_()
    if floor is not Floor.ZERO:
        curvature.shift(matrix, model.ridge.mean_shift(n_remaining))
    return matrix


def _power(directions: Tensor) -> float:
    power = float(directions.square().mean())
    if not 0 < power < float("inf"):
        raise SolverError(
            f"paper-sdp: the perturbations' mean square is {power} in float64; change their scale"
        )
    return power


def _program(
    measured: LossDifferences,
    lowest: Tensor,
    centre: Tensor,
    prior: PriorOptions,
    *,
    output: int,
    power: float,
) -> Program:
    # The directions are brought to a mean square of 1, which leaves X̄ as it is: no scale of the
    # perturbations overflows or vanishes in the fourth power that (2) has of it.
    directions = measured.directions / power**0.5
    wanted = measured.curvatures
    wanted = (wanted if wanted.ndim == 1 else wanted[:, output]) / power
    targets = wanted - quadratic(directions, curvature.of_output(lowest, output))
    weight = 0.0
    if prior.kind is not Prior.NONE:
        lengths = directions.square().mean(dim=1)
        weight = prior.weight * 0.25 * float(lengths.square().mean())
    program = Program(directions, targets, curvature.of_output(centre, output), weight)
    start = program.objective(torch.zeros_like(program.centre))
    if not start < float("inf"):
        raise SolverError("paper-sdp: the loss differences overflow float64; rescale the features")
    return program


def _solve(program: Program, power: float, solver: SdpSolver) -> Solution:
    if solver == "FIRST_ORDER":
        solution = _first_order.solve(program)
    else:
        solution = _cvxpy_program.solve(program, solver)
    # Back in the units of the measured loss differences.
    solution.figures["misfit"] = power**2 * program.misfit(solution.excess)
    solution.figures["objective"] = power**2 * program.objective(solution.excess)
    if "duality_gap" in solution.figures:
        solution.figures["duality_gap"] *= power**2
    return solution


def _figures(
    directions: Tensor, prior: PriorOptions, solutions: Sequence[Solution]
) -> dict[str, float]:
    count, width = directions.shape
    names = solutions[0].figures
    figures = {name: max(solution.figures[name] for solution in solutions) for name in names}
    figures["iterations"] = sum(solution.figures["iterations"] for solution in solutions)
    decided = count >= unknowns(width) or prior.kind is not Prior.NONE
    return figures | {
        "programs": float(len(solutions)),
        "equations": float(count),
        "unknowns": float(unknowns(width)),
        "identified": float(decided),
    }
