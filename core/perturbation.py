"""Stage 1 of the published method: perturb the weights, measure the forget loss (METHOD §2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.losses import gradient
from core.options import PerturbationOptions
from core.problem import LinearModel, SampleSet
from core.vocabulary import PerturbationLaw

# Directions measured at a time: memory n_f × 256 whatever their number.
_BLOCK = 256


@dataclass(frozen=True, slots=True, eq=False)
class LossDifferences:
    """Perturbations and what they did to the forget loss, in mean form.

    Attributes:
        directions: δ_i, shape (m, d), float64.
        curvatures: What ½⟨δ_i, X̄δ_i⟩ has to match in (2), shape (m,), float64:
            δL̄_f(δ_i) + (n_f/n_r)⟨∇̄_f, δ_i⟩, or its mean over ±δ_i, where the linear term cancels.
    """

    directions: Tensor
    curvatures: Tensor


def draw(options: PerturbationOptions, num_features: int, seed: int) -> Tensor:
    """Draw the perturbations δ_1 … δ_m with independent N(0, scale²) entries.

    Args:
        options: Their number and scale.
        num_features: d.
        seed: Of the draw.

    Returns:
        Shape (m, d), float64, on the CPU, so that a seed means the same on every device.

    >>> draw(PerturbationOptions(count=3), 2, seed=0).shape
    torch.Size([3, 2])
    """
    generator = torch.Generator().manual_seed(seed)
    count = options.equations(num_features)
    return options.scale * torch.randn(
        count, num_features, generator=generator, dtype=torch.float64
    )


def measure(
    model: LinearModel, forget: SampleSet, options: PerturbationOptions, seed: int
) -> LossDifferences:
    r"""Draw perturbations and measure the forget-loss differences that (2) is made of.

    One δ ∈ R^d is added to every column of W and losses are averaged over the C columns, so that
    one d×d problem stands for all classes. Mean form: divided by n_f, with the ridge of the mean
    retain objective, shift(n_r)/n_r. The linear term of (2) is ∇̄_r = −(n_f/n_r)∇̄_f.

    Args:
        model: W, its ridge and n.
        forget: D_f, n_f < n samples.
        options: Number, law and scale of the perturbations.
        seed: Of the draw.

    Returns:
        Directions and the right sides of the equations ½⟨δ_i, X̄δ_i⟩ = curvature_i.
    """
    directions = draw(options, model.weights.shape[0], seed).to(model.weights.device)
    n_remaining = model.n_samples - len(forget)
    shift = model.ridge.mean_shift(n_remaining)
    odd, even = _differences(model.weights, forget, shift, directions)
    if options.law is PerturbationLaw.ANTITHETIC:
        # The mean of the differences at +δ and −δ, without the digits that their sum would lose.
        return LossDifferences(directions, even)
    share = model.ridge.forgotten_shift(len(forget))
    slope = gradient(model.weights, forget, share).mean(dim=1) / n_remaining
    return LossDifferences(directions, odd + even + directions @ slope)


def _differences(
    weights: Tensor, forget: SampleSet, shift: float, directions: Tensor
) -> tuple[Tensor, Tensor]:
    # L̄_f(W + δ1ᵀ) − L̄_f(W), mean over samples and columns, as its odd and its even part in δ.
    # Subtracting two losses would cancel all digits of a small perturbation; the parts of
    # ½(e+p)² − ½e² = pe + ½p² lose none.
    residual = torch.addmm(forget.targets, forget.features, weights, beta=-1).mean(dim=1)
    mean_weights = weights.mean(dim=1)
    odd, even = [], []
    for block in torch.split(directions, _BLOCK):
        moved = forget.features @ block.T
        odd.append((moved.T @ residual) / len(forget) + shift * (block @ mean_weights))
        even.append(0.5 * (moved.square().mean(dim=0) + shift * block.square().sum(dim=1)))
    return torch.cat(odd), torch.cat(even)
