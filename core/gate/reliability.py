"""Is an estimate of the retain Hessian better than doing nothing? METHOD (7)."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from core import curvature, losses, newton
from core.gate._failure import BETTER_MEANS, GateFailedError
from core.hessian.forget_curvature import forget_curvature
from core.options import GatePolicy, unknowns
from core.problem import LinearModel, SampleSet
from core.results import GateResult
from core.vocabulary import RefusalCause

_HALVES = 2


def require_halves(n_forget: int, *, remedy: str | None = None) -> GateResult:
    """Check that the forget set can be halved, as (7) needs.

    Args:
        n_forget: n_f.
        remedy: What would help; None for what helps an estimate from the forget set alone.

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
            remedy
            or f"batch more deletions, {BETTER_MEANS}: one sample cannot stand for the retain set",
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


def require_reliable(
    name: str,
    estimate: float,
    policy: GatePolicy,
    *,
    finding: str = "estimated residual",
    remedy: str = f"batch more deletions, {BETTER_MEANS}: this forget set is too small for an "
    "estimate",
) -> GateResult:
    """Check an estimate of ρ_g against the policy's threshold.

    Args:
        name: Of the gate.
        estimate: ρ̂_g, dimensionless; doing nothing scores 1.
        policy: Holds the threshold.
        finding: What the figure is.
        remedy: What would help.

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
        f"{finding} {estimate:.3g} of the forget gradient; doing nothing scores 1",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.ESTIMATE_UNRELIABLE,
            remedy,
        )
    return result


def cross_fitted_residual(
    model: LinearModel,
    forget: SampleSet,
    forget_gradient: Tensor,
    n_remaining: int,
    *,
    splits: int,
    seed: int,
) -> float:
    r"""Estimate ρ_g = ‖∇L(W_u; D_r)‖ / ‖∇_f‖ of `forget-curvature`, METHOD (7).

    Each half A of the forget set plays the forget set, the other B the retain set. With
    Ĥ_A = n_rH̄_A and V = Ĥ_A⁻¹∇_f, ‖n_r(∇̄_B(W+V) − ∇̄_B(W)) − Ĥ_AV‖, both ways, averaged over random
    splits. For squared loss that is ‖n_r(H̄_B − H̄_A)V‖, METHOD's form; for logistic loss it has the
    second-order remainder in it, which large steps of large forget sets are judged by. An estimate,
    not a bound: it takes the forget set to be drawn like the retain set.

    Args:
        model: W, its loss and its ridge.
        forget: D_f, at least 2 samples.
        forget_gradient: ∇_f, shape (d, C), float64, with the forget set's share of the ridge.
        n_remaining: n_r.
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
    total = 0.0
    for halves in halvings(forget, splits=splits, seed=seed):
        for half, other in (halves, halves[::-1]):
            total += _mismatch(model, half, other, forget_gradient, n_remaining)
    return total / (2 * splits * size)


def halvings(
    samples: SampleSet, *, splits: int, seed: int
) -> Iterator[tuple[SampleSet, SampleSet]]:
    """Draw random halvings of a set of samples.

    Args:
        samples: At least 2; the second half of an odd number has one more.
        splits: How many halvings.
        seed: Of the draws; made on the CPU, so that it means the same halves on every device.

    Yields:
        Both halves, in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    middle = len(samples) // 2
    for _ in range(splits):
        order = torch.randperm(len(samples), generator=generator).to(samples.features.device)
        yield _rows(samples, order[:middle]), _rows(samples, order[middle:])


def estimate_deviation(
    *, forget_hessian: Tensor, estimate: Tensor, change: Tensor, forget_gradient: Tensor
) -> float:
    """Return ‖(n_rH̄_f − Ĥ)V‖ / ‖∇_f‖, which (7) lacks for an Ĥ other than n_rH̄_f.

    By the triangle inequality ‖(H_r − Ĥ)V‖ ≤ ‖(H_r − n_rH̄_f)V‖ + ‖(n_rH̄_f − Ĥ)V‖; (7) estimates
    the first term.

    Args:
        forget_hessian: n_rH̄_f, shape (d, d) or (C, d, d), float64.
        estimate: Ĥ, as `forget_hessian`.
        change: V, shape (d, C), float64.
        forget_gradient: ∇_f, shape (d, C), float64.

    Returns:
        A number >= 0; 0 where ∇_f is 0.
    """
    size = float(torch.linalg.norm(forget_gradient))
    if size == 0:
        return 0.0
    return float(torch.linalg.norm(curvature.times(forget_hessian - estimate, change))) / size


def _mismatch(
    model: LinearModel, half: SampleSet, other: SampleSet, forget_gradient: Tensor, n_remaining: int
) -> float:
    # ĤV = ∇_f, so that what the step leaves is the other half's change of gradient less ∇_f.
    change = newton.solve(forget_curvature(model, half, n_remaining).matrix, forget_gradient)
    functions = losses.OF[model.loss]
    left = functions.gradient(model.weights + change, other)
    left.sub_(functions.gradient(model.weights, other)).mul_(n_remaining / len(other))
    left.add_(change, alpha=model.ridge.shift(n_remaining)).sub_(forget_gradient)
    return float(torch.linalg.norm(left))


def _rows(samples: SampleSet, rows: Tensor) -> SampleSet:
    return SampleSet(samples.features[rows], samples.targets[rows])
