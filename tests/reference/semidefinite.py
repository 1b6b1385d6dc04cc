"""A slow solver of METHOD (2) in numpy, its optimality conditions, and exact losses."""

from collections.abc import Callable

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def objective(matrix: Array, directions: Array, curvatures: Array) -> float:
    """Return (1/m) Σ (½⟨δ, Xδ⟩ − t)²."""
    misfit = 0.5 * np.einsum("mi,ij,mj->m", directions, matrix, directions) - curvatures
    return float((misfit**2).mean())


def gradient(matrix: Array, directions: Array, curvatures: Array) -> Array:
    """Return the gradient of (1/m) Σ (½⟨δ, Xδ⟩ − t)² over symmetric X."""
    misfit = 0.5 * np.einsum("mi,ij,mj->m", directions, matrix, directions) - curvatures
    return np.einsum("m,mi,mj->ij", misfit, directions, directions) / len(curvatures)


def solve(
    directions: Array,
    curvatures: Array,
    floor: Array,
    steps: int = 20_000,
    *,
    centre: Array | None = None,
    weight: float = 0.0,
) -> Array:
    """Minimise over X ⪰ floor, with weight·‖X − centre‖²_F, by accelerated projected gradients."""
    products = 0.5 * np.einsum("mi,mj->mij", directions, directions).reshape(len(curvatures), -1)
    rate = 1 / (2 * np.linalg.norm(products, 2) ** 2 / len(curvatures) + 2 * weight)
    centre = floor if centre is None else centre
    current = previous = floor
    for step in range(steps):
        ahead = current + step / (step + 3) * (current - previous)
        slope = gradient(ahead, directions, curvatures) + 2 * weight * (ahead - centre)
        values, vectors = np.linalg.eigh(ahead - rate * slope - floor)
        previous, current = current, floor + (vectors * values.clip(0)) @ vectors.T
    return current


def prior_weight(directions: Array, weight: float) -> float:
    """Return weight times the mean square of the equations' coefficients ½δ_jδ_k."""
    return weight * float((np.einsum("mi,mj->mij", directions, directions) ** 2).mean()) / 4


def exact_logistic_loss(features: Array, targets: Array, shift: float) -> Callable[..., mpmath.mpf]:
    """Return w ↦ mean of log(1 + e^z) − yz, plus (shift/2)‖w‖², with 60 digits."""

    def loss(weights: list[mpmath.mpf]) -> mpmath.mpf:
        total = mpmath.mpf(0)
        for row, target in zip(features, targets, strict=True):
            margin = mpmath.fsum(mpmath.mpf(x) * w for x, w in zip(row, weights, strict=True))
            total += mpmath.log1p(mpmath.exp(margin)) - mpmath.mpf(target) * margin
        square = mpmath.fsum(w * w for w in weights)
        return total / len(features) + mpmath.mpf(shift) / 2 * square

    return loss
