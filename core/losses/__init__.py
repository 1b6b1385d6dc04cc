"""Per-sample losses of linear models, in sum form (METHOD §1), one loss a module.

L(W; D) = Σ_{i∈D} ℓ_i(W) + (shift/2)‖W‖²_F, where `shift` is what the ridge adds for the set D:
λ|D| or α (see `core.problem.Ridge`).
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from core.losses import logistic, squared
from core.problem import SampleSet
from core.vocabulary import Loss


class LossFunctions(Protocol):
    """What each module of this folder offers; see `core.losses.squared` for the arguments."""

    LARGEST_CURVATURE: float

    def loss(self, weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
        """Return L(W; D)."""

    def gradient(self, weights: Tensor, samples: SampleSet, shift: float = 0.0) -> Tensor:
        """Return ∇L(W; D), shape (d, C)."""

    def gradient_round_off(self, weights: Tensor, samples: SampleSet, shift: float = 0.0) -> float:
        """Bound the round-off of `gradient` in the Frobenius norm."""

    def hessian(self, weights: Tensor, features: Tensor, shift: float = 0.0) -> Tensor:
        """Return the Hessian, shape (d, d) for all outputs or (C, d, d), one an output."""


OF: Mapping[Loss, LossFunctions] = {Loss.SQUARED: squared, Loss.LOGISTIC: logistic}
