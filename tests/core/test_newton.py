import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import IllConditionedError, InvalidTensorError
from core.newton import cholesky, condition_estimate, expand, newton_step, one_norm
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from tests.reference import ridge as reference
from tests.reference.problems import make


def positive_definite(seed: int, width: int, condition: float) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(rng.standard_normal((width, width)))
    matrix = (vectors * np.geomspace(1.0, condition, width)) @ vectors.T
    return torch.from_numpy(0.5 * (matrix + matrix.T))


@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_one_step_with_the_true_hessian_is_retraining(convention):
    problem = make(0, 40, 6, 3, 7, ridge=Ridge(convention, 0.05))
    forget_gradient = reference.gradient(
        problem.model.weights.numpy(),
        problem.x[:7],
        problem.y[:7],
        problem.ridge.forgotten_shift(7),
    )
    hessian = problem.x[7:].T @ problem.x[7:] + problem.ridge.shift(33) * np.eye(6)
    step = newton_step(
        problem.model.weights, torch.from_numpy(hessian), torch.from_numpy(forget_gradient)
    )
    assert_close(step.weights.numpy(), problem.retrained(), rtol=1e-10, atol=1e-12)
    assert step.report.status == "direct"
    assert step.report.figures["relative_residual"] < 1e-12


def test_from_weights_that_are_no_optimum_the_training_gradient_is_subtracted():
    problem = make(1, 40, 6, 3, 7)
    start = torch.ones_like(problem.model.weights)
    shift = problem.ridge.shift(40)
    training_gradient = reference.gradient(start.numpy(), problem.x, problem.y, shift)
    forget_gradient = reference.gradient(
        start.numpy(), problem.x[:7], problem.y[:7], problem.ridge.forgotten_shift(7)
    )
    hessian = problem.x[7:].T @ problem.x[7:] + problem.ridge.shift(33) * np.eye(6)
    step = newton_step(start, *map(torch.from_numpy, (hessian, forget_gradient, training_gradient)))
    assert_close(step.weights.numpy(), problem.retrained(), rtol=1e-10, atol=1e-12)


def test_a_step_changes_none_of_its_inputs():
    inputs = [torch.ones(3, 2), positive_definite(0, 3, 10.0), torch.ones(3, 2), torch.ones(3, 2)]
    inputs = [tensor.to(torch.float64) for tensor in inputs]
    copies = [tensor.clone() for tensor in inputs]
    newton_step(*inputs)
    assert all(torch.equal(now, then) for now, then in zip(inputs, copies, strict=True))


@given(st.integers(0, 1000), st.integers(1, 12), st.floats(1.0, 1e10))
def test_the_condition_estimate_is_below_the_condition_number_and_near_it(seed, width, condition):
    matrix = positive_definite(seed, width, condition)
    true = float(torch.linalg.cond(matrix, p=1))
    estimate = condition_estimate(one_norm(matrix), cholesky(matrix))
    assert true / 5 <= estimate <= true * (1 + 1e-4)


def test_solving_with_the_factor_solves_the_system():
    matrix = positive_definite(3, 7, 100.0)
    right_side = torch.eye(7, dtype=torch.float64)
    assert_close(matrix @ cholesky(matrix).solve(right_side), right_side)


@pytest.mark.parametrize("lowest", [0.0, -1e-3])
def test_a_matrix_that_is_not_positive_definite_is_refused_and_the_minor_named(lowest):
    matrix = torch.diag(torch.tensor([1.0, 1.0, lowest], dtype=torch.float64))
    with pytest.raises(IllConditionedError, match="leading minor of order 3"):
        newton_step(torch.zeros(3, 1, dtype=torch.float64), matrix, matrix[:, :1])


def test_a_solution_that_overflows_is_refused():
    tiny = torch.full((1, 1), 1e-300, dtype=torch.float64)
    with pytest.raises(IllConditionedError, match="overflows"):
        newton_step(tiny, tiny, torch.full((1, 1), 1e300, dtype=torch.float64))


def test_a_zero_gradient_moves_nothing():
    weights = torch.ones(3, 1, dtype=torch.float64)
    step = newton_step(weights, positive_definite(0, 3, 10.0), torch.zeros_like(weights))
    assert torch.equal(step.weights, weights)
    assert step.report.figures["relative_residual"] == 0.0


@pytest.mark.parametrize("broken", ["weights", "hessian", "forget_gradient", "training_gradient"])
def test_a_wrong_shape_is_named(broken):
    inputs = {
        "weights": torch.zeros(3, 2, dtype=torch.float64),
        "hessian": torch.eye(3, dtype=torch.float64),
        "forget_gradient": torch.zeros(3, 2, dtype=torch.float64),
        "training_gradient": torch.zeros(3, 2, dtype=torch.float64),
    }
    inputs[broken] = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(InvalidTensorError, match=f"{broken}: expected shape"):
        newton_step(**inputs)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-2, -1e-2])
def test_the_series_solves_with_the_inverse_of_a_shifted_hessian(gap):
    hessian = positive_definite(6, 12, 1e2)
    shifted = hessian + gap * torch.eye(12, dtype=torch.float64)
    right_side = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    found, terms = expand(right_side, torch.linalg.inv(shifted), gap, 1e-13)
    assert_close(found, torch.linalg.solve(hessian, right_side), rtol=1e-11, atol=1e-12)
    assert terms == 1 if gap == 0 else 2 <= terms <= 8


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e9])
def test_the_series_ends_with_whatever_inverse(broken):
    inverse = torch.full((3, 3), broken, dtype=torch.float64)
    assert expand(torch.ones(3, 2, dtype=torch.float64), inverse, 1.0, 1e-13)[1] <= 2
