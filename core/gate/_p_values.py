"""What every test of a skewed forget set is made of: p-values, and the verdict on several."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from core.gate._failure import BETTER_MEANS, GateFailedError
from core.results import GateResult
from core.vocabulary import RefusalCause

# Fewer samples say nothing about their own spread.
FEWEST_SAMPLES = 8
NAME = "forget_set_is_exchangeable"
# Of repeated samples nothing but round-off is left of a spread.
SMALLEST_SPREAD = 1e-8
MOST_DIRECTIONS = 12
_SAMPLES_A_DIRECTION = 20

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SkewTest:
    """One test: its p-value, and what it compared."""

    p_value: float
    compared: str


def require_testable(n_forget: int, level: float) -> None:
    """Check that a forget set is large enough for any test.

    Args:
        n_forget: n_f.
        level: Of significance, for the record.

    Raises:
        GateFailedError: It has fewer than 8 samples.
    """
    if n_forget >= FEWEST_SAMPLES:
        return
    raise GateFailedError(
        GateResult(
            NAME,
            passed=False,
            value=None,
            threshold=level,
            detail=f"{n_forget} forget samples are too few to test whether they are drawn "
            f"like the training set: at least {FEWEST_SAMPLES} are needed",
        ),
        RefusalCause.FORGET_SET_TOO_SMALL,
        f"batch more deletions, {BETTER_MEANS}",
    )


def judge(tests: Sequence[SkewTest], level: float) -> GateResult:
    """Hold several tests together against a level of significance, by Bonferroni's inequality.

    Args:
        tests: At least one.
        level: In (0, 1).

    Returns:
        The passed gate: the smallest p-value times the number of tests, against the level.

    Raises:
        GateFailedError: The forget set differs.
    """
    first = min(tests, key=lambda test: test.p_value)
    value = min(1.0, len(tests) * first.p_value)
    passed = value >= level
    names = ", ".join(test.compared for test in tests)
    result = GateResult(
        NAME,
        passed,
        value,
        level,
        f"tests of {len(tests)} kinds ({names}) give p ≈ {value:.3g} together"
        + ("" if passed else f"; the forget set differs in {first.compared}"),
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.FORGET_SET_SKEWED,
            f"{BETTER_MEANS}: this forget set is not drawn like the training set, so its curvature "
            "cannot stand for the rest's",
        )
    return result


def mean_p_value(
    values: Array, expected: Array, slack: float, population: int, rng: np.random.Generator
) -> float:
    r"""Return the p-value of Hotelling's test that values drawn from D have the expected mean.

    T² = m (φ̄ − μ)ᵀS⁻¹(φ̄ − μ) / (1 − m/n) with m rows, the last factor since they are drawn
    without replacement; T²(m−k)/(k(m−1)) has the law F(k, m−k) for normal means. With many columns
    k random mixtures of them are tested: S of few samples says nothing about many directions.

    Args:
        values: φ of the samples, shape (m, columns).
        expected: μ, shape (columns,).
        slack: Bound on the error of μ, Euclidean norm: T is lowered by what that may amount to.
        population: n.
        rng: Draws the mixtures.

    Returns:
        A number in [0, 1].
    """
    count, columns = values.shape
    scale = np.sqrt(np.square(values - expected).mean(axis=0))
    used = scale > 0
    if not used.any():
        return 1.0  # Every sample has exactly the mean of all.
    scale = np.where(used, scale, 1.0)
    directions = min(columns, MOST_DIRECTIONS, max(1, count // _SAMPLES_A_DIRECTION))
    mixture = np.eye(columns)
    if directions < columns:
        mixture = np.linalg.qr(rng.standard_normal((columns, directions)))[0]
    scaled = ((values - expected) / scale) @ mixture
    eigenvalues, vectors = np.linalg.eigh(np.atleast_2d(np.cov(scaled, rowvar=False)))
    spread = np.sqrt(np.maximum(eigenvalues, SMALLEST_SPREAD**2))
    root = math.sqrt(count / (1.0 - count / population))
    distance = root * float(np.linalg.norm((scaled.mean(axis=0) @ vectors) / spread))
    allowance = root * slack / float(scale[used].min() * spread.min())
    square = max(distance - allowance, 0.0) ** 2
    ratio = square * (count - directions) / (directions * (count - 1))
    return float(special().fdtrc(directions, count - directions, ratio))


def array(values: Tensor) -> Array:
    """Return a tensor's numbers on the CPU.

    Args:
        values: Any shape, float64.

    Returns:
        The same shape.
    """
    found: Array = values.detach().cpu().numpy()
    return found


def special() -> Any:
    """Return `scipy.special`: distribution functions; comes with the worker's solvers, untyped.

    Returns:
        The module.
    """
    return importlib.import_module("scipy.special")
