from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.errors import SolverError
from core.hessian import _first_order
from core.hessian._cvxpy_program import _SETTINGS
from core.hessian._program import Solution
from core.hessian.forget_curvature import forget_curvature
from core.hessian.paper_sdp import paper_sdp
from core.options import PerturbationOptions, PriorOptions
from core.perturbation import LossDifferences, measure
from core.problem import Ridge
from core.vocabulary import Floor, Loss, PerturbationLaw, Prior, RidgeConvention
from tests.reference import semidefinite
from tests.reference.problems import Problem, make

SOLVERS = pytest.mark.parametrize("solver", ["FIRST_ORDER", "CLARABEL", "SCS"])
FORGET = PriorOptions(Prior.FORGET, 1e-2)
GAUSSIAN = PerturbationOptions(count=40, law=PerturbationLaw.GAUSSIAN)


def floor_of(problem: Problem, floor: Floor) -> np.ndarray:
    x, n_r = problem.x[: problem.n_forget], problem.n_remaining
    ridge = problem.ridge.shift(n_r) / n_r * np.eye(x.shape[1])
    return {
        Floor.ZERO: 0 * ridge,
        Floor.RIDGE: ridge,
        Floor.FORGET: x.T @ x / len(x) + ridge,
    }[floor]


def solve(  # noqa: PLR0917 - a test says only what it is about
    problem: Problem,
    measured: LossDifferences,
    floor=Floor.RIDGE,
    solver="FIRST_ORDER",
    prior=None,
    model=None,
):
    return paper_sdp(
        measured,
        problem.model if model is None else model,
        problem.forget,
        problem.n_remaining,
        floor=floor,
        solver=solver,
        prior=prior,
    )


@SOLVERS
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_antithetic_pairs_give_the_curvature_of_the_forget_set_and_nothing_else(convention, solver):
    problem = make(0, 60, 5, 3, 12, ridge=Ridge(convention, 0.1))
    measured = measure(problem.model, problem.forget, PerturbationOptions(), seed=0)
    found = solve(problem, measured, solver=solver)
    wanted = forget_curvature(problem.model, problem.forget, problem.n_remaining).matrix
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


@SOLVERS
@pytest.mark.parametrize("floor", list(Floor))
def test_noisy_equations_have_the_solution_of_an_independent_solver(floor, solver):
    problem = make(2, 60, 3, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=5)
    found = solve(problem, measured, floor, solver).matrix.numpy() / problem.n_remaining
    wanted = semidefinite.solve(
        measured.directions.numpy(), measured.curvatures.numpy(), floor_of(problem, floor)
    )
    assert_close(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@SOLVERS
@pytest.mark.parametrize("scale", [1e-60, 1e-2, 1e40])
@pytest.mark.parametrize("prior", [None, FORGET], ids=["no prior", "prior"])
def test_the_solution_does_not_depend_on_the_scale_of_the_perturbations(solver, scale, prior):
    problem = make(3, 60, 4, 2, 12)
    found = [
        solve(
            problem,
            measure(problem.model, problem.forget, PerturbationOptions(scale=size), seed=6),
            solver=solver,
            prior=prior,
        ).matrix
        for size in (scale, 1.0)
    ]
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@SOLVERS
@pytest.mark.parametrize("floor", list(Floor))
def test_with_a_prior_the_solution_is_that_of_an_independent_solver(floor, solver):
    # Four equations for ten unknowns: the prior decides the rest.
    problem = make(8, 60, 4, 2, 12)
    options = PerturbationOptions(count=4, law=PerturbationLaw.GAUSSIAN)
    measured = measure(problem.model, problem.forget, options, seed=5)
    directions, curvatures = measured.directions.numpy(), measured.curvatures.numpy()
    found = solve(problem, measured, floor, solver, PriorOptions(Prior.FORGET, 0.05))
    wanted = semidefinite.solve(
        directions,
        curvatures,
        floor_of(problem, floor),
        centre=(centre := floor_of(problem, Floor.FORGET)),
        weight=(weight := semidefinite.prior_weight(directions, 0.05)),
    )
    matrix = found.matrix.numpy() / problem.n_remaining
    assert_close(matrix, wanted, rtol=1e-4, atol=3e-4 * np.abs(wanted).max())
    figures = found.report.figures
    assert figures["identified"] == 1.0
    misfit = semidefinite.objective(matrix, directions, curvatures)
    assert figures["misfit"] == pytest.approx(misfit, rel=1e-9)
    assert figures["objective"] == pytest.approx(
        misfit + weight * ((matrix - centre) ** 2).sum(), rel=1e-9
    )


@SOLVERS
def test_antithetic_pairs_and_the_prior_agree_on_the_curvature_of_the_forget_set(solver):
    problem = make(9, 60, 5, 2, 12)
    measured = measure(problem.model, problem.forget, PerturbationOptions(count=3), seed=0)
    found = solve(problem, measured, solver=solver, prior=FORGET).matrix
    wanted = forget_curvature(problem.model, problem.forget, problem.n_remaining).matrix
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@SOLVERS
@pytest.mark.parametrize("prior", [None, FORGET], ids=["no prior", "prior"])
def test_logistic_loss_has_one_program_an_output(solver, prior):
    problem = make(10, 60, 4, 3, 12, one_hot=True)
    model = replace(problem.model, loss=Loss.LOGISTIC)
    options = PerturbationOptions(scale=1e-4)
    measured = measure(model, problem.forget, options, seed=0)
    found = solve(problem, measured, solver=solver, model=model, prior=prior)
    wanted = forget_curvature(model, problem.forget, problem.n_remaining).matrix
    assert found.matrix.shape == (3, 4, 4)
    assert found.report.figures["programs"] == 3.0
    assert_close(found.matrix, wanted, rtol=1e-3, atol=1e-3)


def test_of_several_programs_the_worst_status_and_the_largest_figures_are_reported(monkeypatch):
    problem = make(11, 60, 4, 3, 12, one_hot=True)
    model = replace(problem.model, loss=Loss.LOGISTIC)
    measured = measure(model, problem.forget, GAUSSIAN, seed=4)
    answers = iter(
        [
            Solution(torch.eye(4, dtype=torch.float64), status, {"iterations": 5.0, "gap": gap})
            for status, gap in (("optimal", 3.0), ("iteration_limit", 1.0), ("optimal", 2.0))
        ]
    )
    monkeypatch.setattr(_first_order, "solve", lambda _program: next(answers))
    report = solve(problem, measured, model=model).report
    assert report.status == "iteration_limit"
    assert report.figures["gap"] == 3.0
    assert report.figures["iterations"] == 15.0


@pytest.mark.parametrize("floor", list(Floor))
def test_the_gap_bounds_what_the_objective_exceeds_the_optimum_by(floor):
    problem = make(12, 60, 4, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=9)
    directions, curvatures = measured.directions.numpy(), measured.curvatures.numpy()
    figures = solve(problem, measured, floor).report.figures
    best = semidefinite.solve(directions, curvatures, floor_of(problem, floor), steps=5_000)
    optimum = semidefinite.objective(best, directions, curvatures)
    assert figures["objective"] <= optimum * (1 + 1e-6)
    assert figures["objective"] - figures["duality_gap"] <= optimum
    assert figures["duality_gap"] <= 1e-6 * optimum


def test_perturbations_that_vanish_in_float64_are_an_error():
    problem = make(6, 60, 2, 1, 12)
    nothing = LossDifferences(
        torch.full((4, 2), 1e-200, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    )
    with pytest.raises(SolverError, match=r"mean square is 0\.0.*change their scale"):
        solve(problem, nothing)


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
        solve(problem, measured, solver="CLARABEL")


def test_an_inaccurate_solution_says_so(monkeypatch):
    problem = make(6, 60, 4, 2, 12)
    measured = measure(problem.model, problem.forget, GAUSSIAN, seed=4)
    monkeypatch.setitem(_SETTINGS, "SCS", {"eps_abs": 1e-12, "eps_rel": 1e-12, "max_iters": 40})
    found = solve(problem, measured, solver="SCS").report
    assert (found.name, found.status) == ("cvxpy/SCS", "optimal_inaccurate")


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
