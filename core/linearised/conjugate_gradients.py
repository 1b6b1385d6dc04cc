"""Conjugate gradients for a symmetric positive definite operator that is only known by products.

Hestenes and Stiefel 1952, with an optional preconditioner. Four vectors are held beside the right
side, five with a preconditioner, and what operators themselves need.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import SolverError
from core.results import SolverReport

MOST_ITERATIONS = 5000
# Of the tolerance, for the residual that is carried along: the true one has to meet it too.
_SAFETY = 0.5

Operator = Callable[[Tensor], Tensor]
Progress = Callable[[int, float, Tensor], None]


def ignore_progress(_iteration: int, _relative: float, _solution: Tensor) -> None:
    """Tell nobody: the default."""


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """Where the iteration led.

    Attributes:
        solution: x, shape (D, 1), float64.
        report: `iterations` and the `relative_residual` ‖Ax − b‖ / ‖b‖, computed from x at the end
            and not carried along.
    """

    solution: Tensor
    report: SolverReport


def conjugate_gradients(
    operator: Operator,
    right_side: Tensor,
    *,
    tolerance: float,
    start: Tensor | None = None,
    preconditioner: Operator | None = None,
    most_iterations: int = MOST_ITERATIONS,
    progress: Progress = ignore_progress,
) -> Solved:
    """Solve Ax = b.

    Args:
        operator: x ↦ Ax; it may return the same tensor again and again.
        right_side: b, shape (D, 1), float64.
        tolerance: Relative residual to stop at.
        start: Where to begin, shape (D, 1), float64; 0 if None.
        preconditioner: r ↦ M⁻¹r with M symmetric positive definite and like A, if there is one.
        most_iterations: When to give up.
        progress: Told after each iteration how many there were, the relative residual and x so
            far, which changes in place; may raise to stop.

    Returns:
        A solution whose residual, computed anew, is within the tolerance.

    Raises:
        SolverError: The residual does not come down, or the operator is not positive definite.

    >>> b = torch.ones(3, 1, dtype=torch.float64)
    >>> float(conjugate_gradients(lambda x: 2.0 * x, b, tolerance=1e-12).solution[0])
    0.5
    """
    size = float(torch.linalg.vector_norm(right_side))
    solution = torch.zeros_like(right_side) if start is None else start.clone()
    if size == 0:
        return Solved(torch.zeros_like(right_side), _report(0, 0.0))
    rules = _Rules(size, _SAFETY * tolerance * size, most_iterations, progress)
    iterations = 0
    while True:
        # The residual that is carried along drifts from the true one; where that shows, begin anew.
        residual = right_side - operator(solution)
        relative = float(torch.linalg.vector_norm(residual)) / size
        if relative <= tolerance:
            return Solved(solution, _report(iterations, relative))
        if not relative < math.inf or iterations >= most_iterations:
            raise SolverError(
                f"conjugate gradients: after {iterations} iterations the relative residual is "
                f"{relative:.3g}, above {tolerance:g}; train with a stronger ridge, or allow more"
            )
        iterations = _run(
            operator, solution, residual, preconditioner, rules=rules, iterations=iterations
        )


@dataclass(frozen=True, slots=True)
class _Rules:
    """What stays the same from one beginning to the next."""

    size: float  # ‖b‖
    target: float  # of the carried residual
    most_iterations: int
    progress: Progress


def _run(
    operator: Operator,
    solution: Tensor,
    residual: Tensor,
    preconditioner: Operator | None,
    *,
    rules: _Rules,
    iterations: int,
) -> int:
    # Changes `solution` and `residual` in place until the carried residual is within the target.
    scaled = _scaled(residual, preconditioner)
    direction = scaled.clone()
    inner = _dot(residual, scaled)
    while iterations < rules.most_iterations:
        image = operator(direction)
        curvature = _dot(direction, image)
        if not 0 < curvature < math.inf:
            raise SolverError(
                f"conjugate gradients: the curvature along a direction is {curvature:.3g}, so the "
                "operator is not positive definite in float64"
            )
        step = inner / curvature
        solution.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        del image
        iterations += 1
        norm = float(torch.linalg.vector_norm(residual))
        rules.progress(iterations, norm / rules.size, solution)
        if norm <= rules.target:
            break
        scaled = _scaled(residual, preconditioner)
        following = _dot(residual, scaled)
        direction.mul_(following / inner).add_(scaled)
        inner = following
    return iterations


def _scaled(residual: Tensor, preconditioner: Operator | None) -> Tensor:
    return residual if preconditioner is None else preconditioner(residual)


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.reshape(-1), second.reshape(-1)))


def _report(iterations: int, relative: float) -> SolverReport:
    figures = {"iterations": float(iterations), "relative_residual": relative}
    return SolverReport("conjugate-gradients", "converged", figures)
