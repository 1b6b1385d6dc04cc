"""Whether weights and stored statistics can belong together; numpy only (METHOD §4)."""

from typing import Protocol

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.checks import logistic, sketch, squared
from app.registry.schemas import Manifest, RidgeDeclaration, StatisticsKind
from app.registry.tensors import F64, Array
from core.noise import least_sigma
from core.vocabulary import Loss, Mechanism, RidgeConvention, Task


class Statistics(Protocol):
    """What is known of checked statistics, whatever their kind."""

    def training_gradient_norm(self, weights: Array, manifest: Manifest) -> float:
        """Return a bound on ‖∇L(W; D)‖_F, sum form, if the weights are an optimum of them."""

    def to_bytes(self) -> bytes:
        """Return the canonical file."""


def read_weights(content: bytes, manifest: Manifest) -> Array:
    """Return W, shape (d, C); of a network w, shape (D, 1).

    Raises:
        InvalidInputError: The file is something else.
    """
    weight = tensors.read(content, field="weights", expected={"weight": (F64,)})["weight"]
    tensors.require_shape(weight, manifest.weight_shape, field="weights.weight")
    tensors.require_finite(weight, field="weights.weight")
    return weight.astype(np.float64)


def require_room_for_noise(weights: Array, manifest: Manifest) -> None:
    """Check that output perturbation does not vanish in the rounding of the release.

    Raises:
        InvalidInputError: The noise is too small beside these weights.
    """
    privacy = manifest.privacy
    if privacy is None or privacy.mechanism is not Mechanism.OUTPUT:
        return
    least = least_sigma(weights)
    if privacy.sigma < least:
        raise InvalidInputError(
            f"manifest.privacy.sigma: {privacy.sigma:.6g} vanishes in the rounding of these"
            f" weights; noise of at least {least:.6g} does not",
            field="manifest.privacy.sigma",
            remedy="Declare the standard deviation that ε, δ and the budget need"
            " (`core.privacy.sigma_for`).",
        )


def row_view(manifest: Manifest) -> Manifest:
    """Return a manifest as its statistics see it.

    The Gram matrix of a network is that of a linear head with one output (METHOD §6): every sample
    is C rows of its Jacobian, each with a real target. Anything else is seen as it is declared.
    """
    if manifest.network is None or manifest.network.statistics is not StatisticsKind.GRAM:
        return manifest
    outputs, strength = manifest.num_outputs, manifest.ridge.strength
    if manifest.ridge.convention is RidgeConvention.PER_SAMPLE:
        # The same shift, from C times as many rows.
        strength /= outputs
    return manifest.model_copy(
        update={
            "network": None,
            "num_outputs": 1,
            "task": Task.REGRESSION,
            "n_samples": manifest.n_samples * outputs,
            "ridge": RidgeDeclaration(convention=manifest.ridge.convention, strength=strength),
        }
    )


def read_statistics(content: bytes, manifest: Manifest) -> Statistics:
    """Return statistics that some training set of the manifest's can have.

    Args:
        content: The file.
        manifest: As statistics see it (`row_view`).

    Raises:
        InvalidInputError: No such set has them; the message names the figure.
    """
    if manifest.network is not None:
        return sketch.read(content, manifest)
    if manifest.loss is Loss.LOGISTIC:
        return logistic.read(content, manifest)
    return squared.read(content, manifest)
