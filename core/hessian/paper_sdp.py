"""Method `paper-sdp`: the published estimator, METHOD (2) in its mean-matched form.

arXiv 2508.15127 fits a positive semidefinite X to the differences of the forget loss. Divided by
the set sizes (as printed, with sums, it overshoots by n_r/n_f), eq. (2) is

    min_X̄ (1/m) Σ_i ( ½⟨δ_i, X̄δ_i⟩ − (n_f/n_r)⟨∇̄_f, δ_i⟩ − δL̄_f(δ_i) )²   subject to X̄ ⪰ F,

and Ĥ = n_r·X̄. With X̄ = F + Z the variable is Z ⪰ 0.
"""

import importlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from core.errors import SolverError
from core.hessian._estimate import HessianEstimate
from core.losses import hessian
from core.options import SdpSolver, unknowns
from core.perturbation import LossDifferences
from core.problem import Ridge, SampleSet
from core.results import SolverReport
from core.vocabulary import Floor

_USABLE = frozenset({"optimal", "optimal_inaccurate"})
_SETTINGS: dict[SdpSolver, dict[str, Any]] = {
    "CLARABEL": {},
    # Its default of 1e-4 leaves errors larger than what is estimated.
    "SCS": {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 100_000},
}


def paper_sdp(
    measured: LossDifferences,
    forget: SampleSet,
    n_remaining: int,
    ridge: Ridge,
    *,
    floor: Floor,
    solver: SdpSolver,
) -> HessianEstimate:
    """Solve (2) with cvxpy.

    Args:
        measured: Directions δ_i and what ½⟨δ_i, X̄δ_i⟩ has to match, from `perturbation.measure`.
        forget: D_f, needed for the floor `forget`.
        n_remaining: n_r.
        ridge: The L2 term.
        floor: F: 0, the ridge of the mean retain Hessian, or H̄_f.
        solver: Program that cvxpy calls.

    Returns:
        Ĥ = n_r·X̄ and the solver's report: `equations` m, `unknowns` d(d+1)/2, `identified` (1 or
        0: with fewer equations a solver says `optimal` for one of many solutions), `objective`
        (mean squared residual of X̄ as returned), `projected` (how far the solver's Z was from the
        positive semidefinite cone, relative to its largest eigenvalue) and `iterations`.

    Raises:
        SolverError: The solver ended without a usable solution, and the message has its status; or
            the equations overflow.
    """
    lowest = _floor_matrix(floor, forget, n_remaining, ridge)
    rows, targets, unit = _scaled_equations(measured, lowest)
    if not bool(torch.isfinite(rows).all() & torch.isfinite(targets).all()):
        raise SolverError("paper-sdp: the loss differences overflow float64; rescale the features")
    solution, status, iterations = _solve(rows, targets, solver)
    excess, projected = _onto_cone(solution)
    matrix = lowest + unit * excess
    misfit = _quadratic(measured.directions, matrix) - measured.curvatures
    width = lowest.shape[0]
    figures = {
        "equations": float(len(targets)),
        "unknowns": float(unknowns(width)),
        "identified": float(len(targets) >= unknowns(width)),
        "objective": float(misfit.square().mean()),
        "projected": projected,
        "iterations": iterations,
    }
    report = SolverReport(name=f"cvxpy/{solver}", status=status, figures=figures)
    return HessianEstimate(n_remaining * matrix, report)


def _floor_matrix(floor: Floor, forget: SampleSet, n_remaining: int, ridge: Ridge) -> Tensor:
    matrix = hessian(forget).div_(len(forget))
    if floor is not Floor.FORGET:
        matrix.zero_()
    if floor is not Floor.ZERO:
        matrix.diagonal().add_(ridge.mean_shift(n_remaining))
    return matrix


def _quadratic(directions: Tensor, matrix: Tensor) -> Tensor:
    return 0.5 * ((directions @ matrix) * directions).sum(dim=1)


def _scaled_equations(measured: LossDifferences, lowest: Tensor) -> tuple[Tensor, Tensor, float]:
    # Solvers' tolerances are partly absolute, so both the entries of the equations and the
    # solution are brought to about 1; the minimiser is unchanged: Z = unit · Z'.
    directions = measured.directions
    power = float(directions.square().mean())
    wanted = (measured.curvatures - _quadratic(directions, lowest)) / power
    unit = float(wanted.abs().max())
    unit = unit if unit > 0 else 1.0
    products = 0.5 * directions[:, :, None] * directions[:, None, :] / power
    return products.flatten(start_dim=1), wanted / unit, unit


def _solve(rows: Tensor, targets: Tensor, solver: SdpSolver) -> tuple[Tensor, str, float]:
    # Importing cvxpy takes over a second, which the other methods need not pay.
    cvxpy: Any = importlib.import_module("cvxpy")
    width = math.isqrt(rows.shape[1])
    excess = cvxpy.Variable((width, width), PSD=True)
    # One matrix for all equations compiles 5 to 10 times faster than a sum of them.
    fit = rows.cpu().numpy() @ cvxpy.vec(excess, order="C") - targets.cpu().numpy()
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(fit) / len(targets)))
    try:
        with warnings.catch_warnings():
            # `optimal_inaccurate` also comes as a warning; here the status travels instead.
            warnings.filterwarnings("ignore", message="Solution may be inaccurate")
            problem.solve(solver=solver, **_SETTINGS[solver])
    except cvxpy.error.SolverError as error:
        raise SolverError(f"cvxpy/{solver}: {error}") from error
    if problem.status not in _USABLE or excess.value is None:
        raise SolverError(f"cvxpy/{solver}: ended with status {problem.status}")
    iterations = problem.solver_stats.num_iters
    solution = torch.from_numpy(excess.value).to(rows)
    return solution, str(problem.status), float(iterations if iterations is not None else 0)


def _onto_cone(solution: Tensor) -> tuple[Tensor, float]:
    # Solvers end slightly outside the cone (SCS by 1e-5), where X ⪰ F would not hold.
    values, vectors = torch.linalg.eigh(0.5 * (solution + solution.T))
    largest = float(values[-1].abs())
    outside = max(-float(values[0]), 0.0)
    projected = (vectors * values.clamp(min=0.0)) @ vectors.T
    return 0.5 * (projected + projected.T), outside / largest if largest > 0 else 0.0
