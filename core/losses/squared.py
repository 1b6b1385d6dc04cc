"""Squared loss ½‖Wᵀx − y‖²; its Hessian is the same for every column of W (METHOD §1)."""

import torch
from torch import Tensor

from core.problem import SampleSet
from core.rounding import gamma, upward

LARGEST_CURVATURE = 1.0  # ℓ'' of the squared loss is 1 everywhere


def loss(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
    """Return L(W; D), summed over the samples.

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples.
        shift: What the ridge adds to every eigenvalue of the Hessian of D; 0 leaves it out.

    Returns:
        ½‖XW − Y‖²_F + (shift/2)‖W‖²_F.

    >>> ones = torch.ones(2, 1, dtype=torch.float64)
    >>> loss(ones, SampleSet(ones.T, torch.zeros(1, 1, dtype=torch.float64)), shift=1.0)
    3.0
    """
    residual = torch.addmm(samples.targets, samples.features, weights, beta=-1)
    penalty = shift * float(weights.square().sum()) if shift else 0.0
    return 0.5 * float(residual.square().sum()) + 0.5 * penalty


def gradient(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> Tensor:
    """Return ∇L(W; D), summed over the samples.

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples.
        shift: What the ridge adds to every eigenvalue of the Hessian of D; 0 leaves it out.

    Returns:
        Xᵀ(XW − Y) + shift·W, shape (d, C), float64.
    """
    residual = torch.addmm(samples.targets, samples.features, weights, beta=-1)
    return torch.addmm(weights, samples.features.T, residual, beta=shift)


def gradient_round_off(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
    r"""Bound the round-off of `gradient` in the Frobenius norm.

    The residual E = XW − Y is a sum of d+1 terms, so |Ê − E| ≤ γ_{d+1}(|X||W| + |Y|). The gradient
    sums n products with Ê and one with the shift (itself rounded once). With
    γ_a + γ_b + γ_aγ_b ≤ γ_{a+b} (Higham, lemma 3.3) both together give, entry by entry,

        |ĝ − g| ≤ γ_{n+d+4} ( |X|ᵀ(|X||W| + |Y|) + shift|W| ).

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples.
        shift: As for `gradient`.

    Returns:
        A number >= ‖ĝ − g‖_F, the exact g being that of the given float64 inputs.
    """
    count, width = samples.features.shape
    features, magnitude = samples.features.abs(), weights.abs()
    inner = torch.addmm(samples.targets.abs(), features, magnitude)
    entries = torch.addmm(magnitude, features.T, inner, beta=shift)
    return upward(gamma(count + width + 4) * float(torch.linalg.norm(entries)))


def hessian(weights: Tensor, features: Tensor, shift: float = 0.0) -> Tensor:  # noqa: ARG001
    """Return the Hessian of L(·; D) for one column of W, summed over the samples.

    Args:
        weights: W; the Hessian of the squared loss is the same everywhere.
        features: X, shape (n, d), float64.
        shift: What the ridge adds to every eigenvalue; 0 leaves it out.

    Returns:
        XᵀX + shift·I, shape (d, d), float64, symmetric up to round-off.
    """
    matrix: Tensor = features.T @ features
    matrix.diagonal().add_(shift)
    return matrix
