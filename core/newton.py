"""Stage 3: the Newton step, METHOD (1)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core import curvature
from core.errors import IllConditionedError, InvalidTensorError
from core.factorisation import Factorisation, factorise
from core.problem import require_matrix
from core.products import rows_times
from core.results import SolverReport

# Hager's iteration hardly ever gains anything after its second step.
_CONDITION_STEPS = 3
# Corrections with a stored inverse: when to give up, and what counts as having arrived.
_MOST_CORRECTIONS = 12
_SLOWEST = 0.5
_NEAR_ROUND_OFF = 8.0
_SHARED = 2  # dimensions of a Hessian that all outputs share


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
        hessian: H_r or an estimate of it, float64, symmetric positive definite, in sum form with
            the ridge of the retain set; shape (d, d), shared by all outputs, or (C, d, d).
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
    _require_hessian(hessian, width, outputs)
    require_matrix("forget_gradient", forget_gradient, width, outputs)
    right_side = forget_gradient
    if training_gradient is not None:
        require_matrix("training_gradient", training_gradient, width, outputs)
        right_side = forget_gradient - training_gradient
    change, condition = _solve(hessian, right_side)
    moved = weights + change
    if not bool(torch.isfinite(moved).all()):
        raise IllConditionedError("Newton step: the solution overflows float64")
    figures = {
        "condition_estimate": condition,
        "relative_residual": _relative_residual(hessian, change, right_side),
    }
    return NewtonStep(moved, SolverReport(name="cholesky", status="direct", figures=figures))


@dataclass(frozen=True, slots=True, eq=False)
class Refinement:
    """Where corrections with an approximate inverse led.

    Attributes:
        weights: W_u, shape (d, C), float64.
        gradient: ∇L(W_u), shape (d, C), float64, as computed.
        corrections: How many were made.
        report: `corrections`, the `residual` ‖∇L(W_u)‖_F and the `round_off` it was held against.
    """

    weights: Tensor
    gradient: Tensor
    corrections: int
    report: SolverReport


def refine(
    weights: Tensor,
    gradient: Tensor,
    inverse: Tensor,
    gradient_at: Callable[[Tensor], Tensor],
    round_off: float,
) -> Refinement | None:
    r"""Walk to the zero of a linear gradient, METHOD (1), with an inverse that nobody vouches for.

    Iterative refinement, W ← W − P∇L(W): each correction shrinks the gradient by ‖I − HP‖, until it
    is round-off. What is returned is judged by its own gradient alone, so P decides how long it
    takes and whether it succeeds, never what is found.

    Args:
        weights: W, shape (d, C), float64, near the zero.
        gradient: ∇L(W), shape (d, C), float64.
        inverse: P, shape (d, d), float64, symmetric up to round-off.
        gradient_at: Computes ∇L at other weights.
        round_off: What the Frobenius norm of a computed gradient can be expected to come down to.

    Returns:
        The refinement; None where corrections do not lead to round-off.
    """
    before = math.inf
    for corrections in range(_MOST_CORRECTIONS + 1):
        size = _norm(gradient)
        converged = size <= round_off
        if converged or not size < _SLOWEST * before:
            # Where the last correction gained nothing, a few ulp are as near as float64 comes.
            if not size <= _NEAR_ROUND_OFF * round_off:
                return None
            figures = {"corrections": corrections, "residual": size, "round_off": round_off}
            return Refinement(
                weights, gradient, corrections, SolverReport("stored-factor", "converged", figures)
            )
        weights = weights - rows_times(inverse, gradient.T).T
        gradient = gradient_at(weights)
        before = size
    return None


def expand(right_side: Tensor, inverse: Tensor, gap: float, round_off: float) -> tuple[Tensor, int]:
    r"""Return nearly H⁻¹Q from the inverse of H + δI, in products with that inverse alone.

    H = P⁻¹ − δI gives H⁻¹ = P + δP² + δ²P³ + …; m terms leave the residual (δP)ᵐQ, which the next
    product gives at no cost. Like `refine`, which has to follow, it vouches for nothing.

    Args:
        right_side: Q, shape (d, C), float64.
        inverse: P, shape (d, d), float64, symmetric up to round-off.
        gap: δ; with 0 one term is all.
        round_off: Frobenius norm of a residual that is not worth another product.

    Returns:
        The sum, shape (d, C), float64, and m.

    >>> two = torch.tensor([[2.0]], dtype=torch.float64)
    >>> expand(two, torch.tensor([[0.25]], dtype=torch.float64), 1e-9, 1e-16)
    (tensor([[0.5000]], dtype=torch.float64), 2)
    """
    total = term = rows_times(inverse, right_side.T)
    residual, before, count = abs(gap) * _norm(term), math.inf, 1
    while round_off < residual < _SLOWEST * before and count < _MOST_CORRECTIONS:
        term = rows_times(inverse, term).mul_(gap)
        total = total + term
        residual, before, count = abs(gap) * _norm(term), residual, count + 1
    return total.T, count


def solve(hessian: Tensor, right_side: Tensor) -> Tensor:
    """Return V with H_c v_c = q_c for every output c.

    Args:
        hessian: H, shape (d, d), shared by all outputs, or (C, d, d), float64.
        right_side: Q, shape (d, C), float64.

    Returns:
        Shape (d, C), float64.

    Raises:
        IllConditionedError: A Hessian has no Cholesky factor in float64.
    """
    if hessian.ndim == _SHARED:
        return cholesky(hessian).solve(right_side)
    columns = zip(hessian, torch.split(right_side, 1, dim=1), strict=True)
    return torch.cat([cholesky(matrix).solve(column) for matrix, column in columns], dim=1)


def cholesky(hessian: Tensor, shift: float = 0.0, *, name: str = "Hessian") -> Factorisation:
    """Return the Cholesky factorisation of a Hessian, or of what stands for one.

    Args:
        hessian: Shape (d, d), float64, symmetric.
        shift: What is added to every eigenvalue, in the copy that is factorised.
        name: What messages call it.

    Returns:
        The factorisation, complete.

    Raises:
        IllConditionedError: It is not positive definite in float64. No jitter is added: a changed
            Hessian would void the residual that a bound states.
    """
    factor = factorise(hessian, shift)
    if factor.failed_minor > 0:
        raise IllConditionedError(
            f"{name}: its leading minor of order {factor.failed_minor} is not positive in "
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


def _require_hessian(hessian: Tensor, width: int, outputs: int) -> None:
    if hessian.ndim == _SHARED:
        require_matrix("hessian", hessian, width, width)
        return
    if hessian.shape != (outputs, width, width):
        raise InvalidTensorError(
            f"hessian: expected shape ({width}, {width}) or ({outputs}, {width}, {width}), "
            f"got {tuple(hessian.shape)}"
        )
    for output, matrix in enumerate(hessian):
        require_matrix(f"hessian[{output}]", matrix)


def _solve(hessian: Tensor, right_side: Tensor) -> tuple[Tensor, float]:
    # With the largest condition estimate.
    if hessian.ndim == _SHARED:
        # Before the factorisation, so that its copy of the matrix is gone when the factor comes.
        norm = one_norm(hessian)
        factor = cholesky(hessian)
        return factor.solve(right_side), condition_estimate(norm, factor)
    columns = [
        _solve(matrix, right_side[:, output : output + 1]) for output, matrix in enumerate(hessian)
    ]
    change = torch.cat([solution for solution, _ in columns], dim=1)
    return change, max(condition for _, condition in columns)


def _relative_residual(hessian: Tensor, change: Tensor, right_side: Tensor) -> float:
    misfit = float(torch.linalg.norm(curvature.times(hessian, change).sub_(right_side)))
    size = float(torch.linalg.norm(right_side))
    return misfit / size if size > 0 else misfit


def _norm(matrix: Tensor) -> float:
    # A dot product takes a third of the time of torch's norm.
    flat = matrix.reshape(-1)
    return math.sqrt(float(torch.dot(flat, flat)))
