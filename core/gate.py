"""Tests that a deletion has to pass before anything is written (METHOD §4)."""

import math

import torch
from torch import Tensor

from core.errors import CoreError, IllConditionedError, SolverError, StatisticsMismatchError
from core.hessian.forget_curvature import forget_curvature
from core.newton import cholesky
from core.options import GatePolicy, unknowns
from core.problem import Ridge, SampleSet
from core.results import GateResult
from core.rounding import LARGEST_RELATIVE_ROUND_OFF
from core.vocabulary import RefusalCause

_HALVES = 2
_BETTER_MEANS = "store statistics (method `stored`) or retrain"


class GateFailedError(CoreError):
    """A gate failed: the deletion is refused and nothing changes.

    Attributes:
        result: The failed gate.
        cause: Coded reason.
        remedy: What would help.
    """

    def __init__(self, result: GateResult, cause: RefusalCause, remedy: str) -> None:
        super().__init__(result.detail)
        self.result = result
        self.cause = cause
        self.remedy = remedy


def require_remainder(n_forget: int, n_samples: int) -> GateResult:
    """Check n_f < n.

    Args:
        n_forget: n_f.
        n_samples: n.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: Nothing would remain to be trained on.
    """
    passed = n_forget < n_samples
    result = GateResult(
        "something_remains",
        passed,
        float(n_forget),
        float(n_samples),
        f"{n_forget} of {n_samples} samples are to be forgotten",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.NOTHING_WOULD_REMAIN,
            "retire the model: without training samples there is nothing that it could be",
        )
    return result


def require_precise(relative_round_off: float) -> GateResult:
    """Check that stored statistics are precise enough to refuse samples and to certify anything.

    Round-off as large as the statistics would let any samples pass the downdate, and a bound of its
    size would certify weights that it says nothing about.

    Args:
        relative_round_off: Bound on the round-off of the statistics over their trace.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: It is above 1e-6.
    """
    passed = relative_round_off <= LARGEST_RELATIVE_ROUND_OFF
    result = GateResult(
        "statistics_are_precise",
        passed,
        relative_round_off if math.isfinite(relative_round_off) else None,
        LARGEST_RELATIVE_ROUND_OFF,
        f"the statistics carry a round-off of at most {relative_round_off:.3g} of their trace",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.ILL_CONDITIONED,
            "collect the statistics of the remaining samples anew, in float64, or retrain",
        )
    return result


def downdate_passed() -> GateResult:
    """Return the gate that `StoredStatistics.downdate` is, when it did not raise.

    Returns:
        The passed gate.
    """
    return _downdate_gate(
        "the downdated statistics are positive semidefinite up to round-off, as those of any data "
        "set are"
    )


def downdate_failed(error: StatisticsMismatchError) -> GateFailedError:
    """Return the refusal of a forget set that was never in the training set.

    Args:
        error: What the downdate raised.

    Returns:
        The refusal, to be raised or recorded.
    """
    return GateFailedError(
        _downdate_gate(str(error), passed=False),
        RefusalCause.NOT_IN_TRAINING_SET,
        "send the samples exactly as the model was trained on them: same features, same targets",
    )


def unsolvable(error: IllConditionedError | SolverError) -> GateFailedError:
    """Return the refusal of a deletion whose linear system or program has no usable solution.

    Args:
        error: What the solver raised.

    Returns:
        The refusal, to be raised or recorded.
    """
    return GateFailedError(
        GateResult("solution_exists", passed=False, value=None, threshold=None, detail=str(error)),
        RefusalCause.ILL_CONDITIONED,
        "train with a stronger ridge, or rescale or drop features that repeat each other",
    )


def require_halves(n_forget: int) -> GateResult:
    """Check that the forget set can be halved, as (7) needs.

    Args:
        n_forget: n_f.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: A single sample says nothing about its own estimate's error.
    """
    passed = n_forget >= _HALVES
    result = GateResult(
        "forget_set_size",
        passed,
        float(n_forget),
        float(_HALVES),
        f"forget samples: {n_forget}; the cross-fitted estimate needs at least {_HALVES}",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.FORGET_SET_TOO_SMALL,
            f"batch more deletions, {_BETTER_MEANS}: one sample cannot stand for the retain set",
        )
    return result


def require_identified(count: int, num_features: int) -> GateResult:
    """Check that perturbations are at least as many as the unknowns of (2).

    Args:
        count: m.
        num_features: d.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: Solvers would report `optimal` for one of many solutions.
    """
    needed = unknowns(num_features)
    passed = count >= needed
    result = GateResult(
        "perturbations_identify",
        passed,
        float(count),
        float(needed),
        f"{count} equations for {needed} unknowns of a symmetric {num_features}×{num_features} "
        "matrix",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.ESTIMATE_NOT_IDENTIFIED,
            f"ask for {needed} perturbations, or for their limit, method `forget-curvature`",
        )
    return result


def require_reliable(name: str, estimate: float, policy: GatePolicy) -> GateResult:
    """Check an estimate of ρ_g against the policy's threshold.

    Args:
        name: Of the gate.
        estimate: ρ̂_g, dimensionless; doing nothing scores 1.
        policy: Holds the threshold.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: The estimate reaches the threshold, or is not a number.
    """
    passed = estimate < policy.threshold  # False for NaN
    result = GateResult(
        name,
        passed,
        estimate if math.isfinite(estimate) else None,
        policy.threshold,
        f"estimated residual {estimate:.3g} of the forget gradient; doing nothing scores 1",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.ESTIMATE_UNRELIABLE,
            f"batch more deletions, {_BETTER_MEANS}: this forget set is too small for an estimate",
        )
    return result


def cross_fitted_residual(
    *,
    forget: SampleSet,
    forget_gradient: Tensor,
    n_remaining: int,
    ridge: Ridge,
    splits: int,
    seed: int,
) -> float:
    r"""Estimate ρ_g = ‖∇L(W_u; D_r)‖ / ‖∇_f‖ of `forget-curvature`, METHOD (7).

    Each half A of the forget set plays the forget set, the other B the retain set:
    ‖n_r(H̄_B − H̄_A)Ĥ_A⁻¹∇_f‖ with Ĥ_A = n_rH̄_A, both ways, averaged over random splits. An
    estimate, not a bound: it takes the forget set to be drawn like the retain set.

    Args:
        forget: D_f, at least 2 samples.
        forget_gradient: ∇_f, shape (d, C), float64, with the forget set's share of the ridge.
        n_remaining: n_r.
        ridge: The L2 term.
        splits: How many random halvings are averaged.
        seed: Of the random halvings.

    Returns:
        ρ̂_g; 0 where ∇_f is 0, since then no step is taken and nothing is left over.

    Raises:
        IllConditionedError: A half's curvature has no Cholesky factor.
    """
    size = float(torch.linalg.norm(forget_gradient))
    if size == 0:
        return 0.0
    # Drawn on the CPU whatever the device, so that a seed means the same halves everywhere.
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(splits):
        order = torch.randperm(len(forget), generator=generator).to(forget.features.device)
        middle = len(forget) // 2
        first, second = (
            forget_curvature(_rows(forget, rows), n_remaining, ridge).matrix
            for rows in (order[:middle], order[middle:])
        )
        total += _mismatch(first, second, forget_gradient)
        total += _mismatch(second, first, forget_gradient)
    return total / (2 * splits * size)


def estimate_deviation(
    *, curvature: Tensor, estimate: Tensor, change: Tensor, forget_gradient: Tensor
) -> float:
    """Return ‖(n_rH̄_f − Ĥ)V‖ / ‖∇_f‖, which (7) lacks for an Ĥ other than n_rH̄_f.

    By the triangle inequality ‖(H_r − Ĥ)V‖ ≤ ‖(H_r − n_rH̄_f)V‖ + ‖(n_rH̄_f − Ĥ)V‖; (7) estimates
    the first term.

    Args:
        curvature: n_rH̄_f, shape (d, d), float64.
        estimate: Ĥ, shape (d, d), float64.
        change: V, shape (d, C), float64.
        forget_gradient: ∇_f, shape (d, C), float64.

    Returns:
        A number >= 0; 0 where ∇_f is 0.
    """
    size = float(torch.linalg.norm(forget_gradient))
    if size == 0:
        return 0.0
    return float(torch.linalg.norm((curvature - estimate) @ change)) / size


def _downdate_gate(detail: str, *, passed: bool = True) -> GateResult:
    return GateResult("downdate_is_possible", passed, value=None, threshold=None, detail=detail)


def _mismatch(fitted: Tensor, held_out: Tensor, forget_gradient: Tensor) -> float:
    change = cholesky(fitted).solve(forget_gradient)
    return float(torch.linalg.norm((held_out - fitted) @ change))


def _rows(samples: SampleSet, rows: Tensor) -> SampleSet:
    return SampleSet(samples.features[rows], samples.targets[rows])
