"""What is given: a network that is linear in its last layers, and sets of samples (METHOD §6)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.linearisation import Linearisation
from core.privacy import Privacy
from core.problem import Ridge, require_matrix
from core.vocabulary import Loss


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSamples:
    """Samples as the frozen part of a network leaves them, with their targets.

    Attributes:
        features: What the last layers start from, shape (n, ...), float64.
        targets: Y, shape (n, C), float64; one-hot rows for classification.
    """

    features: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim < 2 or self.features.dtype != torch.float64:  # noqa: PLR2004
            raise InvalidTensorError(
                f"features: expected float64 of shape (n, ...), got {self.features.dtype} of "
                f"{tuple(self.features.shape)}"
            )
        require_matrix("targets", self.targets, rows=len(self.features))
        if len(self) == 0:
            raise InvalidTensorError("features: an empty set has no influence to measure or remove")
        require_matrix("features", self.features.flatten(1))

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: Tensor) -> "FeatureSamples":
        """Return some of the samples, by index or mask."""
        return FeatureSamples(self.features[rows], self.targets[rows])


@dataclass(frozen=True, slots=True, eq=False)
class MixedLinearModel:
    """A linearised network at (or near) the optimum of its training objective.

    L(w; D) = Σ_i ½‖f_{w_c}(x_i) + J(x_i)w − y_i‖² + (shift(n)/2)‖w‖².

    Attributes:
        linearisation: f_{w_c} and J.
        weights: w, shape (D, 1), float64; the network's parameters are w_c + w.
        ridge: The L2 term; n counts samples.
        n_samples: n, how many samples its training set has now.
        jacobian_norm_bound: R_J with ‖J(x)‖₂ ≤ R_J for every training sample.
        gradient_norm_bound: Bound on ‖∇L(w; D)‖ (sum form): 0 at an attested optimum; after
            deletions that are not exact, what they left behind.
        privacy: How residuals of deletions are hidden; None where nothing hides them.
    """

    linearisation: Linearisation
    weights: Tensor
    ridge: Ridge
    n_samples: int
    jacobian_norm_bound: float
    gradient_norm_bound: float = 0.0
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        require_matrix("weights", self.weights, self.linearisation.num_parameters, 1)
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        if not 0 < self.jacobian_norm_bound < math.inf:
            raise InvalidOptionError(
                f"jacobian_norm_bound: expected a positive number, got {self.jacobian_norm_bound}"
            )
        if self.ridge.strength == 0:
            raise InvalidOptionError(
                "ridge strength: 0 leaves what no sample touches undetermined in a network; train "
                "with a positive one"
            )
        if not 0 <= self.gradient_norm_bound < math.inf:
            raise InvalidOptionError(
                f"gradient_norm_bound: expected a number >= 0, got {self.gradient_norm_bound}"
            )

    @property
    def loss(self) -> Loss:
        """Return the per-sample loss, which is squared."""
        return Loss.SQUARED

    def outputs(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return f(x; w), shape (n, C), float64.

        Args:
            features: Shape (n, ...), float64.
            weights: Other weights than the model's, shape (D, 1), float64.

        Returns:
            The network's own outputs and the linear part's.
        """
        moved = self.weights if weights is None else weights
        change = self.linearisation.jvp(features, moved.T)[0]
        return self.linearisation.centre_outputs(features).add_(change)

    def data_gradient(self, samples: FeatureSamples, weights: Tensor | None = None) -> Tensor:
        """Return Σ_i J(x_i)ᵀ(f(x_i; w) − y_i), without the ridge.

        Args:
            samples: D.
            weights: Other weights than the model's, shape (D, 1), float64.

        Returns:
            Shape (D, 1), float64, summed over the samples.
        """
        errors = self.outputs(samples.features, weights).sub_(samples.targets)
        return self.linearisation.vjp(samples.features, errors[None]).T
