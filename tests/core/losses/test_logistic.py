from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from core.errors import InvalidTensorError
from core.losses import logistic as losses
from core.problem import SampleSet
from tests.reference import logistic as reference
from tests.reference.logistic_problems import LogisticProblem, make, problems


def test_gradient_and_hessian_are_those_of_autograd():
    problem = make(1, 20, 4, 3)
    data, weights = problem.rows(slice(None)), torch.tensor(problem.weights)
    leaf = weights.clone().requires_grad_()
    margins = data.features @ leaf
    loss = torch.nn.functional.softplus(margins).sub(data.targets * margins).sum()
    loss = loss + 0.5 * 0.3 * leaf.square().sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert losses.loss(weights, data, 0.3) == pytest.approx(loss.item(), rel=1e-12)
    assert_close(losses.gradient(weights, data, 0.3), gradient, rtol=1e-10, atol=1e-10)

    def column(w: torch.Tensor) -> torch.Tensor:
        z = data.features @ w
        return torch.nn.functional.softplus(z).sum() + 0.15 * w.square().sum()

    for c, found in enumerate(losses.hessian(weights, data.features, 0.3)):
        wanted = torch.autograd.functional.hessian(column, weights[:, c])
        assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@given(problems(most=8, widest=3))
def test_the_round_off_of_the_gradient_is_within_its_bound(problem: LogisticProblem):
    data, weights = problem.rows(slice(None)), torch.tensor(problem.weights)
    computed = losses.gradient(weights, data, 0.25).numpy()
    error = reference.exact_gradient_error(
        computed, problem.weights, problem.x, problem.y, Fraction(1, 4)
    )
    assert error <= losses.gradient_round_off(weights, data, 0.25)


@given(problems(most=8, widest=3))
def test_the_round_off_of_the_hessian_is_within_its_bound(problem: LogisticProblem):
    features, weights = torch.tensor(problem.x), torch.tensor(problem.weights)
    computed = losses.hessian(weights, features).numpy()
    error = reference.exact_hessian_error(computed, problem.weights, problem.x)
    assert error <= losses.hessian_round_off(weights, features)


def test_the_hessian_of_sure_samples_keeps_its_digits():
    # At a margin of 40, 1 − σ has lost every digit; σ' = e^-40 has not.
    features = torch.tensor([[40.0]], dtype=torch.float64)
    weights = torch.ones(1, 1, dtype=torch.float64)
    found = float(losses.hessian(weights, features))
    assert found == pytest.approx(1600 * np.exp(-40), rel=1e-13)
    assert losses.hessian_round_off(weights, features) < 1e-12 * found


def test_a_target_that_is_neither_0_nor_1_is_refused():
    with pytest.raises(InvalidTensorError, match=r"targets: expected 0 or 1.*got 0\.5"):
        losses.require_targets(torch.tensor([[1.0, 0.5]]))


def test_the_loss_is_linear_where_the_model_is_surely_wrong():
    samples = SampleSet(
        torch.tensor([[800.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    )
    assert losses.loss(torch.ones(1, 1, dtype=torch.float64), samples) == 800.0
