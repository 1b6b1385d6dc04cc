"""Each baseline does what its paper says, on a tiny problem."""

import pytest
import torch

from benchmarks import _data, baselines
from benchmarks.baselines import jit, random_labels
from core.problem import SampleSet
from demo.data import DatasetName, load


@pytest.fixture(scope="module")
def problem():
    digits = _data.shorten(load(DatasetName.DIGITS), 600)
    whole = _data.samples(digits)
    kept = torch.ones(len(whole), dtype=torch.bool)
    weights = _data.normal_equations(whole, kept).solve(_data.per_sample(1e-3))
    return weights, _data.rows_of(whole, _data.random_share(digits, 20.0, 0).rows)


def mean_loss(weights, samples):
    return float((samples.features @ weights - samples.targets).square().sum(dim=1).mean())


def mean_slope(weights, seed=7):
    # The local Lipschitz constant of a linear head, in random directions.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2000, len(weights), generator=generator, dtype=torch.float64)
    lengths = torch.linalg.vector_norm(directions, dim=1)
    return float((torch.linalg.vector_norm(directions @ weights, dim=1) / lengths).mean())


@pytest.mark.parametrize("name", ["NegGrad", "Random Labels", "Adversarial"])
def test_the_loss_on_the_forget_samples_grows(problem, name):
    weights, forget = problem

    moved = baselines.ALL[name](weights, forget, 0)

    assert mean_loss(moved, forget) > mean_loss(weights, forget)


def test_random_labels_are_fitted_better_than_before(problem):
    # Their loss falls; that accuracy does is not promised, and with these few steps it does not.
    weights, forget = problem
    wrong = random_labels.wrong_targets(forget.targets, torch.Generator().manual_seed(0))

    moved = random_labels.unlearn(weights, forget, 0)

    relabelled = SampleSet(forget.features, wrong)
    assert mean_loss(moved, relabelled) < mean_loss(weights, relabelled)


def test_jit_makes_the_head_smoother(problem):
    weights, forget = problem

    assert mean_slope(jit.unlearn(weights, forget, 0)) < mean_slope(weights)


def test_wrong_targets_are_never_right(problem):
    _, forget = problem

    wrong = random_labels.wrong_targets(forget.targets, torch.Generator().manual_seed(0))

    assert torch.equal(wrong.sum(dim=1), torch.ones(len(forget), dtype=torch.float64))
    assert float((wrong * forget.targets).sum()) == 0.0


@pytest.mark.parametrize("name", list(baselines.ALL))
def test_baselines_repeat_by_their_seed_and_leave_their_inputs_alone(problem, name):
    weights, forget = problem
    before = weights.clone()
    copy = SampleSet(forget.features.clone(), forget.targets.clone())

    first, again = (baselines.ALL[name](weights, forget, 5) for _ in range(2))

    assert torch.equal(first, again)
    assert torch.equal(weights, before)
    assert torch.equal(forget.features, copy.features)
    assert torch.equal(forget.targets, copy.targets)
