"""Logistic loss, one-vs-rest: Σ_c log(1 + exp(−s_c x·w_c)), s_c = 2y_c − 1 (METHOD §1).

Each output c is a binary problem of its own, so there is one d×d Hessian an output:
H_c = Xᵀ diag(σ(1−σ)) X + shift·I at σ = σ(Xw_c).
"""

import torch
from torch import Tensor

from core.errors import InvalidTensorError
from core.problem import SampleSet
from core.rounding import UNIT_ROUND_OFF, gamma, upward

# Lipschitz constant of ℓ'' (METHOD §1): max |σ''| of the logistic function.
CURVATURE_LIPSCHITZ = 1.0 / (6.0 * 3.0**0.5)

LARGEST_CURVATURE = 0.25  # max σ', at 0


def loss(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
    """Return L(W; D), summed over the samples and outputs.

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples with targets in [0, 1].
        shift: What the ridge adds to every eigenvalue of the Hessian of D; 0 leaves it out.

    Returns:
        Σ softplus(z) − yz + (shift/2)‖W‖²_F with z = XW.
    """
    entropy = float(loss_per_output(weights, samples).sum())
    return entropy + 0.5 * shift * float(weights.square().sum())


def loss_per_output(weights: Tensor, samples: SampleSet) -> Tensor:
    """Return the loss of every output, summed over the samples, without the ridge.

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples with targets in [0, 1].

    Returns:
        Σ_i softplus(z_i) − y_iz_i, shape (C,), float64.
    """
    margins = samples.features @ weights
    # Beyond the threshold softplus is taken for linear, which errs by e^-40 there.
    entropy = torch.nn.functional.softplus(margins, threshold=40.0) - samples.targets * margins
    return entropy.sum(dim=0)


def gradient(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> Tensor:
    """Return ∇L(W; D), summed over the samples.

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples with targets in [0, 1].
        shift: What the ridge adds to every eigenvalue of the Hessian of D; 0 leaves it out.

    Returns:
        Xᵀ(σ(XW) − Y) + shift·W, shape (d, C), float64.
    """
    residual = torch.sigmoid(samples.features @ weights).sub_(samples.targets)
    return torch.addmm(weights, samples.features.T, residual, beta=shift)


def gradient_round_off(weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
    r"""Bound the round-off of `gradient` in the Frobenius norm.

    The margin z = XW is off by at most γ_d|X||W|, which moves σ by at most a quarter of that; σ
    itself is taken to be within 8 units in the last place (an assumption, listed with the bounds;
    libraries promise 1 to 4), and |σ − y| ≤ 1 loses one more. The sum
    over n samples and the shift add γ_{n+3} of the terms' magnitudes:

        |ĝ − g| ≤ |X|ᵀ(¼γ_d|X||W| + 10u) + γ_{n+3}(|X|ᵀ1 + shift|W|).

    Args:
        weights: W, shape (d, C), float64.
        samples: D, n samples with targets in [0, 1].
        shift: As for `gradient`.

    Returns:
        A number >= ‖ĝ − g‖_F, the exact g being that of the given float64 inputs.
    """
    count, width = samples.features.shape
    features, magnitude = samples.features.abs(), weights.abs()
    probability_error = (features @ magnitude).mul_(0.25 * gamma(width)).add_(10 * UNIT_ROUND_OFF)
    probability_error.add_(gamma(count + 3))
    entries = torch.addmm(magnitude, features.T, probability_error, beta=shift * gamma(count + 3))
    return upward(float(torch.linalg.norm(entries)))


def hessian(weights: Tensor, features: Tensor, shift: float = 0.0) -> Tensor:
    """Return the Hessians of L(·; D), one an output, summed over the samples.

    Args:
        weights: W, shape (d, C), float64.
        features: X, shape (n, d), float64.
        shift: What the ridge adds to every eigenvalue; 0 leaves it out.

    Returns:
        Shape (C, d, d), float64, each symmetric up to round-off.
    """
    curvature = _curvature(features @ weights).T
    width = features.shape[1]
    matrices = features.new_empty(len(curvature), width, width)
    # One output at a time: all together would hold C copies of the features.
    for matrix, weight in zip(matrices, curvature, strict=True):
        torch.mm(features.T * weight, features, out=matrix)
        matrix.diagonal().add_(shift)
    return matrices


def hessian_round_off(weights: Tensor, features: Tensor) -> float:
    r"""Bound the round-off of `hessian` without a shift, in the spectral norm.

    |d log σ'/dz| = |1 − 2σ| ≤ 1, so a margin that is off by at most ζ = γ_d|x||w| changes
    s = σ'(z) by at most a factor e^ζ; two sigmoids within 8 units in the last place, which is 16u,
    and their product change it by at most 40u more. The sum over n products of three factors adds
    γ_{n+2}. Each term has the norm s‖x‖², so

        ‖Ĥ_c − H_c‖₂ ≤ Σ_i ŝ_i‖x_i‖² (e^ζ − 1 + 40u·e^ζ + γ_{n+2}).

    Args:
        weights: W, shape (d, C), float64.
        features: X, shape (n, d), float64.

    Returns:
        A number >= max_c ‖Ĥ_c − H_c‖₂, the exact H_c being that of the given float64 inputs.
    """
    count, width = features.shape
    reach = (features.abs() @ weights.abs()).mul_(gamma(width + 1))
    relative = torch.expm1(reach).add_(reach.exp_(), alpha=40 * UNIT_ROUND_OFF)
    terms = _curvature(features @ weights).mul_(relative.add_(gamma(count + 2)))
    return upward(float((features.square().sum(dim=1) @ terms).max()))


def require_targets(targets: Tensor) -> None:
    """Check that targets are 0 or 1: a larger "target" could steer the weights anywhere.

    Args:
        targets: Y, shape (n, C), float64.

    Raises:
        InvalidTensorError: One is not; the message shows it.

    >>> require_targets(torch.tensor([[0.0, 1.0]]))
    """
    outside = (targets != 0) & (targets != 1)
    if bool(outside.any()):
        raise InvalidTensorError(
            "targets: expected 0 or 1 in each column for the logistic loss, "
            f"got {float(targets[outside][0])}"
        )


def _curvature(margins: Tensor) -> Tensor:
    # σ' as σ(z)σ(−z): 1 − σ(z) would lose every digit where the model is sure.
    return torch.sigmoid(margins).mul_(torch.sigmoid(-margins))
