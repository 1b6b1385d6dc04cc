import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.options import PerturbationOptions
from core.perturbation import draw, measure
from core.problem import Ridge
from core.vocabulary import PerturbationLaw, RidgeConvention
from tests.reference.problems import Problem, make

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))


def mean_forget_loss(problem: Problem, weights: np.ndarray) -> float:
    # Of the forget set in mean form, averaged over the outputs, with the ridge of the rest.
    n_r = problem.n_remaining
    x, y = problem.x[: problem.n_forget], problem.y[: problem.n_forget]
    shift = problem.ridge.shift(n_r) / n_r
    total = 0.5 * ((x @ weights - y) ** 2).sum() / len(x) + 0.5 * shift * (weights**2).sum()
    return total / weights.shape[1]


@CONVENTIONS
def test_gaussian_equations_are_the_literal_right_side_of_2(convention):
    problem = make(0, 50, 4, 3, 9, ridge=Ridge(convention, 0.2))
    options = PerturbationOptions(count=7, law=PerturbationLaw.GAUSSIAN, scale=0.5)
    found = measure(problem.model, problem.forget, options, seed=3)
    weights = problem.model.weights.numpy()
    x, y = problem.x[:9], problem.y[:9]
    gradient = x.T @ (x @ weights - y)
    if convention is RidgeConvention.PER_SAMPLE:
        gradient += 0.2 * 9 * weights
    for delta, curvature in zip(found.directions.numpy(), found.curvatures, strict=True):
        moved = weights + delta[:, None]
        difference = mean_forget_loss(problem, moved) - mean_forget_loss(problem, weights)
        linear = (9 / 41) * (gradient.mean(axis=1) / 9) @ delta
        assert float(curvature) == pytest.approx(difference + linear, rel=1e-10)


@CONVENTIONS
def test_antithetic_pairs_measure_the_curvature_alone(convention):
    problem = make(1, 50, 4, 3, 9, ridge=Ridge(convention, 0.2))
    found = measure(problem.model, problem.forget, PerturbationOptions(count=7), seed=3)
    shift = problem.ridge.shift(41) / 41
    curvature = problem.x[:9].T @ problem.x[:9] / 9 + shift * np.eye(4)
    deltas = found.directions.numpy()
    wanted = 0.5 * np.einsum("mi,ij,mj->m", deltas, curvature, deltas)
    assert_close(found.curvatures.numpy(), wanted, rtol=1e-12, atol=0.0)


def test_small_perturbations_lose_no_digits():
    problem = make(2, 50, 4, 3, 9)
    small, large = (
        measure(problem.model, problem.forget, PerturbationOptions(count=5, scale=scale), seed=1)
        for scale in (1e-9, 1.0)
    )
    assert_close(small.curvatures * 1e18, large.curvatures, rtol=1e-9, atol=0.0)


def test_more_perturbations_than_a_block_are_all_measured():
    problem = make(3, 30, 2, 1, 5)
    found = measure(problem.model, problem.forget, PerturbationOptions(count=600), seed=1)
    deltas = found.directions.numpy()
    curvature = problem.x[:5].T @ problem.x[:5] / 5 + 1e-2 * np.eye(2)
    assert_close(
        found.curvatures.numpy(), 0.5 * np.einsum("mi,ij,mj->m", deltas, curvature, deltas)
    )


def test_draws_are_seeded_and_scaled():
    options = PerturbationOptions(count=4000, scale=3.0)
    first = draw(options, 3, seed=1)
    assert torch.equal(first, draw(options, 3, seed=1))
    assert not torch.equal(first, draw(options, 3, seed=2))
    assert float(first.std()) == pytest.approx(3.0, rel=0.05)


def test_without_a_count_there_are_a_fifth_more_equations_than_unknowns():
    assert draw(PerturbationOptions(), 5, seed=0).shape == (18, 5)
