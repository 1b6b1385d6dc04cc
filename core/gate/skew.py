r"""Is the forget set drawn like the training set? What METHOD (7) assumes, tested.

Under the hypothesis D_f is a random subset of D, drawn without replacement. For any function φ of a
sample whose mean over D is known, the mean over D_f is then known up to sampling noise. What is
known without any data:

* the model is at an optimum, so the per-sample gradients x eᵀ (e the residual of the sample) have
  the mean −(shift(n)/n)·W over D, whatever D is: *gradient balance*;

and what stored statistics add: the class counts, the mean and covariance of the features, and for
squared loss the training gradient itself and the mean squared residual.

The tests' level is shared out by Bonferroni's inequality: the smallest p-value times their number.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.gate._p_values import (
    MOST_DIRECTIONS,
    NAME,
    SMALLEST_SPREAD,
    SkewTest,
    array,
    judge,
    mean_p_value,
    require_testable,
    special,
)
from core.gate._sums import class_counts, feature_sums
from core.problem import LinearModel, SampleSet
from core.results import GateResult
from core.statistics import Statistics, StoredStatistics
from core.vocabulary import Loss, Mechanism

# Pearson's rule: with fewer expected in a class, χ² is not the law of the statistic.
_FEWEST_EXPECTED = 5.0
_DRAWS = 9_999


def require_exchangeable(
    model: LinearModel,
    forget: SampleSet,
    statistics: Statistics | None,
    *,
    level: float,
    seed: int,
) -> GateResult:
    """Check that nothing tells the forget set from a random subset of the training set.

    Args:
        model: The model before.
        forget: D_f.
        statistics: Of the whole training set, if any are stored.
        level: Of significance, over all tests together, in (0, 1).
        seed: Of random directions and of Monte-Carlo draws; both are made on the CPU.

    Returns:
        The passed gate: the smallest p-value times the number of tests, against the level.

    Raises:
        GateFailedError: The forget set differs, or is too small for any test.
    """
    require_testable(len(forget), level)
    rng = np.random.default_rng(seed)
    return judge(list(_tests(model, forget, statistics, rng)), level)


def skew_not_tested() -> GateResult:
    """Return what the record says where the policy switched the skew tests off.

    Returns:
        A gate that was not held against anything; the assumption stays an assumption.
    """
    return GateResult(
        NAME,
        passed=True,
        value=None,
        threshold=None,
        detail="not tested: the policy's skew_level is 0, so that the forget set is drawn like the "
        "training set is nothing but an assumption",
    )


def _tests(
    model: LinearModel, forget: SampleSet, statistics: Statistics | None, rng: np.random.Generator
) -> Iterator[SkewTest]:
    yield from _gradient_tests(model, forget, statistics, rng)
    if statistics is None:
        return
    if (counts := class_counts(statistics)) is not None and _one_hot(forget.targets):
        yield _count_test(counts, forget.targets, rng)
    if (sums := feature_sums(statistics)) is not None:
        yield _feature_test(statistics, sums, forget, rng)
    if isinstance(statistics, StoredStatistics):
        yield _residual_test(model, forget, statistics)


# --- Gradient balance ----------------------------------------------------------------------------


def _gradient_tests(
    model: LinearModel, forget: SampleSet, statistics: Statistics | None, rng: np.random.Generator
) -> Iterator[SkewTest]:
    # Linear functionals of the mean of x eᵀ: along the weights, w_cᵀx·e_c, which needs no choice,
    # and along the mean feature. That direction is taken from one half and tested on the other:
    # chosen from the samples that it is tested on, it would find differences everywhere.
    mean, slack = _mean_gradient(model, statistics)
    margins = forget.features @ model.weights
    probabilities = margins if model.loss is Loss.SQUARED else torch.sigmoid(margins)
    residuals = probabilities - forget.targets
    along_weights = (model.weights * mean).sum(dim=0)
    reach = float(torch.linalg.vector_norm(model.weights, dim=0).max())
    p_value = mean_p_value(
        array(margins * residuals), array(along_weights), slack * reach, model.n_samples, rng
    )
    yield SkewTest(p_value, "gradients along the weights")
    order = torch.from_numpy(rng.permutation(len(forget))).to(forget.features.device)
    first, second = order[: len(forget) // 3], order[len(forget) // 3 :]
    direction = forget.features[first].mean(dim=0)
    reach = float(torch.linalg.vector_norm(direction))
    p_value = mean_p_value(
        array((forget.features[second] @ direction)[:, None] * residuals[second]),
        array(direction @ mean),
        slack * reach,
        model.n_samples,
        rng,
    )
    yield SkewTest(p_value, "gradients along the mean feature")


def _mean_gradient(model: LinearModel, statistics: Statistics | None) -> tuple[Tensor, float]:
    # The mean of x eᵀ over D, shape (d, C), and how far off it may be in the Frobenius norm.
    shift = model.ridge.shift(model.n_samples)
    if isinstance(statistics, StoredStatistics):
        gradient = statistics.training_gradient(model.weights, model.ridge)
        off = statistics.training_gradient_round_off(model.weights, model.ridge)
    else:
        gradient, off = torch.zeros_like(model.weights), model.gradient_norm_bound
        if model.privacy is not None and model.privacy.mechanism is Mechanism.OBJECTIVE:
            # The optimum balances b as well, a secret: ‖b‖ exceeds this once in 3,000 draws.
            off += model.privacy.sigma * (math.sqrt(model.weights.numel()) + 4.0)
    return (gradient - shift * model.weights) / model.n_samples, off / model.n_samples


# --- What statistics add -------------------------------------------------------------------------


def _one_hot(targets: Tensor) -> bool:
    is_bit = bool(((targets == 0) | (targets == 1)).all())
    return is_bit and bool((targets.sum(dim=1) == 1).all())


def _count_test(counts: tuple[int, ...], targets: Tensor, rng: np.random.Generator) -> SkewTest:
    # Pearson's statistic of the class histogram, whose law under the hypothesis is that of draws
    # from an urn with these counts: χ² where every class expects enough, else by simulation.
    population, drawn = np.array(counts), int(targets.shape[0])
    expected = drawn * population / population.sum()
    present = expected > 0
    found = array(targets.sum(dim=0))
    if (found[~present] > 0).any():
        return SkewTest(0.0, "class counts")

    def statistic(histogram: Any) -> Any:
        return (np.square(histogram - expected)[..., present] / expected[present]).sum(axis=-1)

    if expected[present].min() >= _FEWEST_EXPECTED:
        total = int(population.sum())
        corrected = float(statistic(found)) * (total - 1) / (total - drawn)
        freedom = int(present.sum()) - 1
        p_value = float(special().chdtrc(freedom, corrected)) if freedom > 0 else 1.0
        return SkewTest(p_value, "class counts")
    simulated = rng.multivariate_hypergeometric(population, drawn, size=_DRAWS)
    # A margin for sums of the same terms in another order.
    as_far = int((statistic(simulated) >= statistic(found) * (1 - 1e-12)).sum())
    return SkewTest((1 + as_far) / (1 + _DRAWS), "class counts")


def _feature_test(
    statistics: Statistics, sums: Tensor, forget: SampleSet, rng: np.random.Generator
) -> SkewTest:
    # Mean features along random directions: mean and covariance over D are known, so no estimate
    # of either costs power, and few samples suffice.
    width, population, drawn = sums.shape[0], statistics.n_samples, len(forget)
    size = min(width, MOST_DIRECTIONS)
    directions = torch.from_numpy(rng.standard_normal((width, size))).to(sums)
    mean = directions.T @ sums / population
    second = directions.T @ (statistics.gram @ directions) / population
    covariance = array(second - torch.outer(mean, mean))
    difference = array((forget.features @ directions).mean(dim=0) - mean)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # Directions without spread over D show round-off only.
    kept = eigenvalues > SMALLEST_SPREAD * float(second.diagonal().max())
    if not kept.any():
        return SkewTest(1.0, "mean features")
    parts = (difference @ vectors)[kept] / np.sqrt(eigenvalues[kept])
    square = drawn * (population - 1) / (population - drawn) * float(np.square(parts).sum())
    return SkewTest(float(special().chdtrc(int(kept.sum()), square)), "mean features")


def _residual_test(model: LinearModel, forget: SampleSet, statistics: StoredStatistics) -> SkewTest:
    # Σ_D‖e‖² = tr WᵀGW − 2 tr WᵀB + tr YᵀY is stored: samples that the model fits worst, or best,
    # differ from it.
    weights = model.weights
    inner = statistics.gram @ weights - 2.0 * statistics.cross
    total = float((weights * inner).sum()) + float(statistics.target_gram.trace())
    reach = 1.0 + float(weights.square().sum())
    residuals = forget.features @ weights - forget.targets
    p_value = mean_p_value(
        array(residuals.square().sum(dim=1, keepdim=True)),
        np.array([total / statistics.n_samples]),
        statistics.round_off * reach * weights.shape[1] / statistics.n_samples,
        statistics.n_samples,
        np.random.default_rng(0),  # one column: nothing is drawn
    )
    return SkewTest(p_value, "squared residuals")
