"""A slow first-order solver of METHOD (2) in numpy, and its optimality conditions."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gradient(matrix: Array, directions: Array, curvatures: Array) -> Array:
    """Return the gradient of (1/m) Σ (½⟨δ, Xδ⟩ − t)² over symmetric X."""
    misfit = 0.5 * np.einsum("mi,ij,mj->m", directions, matrix, directions) - curvatures
    return np.einsum("m,mi,mj->ij", misfit, directions, directions) / len(curvatures)


def solve(directions: Array, curvatures: Array, floor: Array, steps: int = 20_000) -> Array:
    """Minimise over X ⪰ floor by accelerated projected gradients."""
    products = 0.5 * np.einsum("mi,mj->mij", directions, directions).reshape(len(curvatures), -1)
    rate = len(curvatures) / (2 * np.linalg.norm(products, 2) ** 2)
    current = previous = floor
    for step in range(steps):
        ahead = current + step / (step + 3) * (current - previous)
        moved = ahead - rate * gradient(ahead, directions, curvatures)
        values, vectors = np.linalg.eigh(moved - floor)
        previous, current = current, floor + (vectors * values.clip(0)) @ vectors.T
    return current
