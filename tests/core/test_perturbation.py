import mpmath
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core import losses
from core.options import PerturbationOptions
from core.perturbation import draw, measure
from core.problem import LinearModel, Ridge, SampleSet
from core.vocabulary import Loss, PerturbationLaw, RidgeConvention
from tests.reference import semidefinite
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


def logistic(seed: int, *, shift: float = 0.2, size: float = 1.0) -> tuple[LinearModel, SampleSet]:
    rng = np.random.default_rng(seed)
    weights = torch.tensor(size * rng.standard_normal((3, 2)))
    labels = torch.tensor((rng.random((6, 2)) < 0.5).astype(float))
    ridge = Ridge(RidgeConvention.PER_SAMPLE, shift)
    model = LinearModel(weights, ridge, 20, 10.0, loss=Loss.LOGISTIC)
    return model, SampleSet(torch.tensor(rng.standard_normal((6, 3))), labels)


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 300.0])
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["moderate", "saturated"])
@pytest.mark.parametrize("law", list(PerturbationLaw))
def test_logistic_differences_have_all_their_digits_at_every_scale(law, size, scale):
    model, forget = logistic(0, size=size)
    options = PerturbationOptions(count=5, law=law, scale=scale)
    found = measure(model, forget, options, seed=4)
    assert found.curvatures.shape == (5, 2)
    features, targets = forget.features.numpy(), forget.targets.numpy()
    with mpmath.workdps(60):
        for output in range(2):
            loss = semidefinite.exact_logistic_loss(features, targets[:, output], 0.2)
            start = [mpmath.mpf(w) for w in model.weights[:, output].tolist()]
            slope = [mpmath.diff(loss_along(loss, start, axis), 0) for axis in range(3)]
            for delta, value in zip(found.directions, found.curvatures[:, output], strict=True):
                step = [mpmath.mpf(x) for x in delta.tolist()]
                ahead = loss([w + x for w, x in zip(start, step, strict=True)]) - loss(start)
                back = loss([w - x for w, x in zip(start, step, strict=True)]) - loss(start)
                linear = mpmath.fsum(g * x for g, x in zip(slope, step, strict=True))
                # n_f/n_r = 6/14.
                exact = ahead + linear * 6 / 14 if law is PerturbationLaw.GAUSSIAN else None
                exact = (ahead + back) / 2 if exact is None else exact
                assert float(value) == pytest.approx(float(exact), rel=1e-11)


def loss_along(loss, start, axis):
    return lambda t: loss([w + (t if place == axis else 0) for place, w in enumerate(start)])


def test_small_logistic_pairs_measure_the_hessian_of_each_output():
    model, forget = logistic(1)
    found = measure(model, forget, PerturbationOptions(count=7, scale=1e-6), seed=3)
    hessians = losses.OF[Loss.LOGISTIC].hessian(model.weights, forget.features) / 6
    hessians += 0.2 * torch.eye(3, dtype=torch.float64)
    deltas = found.directions
    wanted = 0.5 * torch.einsum("mi,cij,mj->mc", deltas, hessians, deltas)
    assert_close(found.curvatures, wanted, rtol=1e-9, atol=0.0)


def test_logistic_differences_of_no_change_are_zero():
    model, forget = logistic(2)
    still = SampleSet(torch.zeros_like(forget.features), forget.targets)
    found = measure(model, still, PerturbationOptions(count=300), seed=3)
    ridge = 0.1 * found.directions.square().sum(dim=1)
    assert_close(found.curvatures, ridge[:, None].expand(300, 2), rtol=1e-14, atol=0.0)
