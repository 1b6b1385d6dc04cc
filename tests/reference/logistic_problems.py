"""Random logistic problems for the tests of `core`, as numpy arrays and as the core's own types."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Unlearned
from core.statistics import LogisticStatistics, collect_logistic
from core.vocabulary import Anchor, Loss, Method, RidgeConvention, Task
from tests.reference import logistic as reference
from tests.reference.problems import samples
from tests.reference.ridge import exact_shift

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LogisticProblem:
    """A training set, its ridge and noise, and the weights that its statistics are collected at."""

    x: Array
    y: Array
    ridge: Ridge
    weights: Array
    noise: Array | None = None

    @property
    def statistics(self) -> LogisticStatistics:
        noise = None if self.noise is None else torch.tensor(self.noise)
        return collect_logistic(
            [samples(self.x, self.y)], torch.tensor(self.weights), objective_noise=noise
        )

    @property
    def norm(self) -> float:
        return max(float(np.linalg.norm(self.x, axis=1).max()), 1e-9)

    @property
    def model(self) -> LinearModel:
        return LinearModel(
            torch.tensor(self.weights), self.ridge, len(self.x), self.norm, loss=Loss.LOGISTIC
        )

    def rows(self, chosen: slice | NDArray[np.int64]) -> SampleSet:
        return samples(self.x[chosen], self.y[chosen])

    def residual(self, weights: torch.Tensor, kept: slice | NDArray[np.int64]) -> float:
        """Return ‖∇L(W; D_kept)‖_F to 50 digits."""
        added = exact_shift(self.ridge.convention, self.ridge.strength, len(self.x[kept]))
        return reference.exact_gradient_norm(
            weights.numpy(), self.x[kept], self.y[kept], added, self.noise
        )

    def retrained(self, kept: slice | NDArray[np.int64]) -> Array:
        added = self.ridge.shift(len(self.x[kept]))
        return reference.retrain(self.x[kept], self.y[kept], added, self.noise)


def make(
    seed: int,
    count: int,
    width: int,
    outputs: int,
    *,
    ridge: Ridge | None = None,
    scale: float = 1.0,
    positive: bool = False,
    sloppy: float = 0.0,
    noise: float = 0.0,
) -> LogisticProblem:
    """Draw a problem, trained but for `sloppy` times random weights."""
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal((count, width))
    if positive:
        # As most backbones give them; also of one length, as the literature has it.
        x = scale * np.abs(x) / np.linalg.norm(x, axis=1, keepdims=True)
    teacher = rng.standard_normal((width, outputs)) / scale
    y = (x @ teacher + 0.5 * rng.standard_normal((count, outputs)) > 0).astype(float)
    moved = sloppy * rng.standard_normal((width, outputs))
    b = noise * rng.standard_normal((width, outputs)) if noise else None
    return _trained(x, y, ridge or Ridge(RidgeConvention.PER_SAMPLE, 1e-2), b, moved)


@st.composite
def problems(
    draw: st.DrawFn, *, most: int = 16, widest: int = 4, weakest: float = 1e-4
) -> LogisticProblem:
    """Small problems of every kind: few samples, repeated, constant and zero features, noise."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, width = draw(st.integers(3, most)), draw(st.integers(1, widest))
    outputs = draw(st.integers(1, 2))
    x = draw(st.sampled_from([1e-2, 1.0, 10.0])) * rng.standard_normal((count, width))
    match draw(st.sampled_from(["plain", "repeated", "constant", "zero", "positive"])):
        case "repeated":
            x[:, -1] = x[:, 0]
        case "constant":
            x[:, 0] = 1.0
        case "zero":
            x[:, 0] = 0.0
        case "positive":
            x = np.abs(x)
    y = (rng.random((count, outputs)) < draw(st.sampled_from([0.1, 0.5]))).astype(float)
    ridge = Ridge(draw(st.sampled_from(list(RidgeConvention))), draw(st.floats(weakest, 10.0)))
    noise = rng.standard_normal((width, outputs)) if draw(st.booleans()) else None
    moved = draw(st.sampled_from([0.0, 1e-3, 1.0])) * rng.standard_normal((width, outputs))
    return _trained(x, y, ridge, noise, moved)


def delete(
    model: LinearModel, statistics: LogisticStatistics, forget: SampleSet, anchor: Anchor
) -> tuple[Unlearned, LinearModel, LogisticStatistics]:
    """Delete by the pipeline, and return what the next deletion starts from."""
    result = unlearn(
        model,
        forget,
        statistics=statistics,
        task=Task.REGRESSION,  # targets need not be one-hot
        options=UnlearningOptions(method=Method.STORED, anchor=anchor),
    )
    if not isinstance(result, Unlearned):
        raise AssertionError(result)  # noqa: TRY004 - a finding, not a wrong argument
    assert isinstance(result.statistics, LogisticStatistics)
    after = dataclasses.replace(
        model,
        weights=result.weights,
        n_samples=result.n_samples,
        gradient_norm_bound=result.gradient_norm_bound,
    )
    return result, after, result.statistics


def bound_of(result: Unlearned, name: str = "residual_gradient_norm") -> float:
    """Return the value of a bound by name."""
    (value,) = (bound.value for bound in result.bounds if bound.name == name)
    assert value is not None
    return value


def _trained(
    x: Array, y: Array, ridge: Ridge, noise: Array | None, moved: Array
) -> LogisticProblem:
    weights = reference.retrain(x, y, ridge.shift(len(x)), noise)
    return LogisticProblem(x, y, ridge, weights + moved / max(np.abs(x).max(), 1.0), noise)
