import dataclasses
import math

import pytest
import torch
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.problem import FeatureSamples
from core.problem import Ridge
from core.vocabulary import Loss, RidgeConvention
from tests.reference.networks import SPECS, TinyProblem

PROBLEM = TinyProblem.draw(SPECS["mlp-2"], 12)
X, Y = torch.ones(3, 4, dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)


@pytest.mark.parametrize("name", ["linear", "mlp-3", "cnn-3"])
def test_outputs_and_gradient_are_those_of_the_explicit_rows(name):
    problem = TinyProblem.draw(SPECS[name], 6)
    model, weights = problem.model, torch.full_like(problem.weights, 0.1)
    jacobians = torch.from_numpy(problem.jacobians)
    centre = problem.targets - torch.from_numpy(problem.misfit)
    for moved in (None, weights):
        used = problem.weights if moved is None else moved
        outputs = centre + (jacobians @ used)[:, :, 0]
        assert_close(model.outputs(problem.features, moved), outputs, rtol=1e-10, atol=1e-10)
        errors = (outputs - problem.targets)[:, :, None]
        gradient = (jacobians.mT @ errors).sum(dim=0)
        assert_close(model.data_gradient(problem.data, moved), gradient, rtol=1e-10, atol=1e-10)


def test_the_optimum_balances_the_data_and_the_ridge():
    gradient = PROBLEM.model.data_gradient(PROBLEM.data)
    shift = PROBLEM.ridge.shift(len(PROBLEM))
    assert_close(gradient, -shift * PROBLEM.weights, rtol=1e-9, atol=1e-12)


def test_a_networks_loss_is_squared():
    assert PROBLEM.model.loss is Loss.SQUARED


def test_samples_are_taken_by_number_or_mask():
    data = FeatureSamples(torch.arange(12.0, dtype=torch.float64).reshape(3, 2, 2), Y)
    taken = data.take(torch.tensor([2, 0]))
    assert torch.equal(taken.features[:, 0, 0], torch.tensor([8.0, 0.0], dtype=torch.float64))
    assert len(data.take(torch.tensor([True, False, True]))) == 2


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (X.float(), Y, r"features: expected float64 of shape \(n, \.\.\.\), got torch\.float32"),
        (X[0], Y[0], r"features: expected float64 of shape \(n, \.\.\.\), .* of \(4,\)"),
        (X, Y[:2], r"targets: expected shape \(3, any\), got \(2, 2\)"),
        (X, Y.float(), "targets: expected float64"),
        (X[:0], Y[:0], "features: an empty set has no influence"),
        (X * math.inf, Y, "features: contains NaN or infinite"),
        (X[:, :, None] * math.nan, Y, "features: contains NaN or infinite"),
        (X, Y * math.nan, "targets: contains NaN or infinite"),
    ],
)
def test_samples_that_do_not_fit_are_refused_by_name(features, targets, message):
    with pytest.raises(InvalidTensorError, match=message):
        FeatureSamples(features, targets)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": torch.ones(3, 1, dtype=torch.float64)}, InvalidTensorError, "weights: exp"),
        ({"weights": PROBLEM.weights.T}, InvalidTensorError, "weights: expected shape"),
        ({"n_samples": 0}, InvalidOptionError, "n_samples: expected at least 1, got 0"),
        ({"jacobian_norm_bound": 0.0}, InvalidOptionError, "jacobian_norm_bound: .* got 0.0"),
        ({"jacobian_norm_bound": math.inf}, InvalidOptionError, "jacobian_norm_bound: .* got inf"),
        ({"jacobian_norm_bound": math.nan}, InvalidOptionError, "jacobian_norm_bound: .* got nan"),
        ({"gradient_norm_bound": -1.0}, InvalidOptionError, "gradient_norm_bound: .* got -1.0"),
        ({"gradient_norm_bound": math.nan}, InvalidOptionError, "gradient_norm_bound: .* nan"),
        (
            {"ridge": Ridge(RidgeConvention.TOTAL, 0.0)},
            InvalidOptionError,
            "ridge strength: 0 leaves .* undetermined .*; train with a positive one",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(PROBLEM.model, **changes)
