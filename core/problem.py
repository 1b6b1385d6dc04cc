"""What is given: a linear model, its ridge, and sets of samples (METHOD §1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.privacy import Privacy
from core.vocabulary import Loss, RidgeConvention


def require_matrix(
    name: str, value: Tensor, rows: int | None = None, columns: int | None = None
) -> None:
    """Check that `value` is a finite float64 matrix of the given shape.

    Args:
        name: What messages call it.
        value: The tensor to check.
        rows: Expected number of rows; any if None.
        columns: Expected number of columns; any if None.

    Raises:
        InvalidTensorError: It is something else; the message names what was found.
    """
    require_shape(name, value, rows, columns)
    # A sum is finite only if every entry is (it may also overflow): eight times faster.
    if not math.isfinite(float(value.sum())) and not bool(torch.isfinite(value).all()):
        raise InvalidTensorError(f"{name}: contains NaN or infinite values")


def require_shape(
    name: str, value: Tensor, rows: int | None = None, columns: int | None = None
) -> None:
    """Check as `require_matrix` does, without another look at numbers that had one.

    Args:
        name: What messages call it.
        value: The tensor to check.
        rows: Expected number of rows; any if None.
        columns: Expected number of columns; any if None.

    Raises:
        InvalidTensorError: It is something else; the message names what was found.
    """
    if value.dtype != torch.float64:
        raise InvalidTensorError(f"{name}: expected float64, got {value.dtype}")
    shape = tuple(value.shape)
    fits = (
        len(shape) == 2  # noqa: PLR2004 - a matrix has two dimensions
        and (rows is None or rows == shape[0])
        and (columns is None or columns == shape[1])
    )
    if not fits:
        expected = f"({'any' if rows is None else rows}, {'any' if columns is None else columns})"
        raise InvalidTensorError(f"{name}: expected shape {expected}, got {shape}")


@dataclass(frozen=True, slots=True)
class Ridge:
    """The L2 term of the training objective.

    Attributes:
        convention: `per_sample`: (λ·n/2)‖W‖²; `total`: (α/2)‖W‖² whatever n is.
        strength: λ or α, positive; α = 0 for least squares without a ridge.
    """

    convention: RidgeConvention
    strength: float

    def __post_init__(self) -> None:
        if self.strength == 0 and self.convention is RidgeConvention.TOTAL:
            return
        if not 0 < self.strength < float("inf"):
            raise InvalidOptionError(
                f"ridge strength: expected a positive number, got {self.strength}"
            )

    def shift(self, n_samples: int) -> float:
        """Return what the ridge adds to every eigenvalue of the Hessian summed over n samples."""
        if self.convention is RidgeConvention.PER_SAMPLE:
            return self.strength * n_samples
        return self.strength

    def mean_shift(self, n_samples: int) -> float:
        """Return what the ridge adds to every eigenvalue of the mean Hessian: λ, or α/n."""
        return self.shift(n_samples) / n_samples

    def forgotten_shift(self, n_forgotten: int) -> float:
        """Return the forget set's share of the shift: λ·n_f, or 0 where the ridge is not split."""
        if self.convention is RidgeConvention.PER_SAMPLE:
            return self.strength * n_forgotten
        return 0.0


@dataclass(frozen=True, slots=True)
class SampleSet:
    """Samples with their targets: a forget set, a retain set or a holdout.

    Attributes:
        features: X, shape (n, d), float64.
        targets: Y, shape (n, C), float64; one-hot rows for classification.
    """

    features: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        require_matrix("features", self.features)
        require_matrix("targets", self.targets, rows=self.features.shape[0])
        if len(self) == 0:
            raise InvalidTensorError("features: an empty set has no influence to measure or remove")

    def __len__(self) -> int:
        return self.features.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """Public or synthetic features that stand in for the training set's (METHOD §4).

    Attributes:
        features: X_S, shape (n_S, d), float64.
        distance: Declared bound on ‖H̄ − H̄_S‖₂, the mean Hessians without the ridge at the model's
            weights (for every output); None where only an estimate of it can be made.
    """

    features: Tensor
    distance: float | None = None

    def __post_init__(self) -> None:
        require_matrix("surrogate.features", self.features)
        if self.features.shape[0] == 0:
            raise InvalidTensorError("surrogate.features: an empty set stands for nothing")
        if self.distance is not None and not 0 <= self.distance < float("inf"):
            raise InvalidOptionError(
                f"surrogate.distance: expected a number >= 0, got {self.distance}"
            )


@dataclass(frozen=True, slots=True)
class LinearModel:
    """A linear head at (or near) the optimum of its training objective.

    Attributes:
        weights: W, shape (d, C), float64.
        ridge: The L2 term it was trained with.
        n_samples: n, how many samples its training set has now.
        feature_norm_bound: R_x with ‖x‖₂ ≤ R_x for every training sample.
        gradient_norm_bound: Bound on ‖∇L(W; D)‖_F (sum form): 0 at an attested optimum; after
            estimated deletions, the worst case that they left behind.
        loss: Per-sample loss.
        privacy: How residuals of deletions are hidden; None where nothing hides them.
    """

    weights: Tensor
    ridge: Ridge
    n_samples: int
    feature_norm_bound: float
    gradient_norm_bound: float = 0.0
    loss: Loss = Loss.SQUARED
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        require_matrix("weights", self.weights)
        if self.n_samples < 1:
            raise InvalidOptionError(f"n_samples: expected at least 1, got {self.n_samples}")
        if not 0 < self.feature_norm_bound < float("inf"):
            raise InvalidOptionError(
                f"feature_norm_bound: expected a positive number, got {self.feature_norm_bound}"
            )
        if self.ridge.strength == 0 and self.loss is not Loss.SQUARED:
            raise InvalidOptionError(
                "ridge strength: 0 leaves logistic loss without an optimum on separable samples; "
                "train with a positive one"
            )
        if not 0 <= self.gradient_norm_bound < float("inf"):
            raise InvalidOptionError(
                f"gradient_norm_bound: expected a number >= 0, got {self.gradient_norm_bound}"
            )
