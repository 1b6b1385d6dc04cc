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
    if not bool(change.any()):
        return None
    seen = [change]
    if remaining is not None:
        if hessian_change is None:
            hessian_change = _hessian_times(remaining, change, ridge)
        seen.append(hessian_change)
    cosines = _cosines(forget.features, leading_directions(torch.stack(seen)))
    return ReconstructionLeak(cosines[0], cosines[1] if remaining is not None else None)


def leading_directions(matrices: Tensor) -> Tensor:
    """Return the left singular vector of the largest singular value, of several matrices.

    Args:
        matrices: Shape (m, d, C), float64.

    Returns:
        Shape (m, d), rows of norm 1, or 0 for a matrix of zeros.

    >>> leading_directions(torch.tensor([[[0.0], [-2.0]]], dtype=torch.float64))
    tensor([[ 0., -1.]], dtype=torch.float64)
    """
    tiny = torch.finfo(matrices.dtype).tiny
    # Scaled, so that squares neither overflow nor vanish. C is small: CᵀC costs less than an SVD.
    scaled = matrices / matrices.abs().amax(dim=(1, 2), keepdim=True).clamp_min_(tiny)
    _, vectors = torch.linalg.eigh(scaled.mT @ scaled)
    directions: Tensor = (scaled @ vectors[:, :, -1:]).squeeze(2)
    lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    return directions.div_(lengths.clamp_min_(tiny))


def _cosines(features: Tensor, directions: Tensor) -> list[float]:
    # The largest among the samples, for each direction.
    norms = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    # A sample of zeros has no direction that could be guessed.
    shares = (features @ directions.T).abs_().div_(norms.clamp_min_(torch.finfo(norms.dtype).tiny))
    largest: list[float] = shares.amax(dim=0).clamp_max_(1.0).tolist()
    return largest


def _hessian_times(remaining: Statistics, change: Tensor, ridge: Ridge) -> Tensor:
    if isinstance(remaining, StoredStatistics):
        # HΔW = ∇L(ΔW) + B, without a copy of d² numbers for the sake of the ridge.
        return remaining.training_gradient(change, ridge).add_(remaining.cross)
    shifted = curvature.times(remaining.hessians, change)
    return shifted.add_(change, alpha=ridge.shift(remaining.n_samples))
