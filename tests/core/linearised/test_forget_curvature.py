import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.errors import IllConditionedError, InvalidTensorError, SolverError
from core.linearised import forget_curvature as module
from core.linearised.forget_curvature import ForgetCurvature
from core.linearised.options import HeadSolver
from core.linearised.sketched_curvature import SketchedCurvature
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from tests.reference.networks import SPECS, TinyProblem

N, REMAINING = 12, 300
PROBLEMS = {
    name: TinyProblem.draw(SPECS[name], N)
    for name in ("linear", "mlp-1", "mlp-3", "cnn-2", "cnn-4", "resnet-1")
}
EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
MLP = PROBLEMS["mlp-3"]
DUAL, ITERATIVE, DIAGONAL = (
    HeadSolver.DUAL,
    HeadSolver.CONJUGATE_GRADIENTS,
    HeadSolver.DIAGONAL,
)


def shift_of(problem: TinyProblem, strength: float = 0.05) -> float:
    """A ridge relative to the largest curvature, which differs a million times between networks."""
    largest = float(np.linalg.norm(problem.gauss_newton(slice(None)), 2))
    return strength * (REMAINING / N) * largest


def curvature(
    problem: TinyProblem,
    solver: HeadSolver,
    rows: object = slice(None),
    *,
    strength: float = 0.05,
    **options: object,
) -> ForgetCurvature:
    features, shift = problem.take(rows).features, shift_of(problem, strength)
    return ForgetCurvature.of(
        problem.linearisation, features, REMAINING, shift, solver=solver, **options
    )


def dense(
    problem: TinyProblem, rows: object = slice(None), *, strength: float = 0.05
) -> torch.Tensor:
    """The mean-matched matrix of explicit rows, with the ridge of the retain set."""
    chosen = np.arange(N)[rows]
    matrix = (REMAINING / len(chosen)) * problem.gauss_newton(chosen)
    return torch.from_numpy(matrix + shift_of(problem, strength) * np.eye(len(matrix)))


def right_side(problem: TinyProblem, seed: int = 0) -> torch.Tensor:
    # As a forget gradient is: in the span of the rows, but for the ridge's share.
    rng = torch.Generator().manual_seed(seed)
    rows = torch.from_numpy(problem.rows(slice(None))[0])
    errors = torch.randn(len(rows), 1, generator=rng, dtype=torch.float64)
    noise = torch.randn(rows.shape[1], 1, generator=rng, dtype=torch.float64)
    return rows.T @ errors + 0.1 * noise


@EVERY
def test_dual_and_conjugate_gradients_are_choleskys_method_on_the_mean_matched_matrix(problem):
    wanted = right_side(problem)
    factor = torch.linalg.cholesky(dense(problem))
    exact = torch.cholesky_solve(wanted, factor)
    close = {"rtol": 0, "atol": 1e-8 * float(exact.norm())}
    for solver in (DUAL, ITERATIVE):
        found = curvature(problem, solver).solve(wanted, 1e-12)
        assert_close(found.change, exact, **close)
        assert found.report.figures["relative_residual"] <= 1e-12
        assert found.report.status == "converged"


@EVERY
def test_the_operator_is_the_mean_matched_matrix(problem):
    vector = right_side(problem, seed=1)
    image = dense(problem) @ vector
    product = curvature(problem, ITERATIVE).times(vector)
    assert_close(product, image, rtol=1e-10, atol=1e-11 * float(image.norm()))
    assert curvature(problem, ITERATIVE).scale == REMAINING / N


@pytest.mark.parametrize("solver", [DUAL, ITERATIVE])
def test_a_solution_is_as_good_as_was_asked_for(solver):
    found = curvature(MLP, solver).solve(right_side(MLP))
    left = dense(MLP) @ found.change - right_side(MLP)
    relative = float(left.norm() / right_side(MLP).norm())
    assert relative <= 1e-6
    assert found.report.figures["relative_residual"] == pytest.approx(relative, rel=0.1, abs=1e-14)


@pytest.mark.parametrize("solver", list(HeadSolver))
def test_no_gradient_takes_no_step(solver):
    nothing = torch.zeros_like(right_side(MLP))
    assert not curvature(MLP, solver).solve(nothing).change.any()
    assert curvature(MLP, solver).cross_fitted_residual(nothing, splits=2, seed=0) == 0.0


def test_the_solver_is_chosen_by_the_rows_that_its_kernel_has(monkeypatch):
    def chosen(name: str) -> HeadSolver:
        return curvature(PROBLEMS[name], HeadSolver.AUTO).solver

    # 36 rows of dense layers, 24 of others.
    monkeypatch.setattr(module, "_MOST_DUAL_ROWS", 36)
    monkeypatch.setattr(module, "_MOST_DUAL_ROWS_GENERIC", 24)
    assert (chosen("mlp-3"), chosen("cnn-4")) == (DUAL, DUAL)
    monkeypatch.setattr(module, "_MOST_DUAL_ROWS_GENERIC", 23)
    assert (chosen("mlp-3"), chosen("cnn-4")) == (DUAL, ITERATIVE)
    monkeypatch.setattr(module, "_MOST_DUAL_ROWS", 35)
    assert (chosen("mlp-3"), chosen("cnn-4")) == (ITERATIVE, ITERATIVE)
    assert curvature(MLP, DUAL).solver is DUAL
    assert curvature(MLP, ITERATIVE).kernel is None


def test_a_sketch_like_the_matrix_saves_iterations_and_changes_no_solution():
    problem = TinyProblem.draw(SPECS["mlp-3"], 60)
    ridge = Ridge(RidgeConvention.TOTAL, 0.05)
    sketch = SketchedCurvature.of(problem.sketch(rank=50), ridge)
    wanted = right_side(problem)

    def solve(**changes):
        built = ForgetCurvature.of(
            problem.linearisation, problem.features, 60, 0.05, solver=ITERATIVE, **changes
        )
        return built.solve(wanted, 1e-10)

    plain, helped = solve(), solve(preconditioner=sketch.precondition)
    iterations = [each.report.figures["iterations"] for each in (plain, helped)]
    assert iterations[1] < iterations[0] / 2
    assert_close(helped.change, plain.change, rtol=0, atol=1e-5 * float(plain.change.norm()))


# --- METHOD (7) -----------------------------------------------------------------------------------


def explicit_residual(problem: TinyProblem, wanted: torch.Tensor, splits: int, seed: int) -> float:
    """METHOD (7), word for word: ‖n_r(H̄_B − H̄_A)Ĥ_A⁻¹∇_f‖, both ways."""
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(splits):
        order = torch.randperm(N, generator=generator).numpy()
        for half, other in ((order[: N // 2], order[N // 2 :]), (order[N // 2 :], order[: N // 2])):
            ours, theirs = dense(problem, half), dense(problem, other)
            found.append(float(((theirs - ours) @ torch.linalg.solve(ours, wanted)).norm()))
    return sum(found) / len(found) / float(wanted.norm())


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(
    "problem", [PROBLEMS["linear"], MLP, PROBLEMS["cnn-4"]], ids=["linear", "mlp-3", "cnn-4"]
)
def test_the_cross_fitted_residual_is_the_methods_by_kernel_and_by_products(problem, splits):
    wanted = right_side(problem)
    expected = explicit_residual(problem, wanted, splits, seed=9)
    by_kernel = curvature(problem, DUAL).cross_fitted_residual(wanted, splits=splits, seed=9)
    assert by_kernel == pytest.approx(expected, rel=1e-8)
    # By products, to the tolerance that a gate needs.
    by_products = curvature(problem, ITERATIVE).cross_fitted_residual(wanted, splits=splits, seed=9)
    assert by_products == pytest.approx(expected, rel=0.02)


def test_halves_of_an_odd_number_are_mean_matched_each():
    wanted = right_side(MLP)
    rows = slice(N - 1)
    found = [
        curvature(MLP, solver, rows).cross_fitted_residual(wanted, splits=3, seed=1)
        for solver in (DUAL, ITERATIVE)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.02)
    other = curvature(MLP, DUAL, rows).cross_fitted_residual(wanted, splits=3, seed=2)
    assert other != found[0]


# --- The diagonal, for comparison -----------------------------------------------------------------


def test_the_diagonal_is_hutchinsons_estimate_of_the_matrixs_own():
    wanted = right_side(MLP)
    found = curvature(MLP, DIAGONAL, seed=3).solve(wanted)
    estimate = (wanted / found.change)[:, 0]
    matrix = dense(MLP)
    # 64 probes of signs: the variance of an entry is what stands beside it in its row.
    beside = (matrix.square().sum(dim=1) - matrix.diagonal().square()).sqrt() / 8.0
    off = (estimate - matrix.diagonal()).abs()
    assert float((off <= 4.0 * beside + 1e-9).to(torch.float64).mean()) > 0.97
    assert float(estimate.min()) >= shift_of(MLP) * (1 - 1e-12)
    assert (found.report.name, found.report.status) == ("hutchinson-diagonal", "estimated")
    again = curvature(MLP, DIAGONAL, seed=3).solve(wanted)
    assert torch.equal(again.change, found.change)
    assert not torch.equal(curvature(MLP, DIAGONAL, seed=4).solve(wanted).change, found.change)


def test_the_diagonals_residual_is_judged_by_the_whole_matrix():
    # What published code leaves out is what the gate sees.
    wanted, built = right_side(MLP), curvature(MLP, DIAGONAL, seed=1)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    expected = [
        float((dense(MLP, other.numpy()) @ built._of(half).solve(wanted).change - wanted).norm())
        for half, other in ((order[:6], order[6:]), (order[6:], order[:6]))
    ]
    found = built.cross_fitted_residual(wanted, splits=1, seed=5)
    assert found == pytest.approx(sum(expected) / 2 / float(wanted.norm()), rel=1e-9)


# --- What cannot be solved ------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1e-4, 1e-8, 1e-12, 1e-16])
def test_a_weak_ridge_is_solved_to_the_tolerance_or_refused(strength):
    wanted = right_side(MLP)
    try:
        found = curvature(MLP, DUAL, strength=strength).solve(wanted)
    except (IllConditionedError, SolverError):
        found = None
    if found is None:
        assert strength < 1e-7
    else:
        left = dense(MLP, strength=strength) @ found.change - wanted
        assert float(left.norm() / wanted.norm()) <= 2e-6


def test_repeated_samples_with_next_to_no_ridge_have_no_factor():
    built = curvature(MLP, DUAL, [0, 0, 0, 0], strength=1e-18)
    with pytest.raises(IllConditionedError, match="kernel of the forget set: its leading minor"):
        built.solve(right_side(MLP))


def test_a_system_that_refinement_does_not_solve_is_refused():
    with pytest.raises(
        SolverError, match=r"dual: after 4 refinements .* above 0; .*stronger ridge"
    ):
        curvature(MLP, DUAL).solve(right_side(MLP), 0.0)


@pytest.mark.parametrize("solver", [DUAL, ITERATIVE])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_never_taken_for_solved(solver, value):
    wanted = right_side(MLP)
    wanted[3] = value
    with pytest.raises((SolverError, InvalidTensorError)):
        curvature(MLP, solver).solve(wanted)


def test_inputs_are_not_changed():
    wanted = right_side(MLP)
    held = [wanted, MLP.features, *MLP.linearisation.network.state.values()]
    copies = [tensor.clone() for tensor in held]
    for solver in HeadSolver:
        built = curvature(MLP, solver)
        built.cross_fitted_residual(wanted, splits=1, seed=0)
        kernel = None if built.kernel is None else built.kernel.clone()
        built.solve(wanted)
        assert kernel is None or torch.equal(built.kernel, kernel)
    assert all(map(torch.equal, held, copies))
