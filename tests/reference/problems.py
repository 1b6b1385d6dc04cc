"""Random problems for the tests of `core`, as numpy arrays and as the core's own types."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from core.problem import LinearModel, Ridge, SampleSet
from core.statistics import StoredStatistics, collect
from core.vocabulary import RidgeConvention
from tests.reference import ridge as reference


@dataclass(frozen=True)
class Problem:
    """A training set of which the first n_f samples are to be forgotten, and a trained model."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    n_forget: int
    ridge: Ridge

    @property
    def data(self) -> SampleSet:
        return samples(self.x, self.y)

    @property
    def forget(self) -> SampleSet:
        return samples(self.x[: self.n_forget], self.y[: self.n_forget])

    @property
    def rest(self) -> SampleSet:
        return samples(self.x[self.n_forget :], self.y[self.n_forget :])

    @property
    def n_remaining(self) -> int:
        return len(self.x) - self.n_forget

    @property
    def statistics(self) -> StoredStatistics:
        return collect([self.data])

    @property
    def model(self) -> LinearModel:
        trained = reference.retrain(self.x, self.y, self.ridge.shift(len(self.x)))
        norm = float(np.linalg.norm(self.x, axis=1).max())
        return LinearModel(torch.from_numpy(trained), self.ridge, len(self.x), max(norm, 1e-3))

    def retrained(self) -> NDArray[np.float64]:
        """Return the optimum on the rest."""
        return reference.retrain(
            self.x[self.n_forget :], self.y[self.n_forget :], self.ridge.shift(self.n_remaining)
        )

    def retain_gradient_norm(self, weights: torch.Tensor) -> float:
        """Return ‖∇L(W; D_r)‖_F in exact arithmetic."""
        return reference.exact_gradient_norm(
            weights.numpy(),
            self.x[self.n_forget :],
            self.y[self.n_forget :],
            reference.exact_shift(self.ridge.convention, self.ridge.strength, self.n_remaining),
        )


def samples(x: NDArray[np.float64], y: NDArray[np.float64]) -> SampleSet:
    """Copy arrays into a sample set."""
    return SampleSet(torch.tensor(x), torch.tensor(y))


def make(
    seed: int,
    count: int,
    width: int,
    outputs: int,
    n_forget: int,
    *,
    ridge: Ridge | None = None,
    scale: float = 1.0,
    one_hot: bool = False,
) -> Problem:
    """Draw a problem."""
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal((count, width))
    y = rng.standard_normal((count, outputs))
    if one_hot:
        teacher = rng.standard_normal((width, outputs))
        y = np.eye(outputs)[(x @ teacher + 0.5 * y).argmax(axis=1)]
    return Problem(x, y, n_forget, ridge or Ridge(RidgeConvention.PER_SAMPLE, 1e-2))


@st.composite
def problems(draw: st.DrawFn, *, most: int = 24, widest: int = 5, weakest: float = 1e-6) -> Problem:
    """Small problems of every kind: few samples, repeated and constant features, large scales."""
    count = draw(st.integers(2, most))
    ridge = Ridge(draw(st.sampled_from(list(RidgeConvention))), draw(st.floats(weakest, 10.0)))
    problem = make(
        draw(st.integers(0, 2**32 - 1)),
        count,
        draw(st.integers(1, widest)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, count - 1)),
        ridge=ridge,
        scale=draw(st.sampled_from([1e-3, 1.0, 1e3])),
        one_hot=draw(st.booleans()),
    )
    match draw(st.sampled_from(["plain", "repeated", "constant", "zero"])):
        case "repeated":
            problem.x[:, -1] = problem.x[:, 0]
        case "constant":
            problem.x[:, 0] = 1.0
        case "zero":
            problem.x[:, 0] = 0.0
    return problem
