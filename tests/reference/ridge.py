"""Ridge regression from its data in numpy and exact rationals: slow, plain, and without torch.

Independent of `core`: nothing here imports it.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Matrix = list[list[Fraction]]


def shift(convention: str, strength: float, count: int) -> float:
    """Return λ·n or α."""
    return strength * count if convention == "per_sample" else strength


def retrain(x: Array, y: Array, added: float) -> Array:
    """Minimise ½‖XW − Y‖² + (added/2)‖W‖² by least squares on stacked rows, not by XᵀX."""
    width = x.shape[1]
    rows = np.vstack([x, np.sqrt(added) * np.eye(width)])
    targets = np.vstack([y, np.zeros((width, y.shape[1]))])
    return np.linalg.lstsq(rows, targets, rcond=None)[0]


def gradient(w: Array, x: Array, y: Array, added: float) -> Array:
    """Return the gradient sample by sample."""
    total = added * w
    for row, target in zip(x, y, strict=True):
        total = total + np.outer(row, row @ w - target)
    return total


def exact_gradient_norm(w: Array, x: Array, y: Array, added: Fraction) -> float:
    """Return ‖Xᵀ(XW − Y) + added·W‖_F in exact rational arithmetic, rounded once at the end."""
    return _norm(exact_gradient(w, x, y, added))


def exact_gradient_error(computed: Array, w: Array, x: Array, y: Array, added: Fraction) -> float:
    """Return how far a computed gradient is from the exact one in the Frobenius norm."""
    exact = exact_gradient(w, x, y, added)
    return _norm(
        [
            [found - wanted for found, wanted in zip(*rows, strict=True)]
            for rows in zip(_exact(computed), exact, strict=True)
        ]
    )


def exact_gradient(w: Array, x: Array, y: Array, added: Fraction) -> Matrix:
    """Return Xᵀ(XW − Y) + added·W in exact rational arithmetic."""
    weights, rows, targets = _exact(w), _exact(x), _exact(y)
    width, outputs = w.shape
    residuals = [
        [
            sum((row[k] * weights[k][c] for k in range(width)), Fraction(0)) - target[c]
            for c in range(outputs)
        ]
        for row, target in zip(rows, targets, strict=True)
    ]
    return [
        [
            added * weights[k][c]
            + sum(
                (row[k] * residual[c] for row, residual in zip(rows, residuals, strict=True)),
                Fraction(0),
            )
            for c in range(outputs)
        ]
        for k in range(width)
    ]


def exact_step_residual(
    change: Array, w: Array, forget: tuple[Array, Array], x_rest: Array, added: Fraction
) -> float:
    """Return ‖(X_rᵀX_r + added·I)V − X_fᵀ(X_fW − Y_f)‖_F: what a step V leaves of the gradient."""
    zeros = np.zeros((len(x_rest), w.shape[1]))
    applied = exact_gradient(change, x_rest, zeros, added)
    wanted = exact_gradient(w, *forget, Fraction(0))
    return _norm(
        [
            [found - goal for found, goal in zip(*rows, strict=True)]
            for rows in zip(applied, wanted, strict=True)
        ]
    )


def exact_gram_error(computed: Array, rows: Array) -> float:
    """Return ‖computed − rowsᵀ·rows‖₂, the difference taken in exact rational arithmetic."""
    exact_rows, found = _exact(rows), _exact(computed)
    size = rows.shape[1]
    difference = [
        [
            float(found[i][j] - sum((row[i] * row[j] for row in exact_rows), Fraction(0)))
            for j in range(size)
        ]
        for i in range(size)
    ]
    return float(np.linalg.norm(np.array(difference), 2))


def exact_retrain(x: Array, y: Array, added: Fraction) -> Matrix:
    """Return the minimiser in exact rational arithmetic, by Gauss-Jordan elimination."""
    rows, targets = _exact(x), _exact(y)
    width, outputs = x.shape[1], y.shape[1]
    system = [
        [
            sum((row[i] * row[j] for row in rows), added if i == j else Fraction(0))
            for j in range(width)
        ]
        + [
            sum(
                (row[i] * target[c] for row, target in zip(rows, targets, strict=True)), Fraction(0)
            )
            for c in range(outputs)
        ]
        for i in range(width)
    ]
    for pivot in range(width):
        divisor = system[pivot][pivot]
        system[pivot] = [entry / divisor for entry in system[pivot]]
        for other in range(width):
            if other != pivot:
                factor = system[other][pivot]
                system[other] = [
                    entry - factor * lead
                    for entry, lead in zip(system[other], system[pivot], strict=True)
                ]
    return [row[width:] for row in system]


def exact_distance(w: Array, optimum: Matrix) -> float:
    """Return ‖W − W*‖_F."""
    return _norm(
        [
            [found - best for found, best in zip(*rows, strict=True)]
            for rows in zip(_exact(w), optimum, strict=True)
        ]
    )


def exact_shift(convention: str, strength: float, count: int) -> Fraction:
    """Return λ·n or α without rounding the product."""
    return Fraction(strength) * count if convention == "per_sample" else Fraction(strength)


def _exact(matrix: Array) -> Matrix:
    return [[Fraction(float(value)) for value in row] for row in matrix]


def _norm(matrix: Matrix) -> float:
    return float(sum((entry * entry for row in matrix for entry in row), Fraction(0))) ** 0.5
