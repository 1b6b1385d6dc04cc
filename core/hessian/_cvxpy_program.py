"""Equation (2) for cvxpy: the reference that our own solver is compared with."""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor

from core.errors import SolverError
from core.hessian._program import Program, Solution, onto_cone
from core.options import SdpSolver

_USABLE = frozenset({"optimal", "optimal_inaccurate"})
_SETTINGS: dict[SdpSolver, dict[str, Any]] = {
    "CLARABEL": {},
    # Its default of 1e-4 leaves errors larger than what is estimated.
    "SCS": {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iters": 100_000},
}


def solve(program: Program, solver: SdpSolver) -> Solution:
    """Solve (2) with a program that cvxpy calls; memory m·d².

    Args:
        program: The equations, and the prior if any.
        solver: Program that cvxpy calls.

    Returns:
        Z, projected onto the cone, with the solver's status and the figures `projected` (how far
        its Z was from the cone, relative to its largest eigenvalue) and `iterations`.

    Raises:
        SolverError: The solver ended without a usable solution, and the message has its status.
    """
    # Importing cvxpy takes over a second, which the other methods need not pay.
    cvxpy: Any = importlib.import_module("cvxpy")
    unit = _unit(program)
    width = program.directions.shape[1]
    excess = cvxpy.Variable((width, width), PSD=True)
    problem = cvxpy.Problem(cvxpy.Minimize(_objective(cvxpy, excess, program, unit)))
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
    # Solvers end slightly outside the cone (SCS by 1e-5), where X ⪰ F would not hold.
    solution, projected = onto_cone(torch.from_numpy(excess.value).to(program.targets))
    figures = {
        "projected": projected,
        "iterations": float(iterations if iterations is not None else 0),
    }
    return Solution(unit * solution, str(problem.status), figures)


def _unit(program: Program) -> float:
    # Solvers' tolerances are partly absolute: the solution is brought to about 1.
    unit = float(program.targets.abs().max())
    if program.weight > 0:
        unit = max(unit, float(program.centre.abs().max()))
    return unit if unit > 0 else 1.0


def _objective(cvxpy: Any, excess: Any, program: Program, unit: float) -> Any:
    directions = program.directions
    products: Tensor = 0.5 * directions[:, :, None] * directions[:, None, :]
    rows = products.flatten(start_dim=1).cpu().numpy()
    targets = (program.targets / unit).cpu().numpy()
    # One matrix for all equations compiles 5 to 10 times faster than a sum of them.
    fit = rows @ cvxpy.vec(excess, order="C") - targets
    objective = cvxpy.sum_squares(fit) / len(targets)
    if program.weight == 0:
        return objective
    centre = (program.centre / unit).cpu().numpy()
    return objective + program.weight * cvxpy.sum_squares(excess - centre)
