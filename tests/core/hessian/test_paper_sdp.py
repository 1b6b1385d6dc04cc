import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.errors import SolverError
from core.hessian.forget_curvature import forget_curvature
from core.hessian.paper_sdp import _SETTINGS, paper_sdp
from core.options import PerturbationOptions
from core.perturbation import LossDifferences, measure
from core.problem import Ridge
from core.vocabulary import Floor, PerturbationLaw, RidgeConvention
from tests.reference import semidefinite
from tests.reference.problems import Problem, make

SOLVERS = pytest.mark.parametrize("solver", ["CLARABEL", "SCS"])
GAUSSIAN = PerturbationOptions(count=40, law=PerturbationLaw.GAUSSIAN)


def floor_of(problem: Problem, floor: Floor) -> np.ndarray:
    x, n_r = problem.x[: problem.n_forget], problem.n_remaining
    ridge = problem.ridge.shift(n_r) / n_r * np.eye(x.shape[1])
    return {
        Floor.ZERO: 0 * ridge,
        Floor.RIDGE: ridge,
        Floor.FORGET: x.T @ x / len(x) + ridge,
    }[floor]


def solve(problem: Problem, measured: LossDifferences, floor=Floor.RIDGE, solver="CLARABEL"):
    return paper_sdp(
        measured, problem.forget, problem.n_remaining, problem.ridge, floor=floor, solver=solver
    )


@SOLVERS
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_antithetic_pairs_give_the_curvature_of_the_forget_set_and_nothing_else(convention, solver):
    problem = make(0, 60, 5, 3, 12, ridge=Ridge(convention, 0.1))
    measured = measure(problem.model, problem.forget, PerturbationOptions(), seed=0)
    found = solve(problem, measured, solver=solver)
    wanted = forget_curvature(problem.forget, problem.n_remaining, problem.ridge).matrix
    assert float(torch.linalg.norm(found.matrix - wanted) / torch.linalg.norm(wanted)) < 1e-5
    assert found.report.status in {"optimal", "optimal_inaccurate"}
    assert found.report.figures["identified"] == 1.0
    assert found.report.figures["objective"] < 1e-9


@SOLVERS
@pytest.mark.parametrize("floor", list(Floor))
def test_noisy_equations_are_solved_to_their_optimality_conditions(floor, solver):
    # Stationary on the cone X − F ⪰ 0: the gradient is PSD and orthogonal to X − F.
    problem = make(1, 60, 4, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=4)
    matrix = solve(problem, measured, floor, solver).matrix.numpy() / problem.n_remaining
    excess = matrix - floor_of(problem, floor)
    slope = semidefinite.gradient(matrix, measured.directions.numpy(), measured.curvatures.numpy())
    scale = np.abs(measured.curvatures.numpy()).max()
    assert np.linalg.eigvalsh(excess)[0] >= -1e-12 * np.abs(matrix).max()
    assert np.linalg.eigvalsh(0.5 * (slope + slope.T))[0] >= -1e-4 * scale
    assert abs((slope * excess).sum()) <= 1e-4 * scale * max(np.abs(excess).max(), 1)


@pytest.mark.parametrize("floor", list(Floor))
def test_noisy_equations_have_the_solution_of_an_independent_solver(floor):
    problem = make(2, 60, 3, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=5)
    found = solve(problem, measured, floor).matrix.numpy() / problem.n_remaining
    wanted = semidefinite.solve(
        measured.directions.numpy(), measured.curvatures.numpy(), floor_of(problem, floor)
    )
    assert_close(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_solution_does_not_depend_on_the_scale_of_the_perturbations():
    problem = make(3, 60, 4, 2, 12)
    found = [
        solve(
            problem,
            measure(problem.model, problem.forget, PerturbationOptions(scale=scale), seed=6),
        ).matrix
        for scale in (1e-2, 1.0)
    ]
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_too_few_equations_are_reported_as_unidentified_whatever_the_status():
    problem = make(4, 60, 6, 2, 12)
    measured = measure(problem.model, problem.forget, PerturbationOptions(count=5), seed=7)
    report = solve(problem, measured).report
    assert report.figures["identified"] == 0.0
    assert (report.figures["equations"], report.figures["unknowns"]) == (5.0, 21.0)


def test_equations_of_the_floor_itself_return_the_floor():
    problem = make(5, 60, 3, 2, 12)
    directions = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    on_floor = LossDifferences(directions, 0.5 * 1e-2 * directions.square().sum(dim=1))
    found = solve(problem, on_floor).matrix
    assert_close(found, 48 * 1e-2 * torch.eye(3, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_a_solver_that_gives_up_is_an_error_with_its_status(monkeypatch):
    problem = make(6, 60, 4, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=4)
    monkeypatch.setitem(_SETTINGS, "CLARABEL", {"max_iter": 1})
    with pytest.raises(SolverError, match=r"cvxpy/CLARABEL.*user_limit"):
        solve(problem, measured)


def test_a_solver_that_is_not_installed_is_an_error_of_the_core(monkeypatch):
    monkeypatch.setitem(_SETTINGS, "SDPA", {})
    problem = make(6, 60, 4, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=4)
    with pytest.raises(SolverError, match=r"cvxpy/SDPA: .*SDPA is not installed"):
        solve(problem, measured, solver="SDPA")


def test_equations_that_overflow_are_an_error_and_no_estimate():
    problem = make(6, 60, 2, 1, 12)
    broken = LossDifferences(
        torch.ones(4, 2, dtype=torch.float64), torch.full((4,), torch.inf, dtype=torch.float64)
    )
    with pytest.raises(SolverError, match="overflow"):
        solve(problem, broken)


def test_inputs_are_unchanged():
    problem = make(7, 60, 3, 2, 12)
    measured = measure(problem.model, problem.forget, PerturbationOptions(), seed=0)
    directions, curvatures = measured.directions.clone(), measured.curvatures.clone()
    solve(problem, measured)
    assert torch.equal(measured.directions, directions)
    assert torch.equal(measured.curvatures, curvatures)
