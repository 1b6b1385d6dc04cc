"""Training of the linear part: conjugate gradients on the whole training set (METHOD §6).

Deletion needs no data, training does: this is for whoever still has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidTensorError
from core.linearised.conjugate_gradients import (
    MOST_ITERATIONS,
    Progress,
    conjugate_gradients,
    ignore_progress,
)
from core.linearised.linearisation import Linearisation
from core.linearised.problem import FeatureSamples
from core.problem import Ridge
from core.results import SolverReport


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained linear part.

    Attributes:
        weights: w, shape (D, 1), float64.
        report: Of the solver, with `gradient_norm` ‖∇L(w)‖ (sum form), computed anew from w.
    """

    weights: Tensor
    report: SolverReport


def fit(
    linearisation: Linearisation,
    batches: Sequence[FeatureSamples],
    ridge: Ridge,
    *,
    tolerance: float = 1e-10,
    start: Tensor | None = None,
    most_iterations: int = MOST_ITERATIONS,
    progress: Progress = ignore_progress,
) -> Fitted:
    """Minimise Σ_i ½‖f_{w_c}(x_i) + J(x_i)w − y_i‖² + (shift(n)/2)‖w‖².

    Args:
        linearisation: f_{w_c} and J.
        batches: The training set, gone through once an iteration.
        ridge: The L2 term.
        tolerance: ‖∇L(w)‖ to stop at, relative to ‖∇L(0)‖.
        start: Where to begin, shape (D, 1), float64, e.g. where an interrupted training stopped.
        most_iterations: When to give up.
        progress: Told after each iteration how many there were, the relative gradient and w so
            far, which changes in place; may raise to stop.

    Returns:
        w with its gradient norm.

    Raises:
        InvalidTensorError: There is no batch.
        SolverError: The gradient does not come down to the tolerance.
    """
    if not batches:
        raise InvalidTensorError("batches: there is none, so there is nothing to train on")
    shift = ridge.shift(sum(len(batch) for batch in batches))

    def hessian_times(vector: Tensor) -> Tensor:
        total = vector * shift
        for batch in batches:
            total += linearisation.gauss_newton(batch.features, vector.T).T
        return total

    right_side = _cross(linearisation, batches)
    found = conjugate_gradients(
        hessian_times,
        right_side,
        tolerance=tolerance,
        start=start,
        most_iterations=most_iterations,
        progress=progress,
    )
    size = float(torch.linalg.vector_norm(right_side))
    figures = dict(found.report.figures)
    figures["gradient_norm"] = figures["relative_residual"] * size
    return Fitted(found.solution, SolverReport(found.report.name, found.report.status, figures))


def largest_jacobian_norm(linearisation: Linearisation, batches: Sequence[FeatureSamples]) -> float:
    """Return the largest ‖J(x)‖₂ of samples: what a manifest declares as its norm bound.

    Args:
        linearisation: f_{w_c} and J.
        batches: The training set.

    Returns:
        A norm that none of them exceeds but by round-off.
    """
    return max(float(linearisation.norms(batch.features).max()) for batch in batches)


def _cross(linearisation: Linearisation, batches: Sequence[FeatureSamples]) -> Tensor:
    # −∇L(0) = Σ Jᵀ(y − f_{w_c}(x)).
    parts = (
        linearisation.vjp(
            batch.features,
            (batch.targets - linearisation.centre_outputs(batch.features))[None],
        )
        for batch in batches
    )
    total = next(parts)
    for part in parts:
        total += part
    return total.T
