import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import SolverError
from core.linearised.conjugate_gradients import conjugate_gradients

EYE = torch.eye(6, dtype=torch.float64)


def draw(size: int, condition: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a positive definite matrix of a given condition, and a right side."""
    rng = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=rng, dtype=torch.float64)
    vectors = torch.linalg.qr(matrix).Q
    values = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    right_side = torch.randn(size, 1, generator=rng, dtype=torch.float64)
    return (vectors * values) @ vectors.T, right_side


def times(matrix: torch.Tensor):
    return lambda vector: matrix @ vector


@given(
    st.integers(1, 30), st.floats(1.0, 1e6), st.integers(0, 2**31), st.sampled_from([1e-4, 1e-10])
)
def test_a_solution_is_that_of_a_dense_solver(size, condition, seed, tolerance):
    matrix, right_side = draw(size, condition, seed)
    found = conjugate_gradients(times(matrix), right_side, tolerance=tolerance)
    left = float((matrix @ found.solution - right_side).norm() / right_side.norm())
    assert left <= tolerance * (1 + 1e-6)
    assert found.report.figures["relative_residual"] == pytest.approx(left, rel=1e-6, abs=1e-15)
    exact = torch.linalg.solve(matrix, right_side)
    # A residual of ε moves the solution by at most ε·κ.
    distance = float((found.solution - exact).norm() / exact.norm())
    assert distance <= 2 * tolerance * condition + 1e-15 * condition


def test_as_many_iterations_do_as_there_are_different_eigenvalues():
    vectors = torch.linalg.eigh(draw(40, 10.0)[0]).eigenvectors
    values = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=torch.float64).repeat(10)
    matrix, right_side = (vectors * values) @ vectors.T, draw(40, 10.0)[1]
    found = conjugate_gradients(times(matrix), right_side, tolerance=1e-10)
    assert found.report.figures["iterations"] == 4
    assert found.report.status == "converged"


def test_a_preconditioner_like_the_operator_saves_iterations_and_changes_no_solution():
    matrix, right_side = draw(60, 1e6)
    rough = torch.linalg.inv(matrix + 0.01 * torch.diag(matrix.diagonal()))
    plain = conjugate_gradients(times(matrix), right_side, tolerance=1e-10)
    helped = conjugate_gradients(
        times(matrix), right_side, tolerance=1e-10, preconditioner=times(rough)
    )
    iterations = [each.report.figures["iterations"] for each in (plain, helped)]
    assert iterations[1] < iterations[0] / 2
    exact = torch.linalg.solve(matrix, right_side)
    assert_close(helped.solution, exact, rtol=0, atol=1e-4 * float(exact.norm()))


def test_a_start_at_the_solution_takes_no_iteration_and_is_not_changed():
    matrix, right_side = draw(10, 10.0)
    start = torch.linalg.solve(matrix, right_side)
    copy = start.clone()
    found = conjugate_gradients(times(matrix), right_side, tolerance=1e-10, start=start)
    assert found.report.figures["iterations"] == 0
    assert torch.equal(found.solution, start)
    near = conjugate_gradients(times(matrix), right_side, tolerance=1e-13, start=1.01 * start)
    assert_close(near.solution, start, rtol=1e-10, atol=1e-11)
    assert torch.equal(start, copy)


def test_nothing_on_the_right_is_solved_by_nothing_whatever_the_start():
    found = conjugate_gradients(
        times(EYE), torch.zeros(6, 1, dtype=torch.float64), tolerance=1e-9, start=EYE[:, :1]
    )
    assert not found.solution.any()
    assert found.report.figures == {"iterations": 0.0, "relative_residual": 0.0}


def test_a_carried_residual_that_has_drifted_is_found_out_and_begun_anew():
    matrix, right_side = draw(20, 50.0)
    calls = []

    def worn(vector: torch.Tensor) -> torch.Tensor:
        # Wrong by a thousandth for as long as the first run takes, then right.
        calls.append(len(calls))
        return (1.001 if 1 <= len(calls) - 1 <= 15 else 1.0) * (matrix @ vector)

    found = conjugate_gradients(worn, right_side, tolerance=1e-11)
    left = float((matrix @ found.solution - right_side).norm() / right_side.norm())
    assert left <= 1e-11
    once = conjugate_gradients(times(matrix), right_side, tolerance=1e-11)
    assert found.report.figures["iterations"] > once.report.figures["iterations"]


def test_a_residual_that_cannot_come_down_is_an_error_and_no_endless_loop():
    matrix, right_side = draw(20, 1e4)
    with pytest.raises(SolverError, match=r"after 60 iterations .* above 1e-30; .*stronger ridge"):
        conjugate_gradients(times(matrix), right_side, tolerance=1e-30, most_iterations=60)


def test_the_limit_of_iterations_is_kept():
    matrix, right_side = draw(50, 1e8)
    counted = []
    with pytest.raises(SolverError, match="after 7 iterations"):
        conjugate_gradients(
            times(matrix),
            right_side,
            tolerance=1e-12,
            most_iterations=7,
            progress=lambda iteration, *_: counted.append(iteration),
        )
    assert counted == list(range(1, 8))


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_an_operator_that_is_not_positive_definite_is_refused(value):
    matrix = EYE.clone()
    matrix[3, 3] = value
    with pytest.raises(SolverError, match=r"not positive definite|relative residual is nan"):
        conjugate_gradients(times(matrix), 2.0 * EYE[:, 3:4], tolerance=1e-9)


def test_a_right_side_that_is_no_number_is_refused():
    with pytest.raises(SolverError):
        conjugate_gradients(times(EYE), math.nan * EYE[:, :1], tolerance=1e-9)


def test_progress_sees_the_solution_grow_and_may_stop_it():
    matrix, right_side = draw(30, 1e3)
    seen = []

    class StoppedError(Exception):
        pass

    def watch(iteration: int, relative: float, solution: torch.Tensor) -> None:
        seen.append((iteration, relative, float((matrix @ solution - right_side).norm())))
        if iteration == 9:
            raise StoppedError

    with pytest.raises(StoppedError):
        conjugate_gradients(times(matrix), right_side, tolerance=1e-12, progress=watch)
    assert [iteration for iteration, _, _ in seen] == list(range(1, 10))
    for _, relative, true in seen:
        assert relative == pytest.approx(true / float(right_side.norm()), rel=1e-6)


def test_an_operator_may_return_the_same_tensor_again_and_again():
    matrix, right_side = draw(12, 30.0)
    held = torch.empty_like(right_side)
    found = conjugate_gradients(
        lambda vector: torch.mm(matrix, vector, out=held), right_side, tolerance=1e-12
    )
    exact = torch.linalg.solve(matrix, right_side)
    assert_close(found.solution, exact, rtol=1e-9, atol=1e-10)


def test_inputs_are_not_changed():
    matrix, right_side = draw(12, 30.0)
    copies = matrix.clone(), right_side.clone()
    conjugate_gradients(times(matrix), right_side, tolerance=1e-12)
    assert torch.equal(matrix, copies[0])
    assert torch.equal(right_side, copies[1])
