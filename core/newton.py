"""Stage 3: the Newton step, METHOD (1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import IllConditionedError, InvalidTensorError
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
    factor = cholesky(hessian)
    change = solve(factor, right_side)
    moved = weights + change
    if not bool(torch.isfinite(moved).all()):
        raise IllConditionedError("Newton step: the solution overflows float64")
    return NewtonStep(moved, _report(hessian, factor, change, right_side))


def cholesky(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of a Hessian (a third faster than the lower one here).

    Args:
        hessian: Shape (d, d), float64, symmetric; only its upper triangle is read.

    Returns:
        U with UᵀU = hessian, shape (d, d), float64.

    Raises:
        IllConditionedError: It is not positive definite in float64. No jitter is added: a changed
            Hessian would void the residual that a bound states.
    """
    factor: Tensor
    factor, failed_minor = torch.linalg.cholesky_ex(hessian, upper=True)
    if (order := int(failed_minor)) > 0:
        raise IllConditionedError(
            f"Hessian: its leading minor of order {order} is not positive in float64; a stronger "
            "ridge would make it so"
        )
    return factor


def solve(factor: Tensor, right_side: Tensor) -> Tensor:
    """Return H⁻¹Q from the Cholesky factor of H.

    Args:
        factor: U with UᵀU = H, shape (d, d), float64.
        right_side: Q, shape (d, k), float64.

    Returns:
        Shape (d, k), float64.
    """
    # Two triangular solves read the factor in place; torch.cholesky_solve copies it first.
    solution: Tensor
    solution = torch.linalg.solve_triangular(factor.mT, right_side, upper=False)
    solution = torch.linalg.solve_triangular(factor, solution, upper=True)
    return solution


def condition_estimate(matrix: Tensor, factor: Tensor) -> float:
    r"""Estimate κ₁ = ‖H‖₁‖H⁻¹‖₁ from below, in O(d²) (Hager 1984; Higham, algorithm 15.1).

    Every ‖H⁻¹x‖₁ with ‖x‖₁ = 1 is at most ‖H⁻¹‖₁; the iteration climbs to a local maximum.

    Args:
        matrix: H, shape (d, d), float64, symmetric positive definite.
        factor: Its upper Cholesky factor.

    Returns:
        A number <= κ₁ up to round-off, in practice within a factor of 3.

    Raises:
        InvalidTensorError: The shapes differ.

    >>> matrix = torch.diag(torch.tensor([1.0, 1e6], dtype=torch.float64))
    >>> round(condition_estimate(matrix, cholesky(matrix)))
    1000000
    """
    if matrix.shape != factor.shape:
        raise InvalidTensorError(
            f"factor: expected shape {tuple(matrix.shape)}, got {tuple(factor.shape)}"
        )
    width = matrix.shape[0]
    probe = matrix.new_full((width, 1), 1.0 / width)
    largest = 0.0
    for _ in range(_CONDITION_STEPS):
        image = solve(factor, probe)
        largest = max(largest, float(image.abs().sum()))
        # H⁻¹ is symmetric, so the same solve gives the gradient of ‖H⁻¹x‖₁.
        slope = solve(factor, image.sign())
        best = int(slope.abs().argmax())
        if float(slope[best].abs()) <= float((slope * probe).sum()):
            break
        probe = torch.zeros_like(probe)
        probe[best] = 1.0
    # Rows instead of columns, since they lie together in memory.
    norm = float(torch.linalg.vector_norm(matrix, ord=1, dim=1).max())
    return norm * largest


def _report(hessian: Tensor, factor: Tensor, change: Tensor, right_side: Tensor) -> SolverReport:
    misfit = float(torch.linalg.norm(torch.addmm(right_side, hessian, change, beta=-1)))
    size = float(torch.linalg.norm(right_side))
    figures = {
        "condition_estimate": condition_estimate(hessian, factor),
        "relative_residual": misfit / size if size > 0 else misfit,
    }
    return SolverReport(name="cholesky", status="direct", figures=figures)
