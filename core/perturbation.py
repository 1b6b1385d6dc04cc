"""Stage 1 of the published method: perturb the weights, measure the forget loss (METHOD §2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core import losses
from core.options import PerturbationOptions
from core.problem import LinearModel, SampleSet
from core.vocabulary import Loss, PerturbationLaw

# Directions measured at a time: memory n_f × 256 whatever their number.
_BLOCK = 256


@dataclass(frozen=True, slots=True, eq=False)
class LossDifferences:
    """Perturbations and what they did to the forget loss, in mean form.

    Attributes:
        directions: δ_i, shape (m, d), float64.
        curvatures: What ½⟨δ_i, X̄δ_i⟩ has to match in (2), float64: δL̄_f(δ_i) + (n_f/n_r)⟨∇̄_f, δ_i⟩,
            or its mean over ±δ_i, where the linear term cancels. Shape (m,) for squared loss, whose
            outputs have one Hessian; (m, C) for logistic loss, one column an output.
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

    For squared loss one δ ∈ R^d is added to every column of W and losses are averaged over the C
    columns, so that one d×d problem stands for all classes. For logistic loss δ is added to one
    column at a time, and each output has its own differences. Mean form: divided by n_f, with the
    ridge of the mean retain objective, shift(n_r)/n_r. The linear term of (2) is
    ∇̄_r = −(n_f/n_r)∇̄_f.

    Args:
        model: W, its loss, its ridge and n.
        forget: D_f, n_f < n samples.
        options: Number, law and scale of the perturbations.
        seed: Of the draw.

    Returns:
        Directions and the right sides of the equations ½⟨δ_i, X̄δ_i⟩ = curvature_i.
    """
    directions = draw(options, model.weights.shape[0], seed).to(model.weights.device)
    n_remaining = model.n_samples - len(forget)
    shift = model.ridge.mean_shift(n_remaining)
    antithetic = options.law is PerturbationLaw.ANTITHETIC
    if model.loss is Loss.LOGISTIC:
        odd, even = _logistic_parts(model.weights, forget, shift, directions, linear=not antithetic)
    else:
        odd, even = _squared_parts(model.weights, forget, shift, directions)
    if antithetic:
        # The mean of the differences at +δ and −δ, without the digits that their sum would lose.
        return LossDifferences(directions, even)
    share = model.ridge.forgotten_shift(len(forget))
    slope = losses.OF[model.loss].gradient(model.weights, forget, share) / n_remaining
    if model.loss is Loss.SQUARED:
        slope = slope.mean(dim=1)
    return LossDifferences(directions, odd + even + directions @ slope)


def _squared_parts(
    weights: Tensor, forget: SampleSet, shift: float, directions: Tensor
) -> tuple[Tensor, Tensor]:
    # L̄_f(W + δ1ᵀ) − L̄_f(W), mean over samples and columns, as its odd and its even part in δ.
    # Subtracting two losses would cancel all digits of a small perturbation; the parts of
    # ½(e+p)² − ½e² = pe + ½p² lose none.
    residual = torch.addmm(forget.targets, forget.features, weights, beta=-1).mean(dim=1)
    even = []
    for block in torch.split(directions, _BLOCK):
        moved = forget.features @ block.T
        even.append(0.5 * (moved.square().mean(dim=0) + shift * block.square().sum(dim=1)))
    slope = forget.features.T @ residual / len(forget) + shift * weights.mean(dim=1)
    return directions @ slope, torch.cat(even)


def _logistic_parts(
    weights: Tensor, forget: SampleSet, shift: float, directions: Tensor, *, linear: bool
) -> tuple[Tensor, Tensor]:
    # L̄_f(w_c + δ) − L̄_f(w_c), mean over the samples, as its odd and its even part in δ, a column
    # an output. The ridge adds shift·⟨w_c, δ⟩ to the one and (shift/2)‖δ‖² to the other. Without
    # `linear` the odd part lacks that of the samples, which takes twice the time of the even one.
    margins = forget.features @ weights
    even = (0.5 * shift * directions.square().sum(dim=1))[:, None].repeat(1, margins.shape[1])
    odd = shift * (directions @ weights)
    for first in range(0, len(directions), _BLOCK):
        rows = slice(first, first + _BLOCK)
        moved = forget.features @ directions[rows].T
        for output, margin in enumerate(margins.T):
            even[rows, output] += _even(margin[:, None], moved).mean(dim=0)
            if linear:
                target = forget.targets[:, output, None]
                odd[rows, output] += _odd(margin[:, None], moved, target).mean(dim=0)
    return odd, even


def _even(margin: Tensor, change: Tensor) -> Tensor:
    # ½[s(z+p) + s(z−p)] − s(z) for s(z) = log(1 + eᶻ). The product of both factors 1 + e^{z±p} over
    # (1 + eᶻ)² is 1 + 4σ(z)σ(−z)·sinh²(p/2): by its logarithm no digit is lost for small p, and
    # nothing overflows for large p.
    size = change.abs()
    logarithm = _log_sigmoid(margin) + _log_sigmoid(-margin)
    growth = size + 2.0 * torch.log(-torch.expm1(-size))
    return 0.5 * _log_one_plus_exp(logarithm + growth)


def _odd(margin: Tensor, change: Tensor, target: Tensor) -> Tensor:
    # ½[s(z+p) − s(z−p)] − yp. For p > 0 the difference is log(1 + σ(z−p)(e^{2p} − 1)), and as
    # s(z) − yz = (1−y)s(z) + y·s(−z), it is weighed between the margins z and −z.
    size = change.abs()
    growth = 2.0 * size + torch.log(-torch.expm1(-2.0 * size))
    upper, lower = (
        _log_one_plus_exp(_log_sigmoid(sign * margin - size) + growth) for sign in (1.0, -1.0)
    )
    return 0.5 * change.sign() * ((1.0 - target) * upper - target * lower)


def _log_sigmoid(values: Tensor) -> Tensor:
    return torch.nn.functional.logsigmoid(values)


def _log_one_plus_exp(values: Tensor) -> Tensor:
    # The default threshold of 20 would lose seven digits.
    return torch.nn.functional.softplus(values, threshold=40.0)
