import numpy as np
import pytest
import torch

from core.evaluation.reconstruction import leading_directions, reconstruction_leak
from core.problem import Ridge
from core.vocabulary import Anchor, RidgeConvention
from tests.reference import logistic_problems
from tests.reference.problems import make, samples


def moved(problem) -> torch.Tensor:
    return torch.from_numpy(problem.retrained()) - problem.model.weights


@pytest.mark.parametrize("outputs", [1, 3])
def test_one_record_is_read_off_the_weights_by_whoever_has_the_statistics(outputs):
    problem = make(0, 50, 6, outputs, 1)
    remaining = problem.statistics.downdate(problem.forget)
    leak = reconstruction_leak(moved(problem), problem.forget, remaining, problem.ridge)
    assert leak is not None
    # H_rΔW = x eᵀ up to the ridge's share of one sample.
    assert leak.cosine_with_statistics == pytest.approx(1.0, abs=1e-3)
    assert leak.cosine_with_statistics is not None
    assert leak.cosine < leak.cosine_with_statistics


def test_the_leak_is_that_of_numpys_singular_vectors():
    problem = make(1, 80, 5, 3, 7)
    change = moved(problem)
    remaining = problem.statistics.downdate(problem.forget)
    leak = reconstruction_leak(change, problem.forget, remaining, problem.ridge)
    assert leak is not None
    x_f, x_r = problem.x[:7], problem.x[7:]
    hessian = x_r.T @ x_r + 1e-2 * 73 * np.eye(5)
    for matrix, found in (
        (change.numpy(), leak.cosine),
        (hessian @ change.numpy(), leak.cosine_with_statistics),
    ):
        left = np.linalg.svd(matrix)[0][:, 0]
        wanted = np.abs(x_f @ left / np.linalg.norm(x_f, axis=1)).max()
        assert found == pytest.approx(wanted, abs=1e-9)


def test_without_statistics_there_is_only_the_difference_itself():
    problem = make(2, 50, 6, 2, 1)
    leak = reconstruction_leak(moved(problem), problem.forget, None, problem.ridge)
    assert leak is not None
    assert leak.cosine_with_statistics is None


def test_no_change_and_no_features_reveal_nothing():
    problem = make(3, 50, 6, 2, 1)
    still = torch.zeros(6, 2, dtype=torch.float64)
    assert reconstruction_leak(still, problem.forget, None, problem.ridge) is None
    empty = samples(np.zeros((1, 6)), np.ones((1, 2)))
    leak = reconstruction_leak(moved(problem), empty, None, problem.ridge)
    assert leak is not None
    assert leak.cosine == 0.0


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_the_direction_does_not_depend_on_the_scale(scale):
    matrix = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    found = leading_directions(torch.stack([scale * matrix, matrix, 0 * matrix]))
    assert found[0].abs().tolist() == pytest.approx([0.6, 0.8])
    assert found[1].abs().tolist() == pytest.approx([0.6, 0.8])
    assert found[2].tolist() == [0.0, 0.0]


def test_noise_as_large_as_the_change_hides_a_record():
    problem = make(4, 2000, 400, 3, 1)
    change = moved(problem)
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(change.shape, generator=rng, dtype=torch.float64)
    noise *= change.norm() / noise.norm()
    plain = reconstruction_leak(change, problem.forget, None, problem.ridge)
    hidden = reconstruction_leak(change + 10 * noise, problem.forget, None, problem.ridge)
    assert plain is not None
    assert hidden is not None
    assert plain.cosine > 0.8
    assert hidden.cosine < 0.3


def test_a_logistic_step_is_read_off_with_one_hessian_an_output():
    # A constant ridge: one record has no share of it, so the step's gradient is x eᵀ alone.
    ridge = Ridge(RidgeConvention.TOTAL, 0.8)
    problem = logistic_problems.make(5, 80, 6, 2, ridge=ridge)
    forget = problem.rows(slice(0, 1))
    result, _, remaining = logistic_problems.delete(
        problem.model, problem.statistics, forget, Anchor.MOVE
    )
    change = result.weights - problem.model.weights
    leak = reconstruction_leak(change, forget, remaining, problem.ridge)
    assert leak is not None
    assert leak.cosine_with_statistics == pytest.approx(1.0, abs=1e-3)
    assert leak == result.metrics.reconstruction
