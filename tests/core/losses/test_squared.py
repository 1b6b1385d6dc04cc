import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from core.losses import squared as losses
from core.problem import SampleSet
from tests.reference import ridge as reference
from tests.reference.problems import Problem, make, problems


def plain_loss(weights, data: SampleSet, shift: float):
    errors = data.features @ weights - data.targets
    return 0.5 * (errors**2).sum() + 0.5 * shift * (weights**2).sum()


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_gradient_is_that_of_autograd(shift):
    problem = make(0, 9, 4, 3, 2)
    weights = problem.model.weights.clone().requires_grad_()
    plain_loss(weights, problem.data, shift).backward()
    assert weights.grad is not None
    found = losses.gradient(weights.detach() + 0.0, problem.data, shift)
    assert_close(found, weights.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_loss_is_the_sum_over_samples_and_outputs(shift):
    problem = make(1, 9, 4, 3, 2)
    weights = torch.ones_like(problem.model.weights)
    found = losses.loss(weights, problem.data, shift)
    assert found == pytest.approx(float(plain_loss(weights, problem.data, shift)), rel=1e-13)


def test_the_hessian_is_that_of_autograd_for_every_output():
    problem = make(2, 7, 3, 2, 2)
    full = torch.autograd.functional.hessian(
        lambda weights: plain_loss(weights, problem.data, 0.4), problem.model.weights
    )
    found = losses.hessian(problem.model.weights, problem.data.features, 0.4)
    for first in range(2):
        for second in range(2):
            block = full[:, first, :, second]
            wanted = found if first == second else torch.zeros_like(found)
            assert_close(block, wanted, rtol=1e-12, atol=1e-12)


@given(problems())
def test_the_gradients_round_off_is_within_its_bound(problem: Problem):
    model = problem.model
    shift = problem.ridge.forgotten_shift(problem.n_forget)
    bound = losses.gradient_round_off(model.weights, problem.forget, shift)
    x, y = problem.x[: problem.n_forget], problem.y[: problem.n_forget]
    added = reference.exact_shift(
        problem.ridge.convention, problem.ridge.strength, problem.n_forget
    )
    if shift == 0.0:
        added *= 0
    computed = losses.gradient(model.weights, problem.forget, shift).numpy()
    error = reference.exact_gradient_error(computed, model.weights.numpy(), x, y, added)
    assert error <= bound
