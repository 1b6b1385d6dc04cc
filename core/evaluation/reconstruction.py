"""What two versions of the weights together reveal of the samples between them (METHOD §5)."""

import torch
from torch import Tensor

from core import curvature
from core.problem import Ridge, SampleSet
from core.results import ReconstructionLeak
from core.statistics import Statistics, StoredStatistics


def reconstruction_leak(
    change: Tensor,
    forget: SampleSet,
    remaining: Statistics | None,
    ridge: Ridge,
    hessian_change: Tensor | None = None,
) -> ReconstructionLeak | None:
    """Measure the best guess of a forget sample from the difference of two releases.

    For one record and squared loss ΔW = H_r⁻¹x eᵀ has rank one: its left singular vector is H_r⁻¹x,
    and H_rΔW gives x itself, up to sign and length.

    Args:
        change: ΔW, new minus old weights as an outsider sees both, shape (d, C), float64.
        forget: D_f.
        remaining: Statistics of the retain set, if any are stored.
        ridge: The L2 term.
        hessian_change: H_rΔW, shape (d, C), float64, if it has been computed before.

    Returns:
        The leak; None where nothing changed, so that there is no direction to look along.
    """
    direction = leading_direction(change)
    if direction is None:
        return None
    with_statistics = None
    if remaining is not None:
        if hessian_change is None:
            hessian_change = _hessian_times(remaining, change, ridge)
        sharpened = leading_direction(hessian_change)
        with_statistics = 0.0 if sharpened is None else _cosine(forget.features, sharpened)
    return ReconstructionLeak(_cosine(forget.features, direction), with_statistics)


def leading_direction(matrix: Tensor) -> Tensor | None:
    """Return the left singular vector of the largest singular value.

    Args:
        matrix: Shape (d, C), float64.

    Returns:
        Shape (d,), of norm 1; None for a matrix of zeros.

    >>> leading_direction(torch.tensor([[0.0], [-2.0]], dtype=torch.float64))
    tensor([ 0., -1.], dtype=torch.float64)
    """
    largest = float(matrix.abs().max())
    if largest == 0:
        return None
    # Scaled, so that squares neither overflow nor vanish. C is small: CᵀC costs less than an SVD.
    scaled = matrix / largest
    _, vectors = torch.linalg.eigh(scaled.T @ scaled)
    direction = scaled @ vectors[:, -1]
    unit: Tensor = direction / torch.linalg.vector_norm(direction)
    return unit


def _cosine(features: Tensor, direction: Tensor) -> float:
    norms = torch.linalg.vector_norm(features, dim=1)
    # A sample of zeros has no direction that could be guessed.
    shares = (features @ direction).abs() / norms.clamp(min=torch.finfo(norms.dtype).tiny)
    return min(float(shares.max()), 1.0)


def _hessian_times(remaining: Statistics, change: Tensor, ridge: Ridge) -> Tensor:
    if isinstance(remaining, StoredStatistics):
        # HΔW = ∇L(ΔW) + B, without a copy of d² numbers for the sake of the ridge.
        return remaining.training_gradient(change, ridge).add_(remaining.cross)
    shifted = curvature.times(remaining.hessians, change)
    return shifted.add_(change, alpha=ridge.shift(remaining.n_samples))
