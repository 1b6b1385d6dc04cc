"""Streams of deletions that mix methods and anchors, against 40 digits."""

import mpmath
import numpy as np
import pytest
import torch

from core.options import GatePolicy, UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge, SampleSet, Surrogate
from core.results import Refused
from core.statistics import collect_logistic
from core.vocabulary import Anchor, Loss, Method, RefusalCause, RidgeConvention, Task


def true_residual(weights, x, y, shift, noise):
    with mpmath.workdps(40):
        total = mpmath.mpf(0)
        for column, targets, term in zip(weights.T, y.T, noise.T, strict=True):
            margins = [mpmath.fdot(map(float, row), map(float, column)) for row in x]
            misses = [1 / (1 + mpmath.exp(-z)) - t for z, t in zip(margins, targets, strict=True)]
            for place, weight in enumerate(column):
                entry = mpmath.fdot(misses, map(float, x[:, place]))
                total += (entry + shift * mpmath.mpf(float(weight)) + float(term[place])) ** 2
        return mpmath.sqrt(total)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("convention", list(RidgeConvention))
@pytest.mark.parametrize("seed", range(6))
def test_every_residual_bound_holds_whatever_methods_and_anchors_a_stream_mixes(seed, convention):
    rng = np.random.default_rng(seed)
    count, width, outputs = 30, 3, 2
    x = rng.standard_normal((count, width)) * 10.0 ** rng.uniform(-1, 2)
    x[::3] = x[0]
    y = (rng.random((count, outputs)) < 0.5).astype(float)
    noise = rng.standard_normal((width, outputs))
    ridge = Ridge(convention, 10.0 ** rng.uniform(-4, 0))
    start = tensor(rng.standard_normal((width, outputs)) / np.abs(x).max())
    statistics = collect_logistic(
        [SampleSet(tensor(x), tensor(y))], start, objective_noise=tensor(noise)
    )
    reach = float(np.linalg.norm(x, axis=1).max()) * (1 + 1e-9)
    left = float(true_residual(start.numpy(), x, y, ridge.shift(count), noise)) * (1 + 1e-9)
    model = LinearModel(start, ridge, count, reach, left, Loss.LOGISTIC)
    policy = GatePolicy(threshold=1.0, splits=2, require_identified=False, skew_level=0.0)
    # Whatever harm they do: the truth of the bounds is what is tested.
    object.__setattr__(policy, "threshold", 1e300)
    for method in rng.permutation([Method.STORED] * 3 + [Method.FORGET_CURVATURE] * 2):
        options = UnlearningOptions(
            method=Method(method), gate=policy, anchor=Anchor(rng.choice(list(Anchor)))
        )
        gone = int(rng.integers(2, 5))
        forget = SampleSet(tensor(x[:gone]), tensor(y[:gone]))
        inputs = {"task": Task.REGRESSION, "options": options, "statistics": statistics}
        result = unlearn(model, forget, surrogate=Surrogate(tensor(x)), **inputs)
        if isinstance(result, Refused):
            assert result.cause is not RefusalCause.NOT_IN_TRAINING_SET
            continue
        x, y, statistics = x[gone:], y[gone:], result.statistics
        truth = true_residual(result.weights.numpy(), x, y, ridge.shift(len(x)), noise)
        bounds = [b for b in result.bounds if b.name.startswith("residual_gradient_norm")]
        assert bounds
        for bound in bounds:
            assert truth <= bound.value, (bound.name, method, options.anchor)
        assert truth <= result.gradient_norm_bound
        model = LinearModel(
            result.weights, ridge, len(x), reach, result.gradient_norm_bound, Loss.LOGISTIC
        )
