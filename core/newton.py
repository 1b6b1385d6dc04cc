"""Stage 3: the Newton step, METHOD (1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import IllConditionedError
from core.factorisation import Factorisation, factorise
from core.problem import require_matrix
from core.results import SolverReport

# Hager's iteration hardly ever gains anything after its second step.
_CONDITION_STEPS = 3


@dataclass(frozen=True, slots=True)
class NewtonStep:
    """Where a Newton step leads.

    Attributes:
        weights: W_u, shape (d, C), float64.
        report: The linear solve: `condition_estimate` (a lower estimate of the 1-norm condition
            number of H_r) and `relative_residual` ‖H_rV − q‖_F / ‖q‖_F.
    """

    weights: Tensor
    report: SolverReport


def newton_step(
    weights: Tensor,
    hessian: Tensor,
    forget_gradient: Tensor,
    training_gradient: Tensor | None = None,
) -> NewtonStep:
    r"""Move weights fitted on all samples to where the retain set alone would put them.

    W_u = W + H_r⁻¹(∇_f − g*), METHOD (1): at W the retain gradient is g* − ∇_f. Exact for
    squared loss when H_r is the true retain Hessian.

    Args:
        weights: W, shape (d, C), float64.
        hessian: H_r or an estimate of it, shape (d, d), float64, symmetric positive definite, in
            sum form with the ridge of the retain set.
        forget_gradient: ∇_f, shape (d, C), float64, in sum form with the forget set's share of
            the ridge.
        training_gradient: g* = ∇L(W; D), shape (d, C), float64; None where it is taken to be zero.

    Returns:
        New weights and the report of the solve. The inputs are unchanged.

    Raises:
        InvalidTensorError: A shape, dtype or value does not fit.
        IllConditionedError: `hessian` has no Cholesky factor in float64, or the solution overflows.
    """
    require_matrix("weights", weights)
    width, outputs = weights.shape
    require_matrix("hessian", hessian, width, width)
    require_matrix("forget_gradient", forget_gradient, width, outputs)
    right_side = forget_gradient
    if training_gradient is not None:
        require_matrix("training_gradient", training_gradient, width, outputs)
        right_side = forget_gradient - training_gradient
    # Before the factorisation, so that its copy of the matrix is gone when the factor comes.
    norm = one_norm(hessian)
    factor = cholesky(hessian)
    change = factor.solve(right_side)
    moved = weights + change
    if not bool(torch.isfinite(moved).all()):
        raise IllConditionedError("Newton step: the solution overflows float64")
    figures = {
        "condition_estimate": condition_estimate(norm, factor),
        "relative_residual": _relative_residual(hessian, change, right_side),
    }
    return NewtonStep(moved, SolverReport(name="cholesky", status="direct", figures=figures))


def cholesky(hessian: Tensor) -> Factorisation:
    """Return the Cholesky factorisation of a Hessian.

    Args:
        hessian: Shape (d, d), float64, symmetric.

    Returns:
        The factorisation, complete.

    Raises:
        IllConditionedError: It is not positive definite in float64. No jitter is added: a changed
            Hessian would void the residual that a bound states.
    """
    factor = factorise(hessian)
    if factor.failed_minor > 0:
        raise IllConditionedError(
            f"Hessian: its leading minor of order {factor.failed_minor} is not positive in "
            "float64; a stronger ridge would make it so"
        )
    return factor


def one_norm(matrix: Tensor) -> float:
    """Return ‖H‖₁, the largest sum of magnitudes in a column.

    Args:
        matrix: H, shape (d, d), float64, symmetric: rows are summed, which lie together in memory.

    Returns:
        A number >= 0.

    >>> one_norm(torch.tensor([[1.0, -2.0], [-2.0, 1.0]], dtype=torch.float64))
    3.0
    """
    return float(matrix.abs().sum(dim=1).max())


def condition_estimate(norm: float, factor: Factorisation) -> float:
    r"""Estimate κ₁ = ‖H‖₁‖H⁻¹‖₁ from below, in O(d²) (Hager 1984; Higham, algorithm 15.1).

    Every ‖H⁻¹x‖₁ with ‖x‖₁ = 1 is at most ‖H⁻¹‖₁; the iteration climbs to a local maximum.

    Args:
        norm: ‖H‖₁.
        factor: The Cholesky factorisation of H.

    Returns:
        A number <= κ₁ up to round-off, in practice within a factor of 3.

    >>> matrix = torch.diag(torch.tensor([1.0, 1e6], dtype=torch.float64))
    >>> round(condition_estimate(one_norm(matrix), cholesky(matrix)))
    1000000
    """
    probe = factor.storage.new_full((factor.size, 1), 1.0 / factor.size)
    largest = 0.0
    for _ in range(_CONDITION_STEPS):
        image = factor.solve(probe)
        largest = max(largest, float(image.abs().sum()))
        # H⁻¹ is symmetric, so the same solve gives the gradient of ‖H⁻¹x‖₁.
        slope = factor.solve(image.sign())
        best = int(slope.abs().argmax())
        if float(slope[best].abs()) <= float((slope * probe).sum()):
            break
        probe = torch.zeros_like(probe)
        probe[best] = 1.0
    return norm * largest


def _relative_residual(hessian: Tensor, change: Tensor, right_side: Tensor) -> float:
    # VᵀH takes half the time of HV: V has few columns.
    misfit = float(torch.linalg.norm((change.T @ hessian).T.sub_(right_side)))
    size = float(torch.linalg.norm(right_side))
    return misfit / size if size > 0 else misfit
