"""Logistic regression from its data in numpy and 50-digit arithmetic: slow, plain, without torch.

Independent of `core`: nothing here imports it.
"""

from fractions import Fraction

import mpmath
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_DIGITS = mpmath.mp.clone()
_DIGITS.dps = 50


def retrain(x: Array, y: Array, added: float, noise: Array | None = None) -> Array:
    """Minimise by Newton's method, one output at a time, halving steps that do not descend."""
    noise = np.zeros((x.shape[1], y.shape[1])) if noise is None else noise
    return np.column_stack([_one_output(x, y[:, c], added, noise[:, c]) for c in range(y.shape[1])])


def gradient(w: Array, x: Array, y: Array, added: float, noise: Array | None = None) -> Array:
    """Return the gradient sample by sample."""
    total = added * w + (0.0 if noise is None else noise)
    for row, target in zip(x, y, strict=True):
        total = total + np.outer(row, _sigmoid(row @ w) - target)
    return total


def hessian(w: Array, x: Array, added: float = 0.0) -> Array:
    """Return the Hessian of every output, sample by sample."""
    width, outputs = w.shape
    total = np.zeros((outputs, width, width)) + added * np.eye(width)
    for row in x:
        p = _sigmoid(row @ w)
        for c in range(outputs):
            total[c] += p[c] * (1 - p[c]) * np.outer(row, row)
    return total


def exact_gradient_norm(
    w: Array, x: Array, y: Array, added: Fraction, noise: Array | None = None
) -> float:
    """Return ‖Xᵀ(σ(XW) − Y) + added·W + b‖_F to 50 digits."""
    exact = exact_gradient(w, x, y, added, noise)
    return float(_DIGITS.sqrt(sum(entry**2 for row in exact for entry in row)))


def exact_gradient_error(computed: Array, w: Array, x: Array, y: Array, added: Fraction) -> float:
    """Return how far a computed gradient is from the exact one in the Frobenius norm."""
    exact = exact_gradient(w, x, y, added)
    return float(
        _DIGITS.sqrt(
            sum(
                (_DIGITS.mpf(float(found)) - wanted) ** 2
                for rows in zip(computed, exact, strict=True)
                for found, wanted in zip(*rows, strict=True)
            )
        )
    )


def exact_gradient(
    w: Array, x: Array, y: Array, added: Fraction, noise: Array | None = None
) -> list[list[mpmath.mpf]]:
    """Return Xᵀ(σ(XW) − Y) + added·W + b to 50 digits."""
    width, outputs = w.shape
    shift = _DIGITS.mpf(added.numerator) / _DIGITS.mpf(added.denominator)
    total = [
        [
            shift * _DIGITS.mpf(float(w[k, c]))
            + (0 if noise is None else _DIGITS.mpf(float(noise[k, c])))
            for c in range(outputs)
        ]
        for k in range(width)
    ]
    for row, target in zip(x, y, strict=True):
        for c in range(outputs):
            residual = _exact_sigmoid(row, w[:, c]) - _DIGITS.mpf(float(target[c]))
            for k in range(width):
                total[k][c] += residual * _DIGITS.mpf(float(row[k]))
    return total


def exact_hessian_error(computed: Array, w: Array, x: Array) -> float:
    """Return the largest ‖computed_c − Σσ'(x·w_c)xxᵀ‖₂, the differences taken to 50 digits."""
    width, outputs = w.shape
    worst = 0.0
    for c in range(outputs):
        probabilities = [_exact_sigmoid(row, w[:, c]) for row in x]
        rows = [[_DIGITS.mpf(float(value)) for value in row] for row in x]
        difference = np.array(
            [
                [
                    float(
                        _DIGITS.mpf(float(computed[c, i, j]))
                        - sum(
                            p * (1 - p) * row[i] * row[j]
                            for p, row in zip(probabilities, rows, strict=True)
                        )
                    )
                    for j in range(width)
                ]
                for i in range(width)
            ]
        )
        worst = max(worst, float(np.linalg.norm(difference, 2)))
    return worst


def _one_output(x: Array, y: Array, added: float, noise: Array) -> Array:
    w = np.zeros(x.shape[1])
    for _ in range(200):
        p = _sigmoid(x @ w)
        slope = x.T @ (p - y) + added * w + noise
        curvature = (x * (p * (1 - p))[:, None]).T @ x + added * np.eye(len(w))
        step = np.linalg.solve(curvature, slope)
        length, before = 1.0, _loss(w, x, y, added, noise)
        while _loss(w - length * step, x, y, added, noise) > before + 1e-12 * (1 + abs(before)):
            length /= 2
        w = w - length * step
        if np.linalg.norm(step) <= 1e-15 * (1 + np.linalg.norm(w)):
            break
    return w


def _loss(w: Array, x: Array, y: Array, added: float, noise: Array) -> float:
    z = x @ w
    return float((np.logaddexp(0, z) - y * z).sum() + 0.5 * added * w @ w + noise @ w)


def _sigmoid(z: Array) -> Array:
    return np.where(
        z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
    )


def _exact_sigmoid(row: Array, w: Array) -> mpmath.mpf:
    margin = sum(
        _DIGITS.mpf(float(value)) * _DIGITS.mpf(float(weight))
        for value, weight in zip(row, w, strict=True)
    )
    return 1 / (1 + _DIGITS.exp(-margin))
