"""Networks that are linearised in their last layers: what is declared of one, and its weights.

Nothing of a client's is ever run: the architecture is one of the core's, and the part `network`
has tensors alone.
"""

import math

import numpy as np

from app.errors import InvalidInputError
from app.evidence.canonical import sha256_hex
from app.registry import tensors
from app.registry.refusals import reworded
from app.registry.samples import MAX_NUMBERS
from app.registry.schemas import Manifest, NetworkDeclaration, SampleKind, StatisticsKind
from app.registry.tensors import F32, F64, I64
from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.architectures import (
    NetworkSpec,
    is_count,
    layers_of,
    num_parameters,
    require_tensors,
)
from core.linearised.architectures import tensors as all_tensors
from core.vocabulary import Loss

# A convolution holds this many times what the layer after it sees: both axes are halved later.
_POOLED = 4


def require_consistent(manifest: Manifest, *, has_surrogate: bool) -> None:
    """Check a declared network against the rest of the manifest and what is sent beside it.

    Raises:
        InvalidInputError: There is no such network, or the manifest contradicts it.
    """
    network = manifest.network
    if network is None:
        return
    spec = _spec(network, manifest)
    _require_width(spec, manifest)
    _require_computable(spec)
    _require_range(network)
    _require_squared_loss(manifest)
    _require_no_noise_over_a_sketch(network, manifest)
    _require_no_digest_of_a_secret(network, manifest)
    if has_surrogate:
        raise InvalidInputError(
            "surrogate: features stand in for those of a linear head, but the manifest declares a"
            " network",
            field="surrogate",
            remedy="Leave the part out; send the part `statistics` for deletions with a bound.",
        )


def read(content: bytes | None, manifest: Manifest) -> bytes | None:
    """Return the canonical file of w_c, numbers as they were sent; None for a linear head.

    Raises:
        InvalidInputError: It is missing, not called for, or holds another network's tensors.
    """
    network = manifest.network
    if network is None or content is None:
        _require_both_or_none(manifest, content)
        return None
    spec = _spec(network, manifest)
    stored = tensors.parse(content, field="network")
    shapes = {name: tuple(tensor["shape"]) for name, tensor in stored.items()}
    try:
        require_tensors(spec, shapes, head_only=network.samples is SampleKind.FEATURES)
    except InvalidTensorError as error:
        # The name that it begins with may be one that the client made up.
        name = str(error).partition(":")[0]
        known = name in all_tensors(spec)
        field = f"network.{name}" if known else "network"
        raise reworded(error, "network.", field=field) from error
    dtypes = {name: (I64,) if is_count(name) else (F64, F32) for name in stored}
    found = tensors.arrays(stored, dtypes, field="network")
    for name, tensor in found.items():
        tensors.require_finite(tensor, field=f"network.{name}")
        if name.endswith("running_var"):
            _require_variances(tensor, f"network.{name}")
    return tensors.write({name: found[name] for name in sorted(found)})


def require_digests(manifest: Manifest, *, network: bytes | None, weights: bytes) -> None:
    """Check w_c and w against the digests that the manifest has of their files, if it has any.

    Raises:
        InvalidInputError: A part is another file.
    """
    declared = manifest.network
    if declared is None:
        return
    for field, content, name in (
        ("network", network or b"", "centre_sha256"),
        ("weights", weights, "weights_sha256"),
    ):
        expected = getattr(declared, name)
        if expected is not None and (found := sha256_hex(content)) != expected:
            raise InvalidInputError(
                f"{field}: its SHA-256 is {found}, but manifest.network.{name} is {expected}",
                field=field,
                remedy="Send the very file that the digest was taken of, or leave the digest out.",
            )


def _spec(network: NetworkDeclaration, manifest: Manifest) -> NetworkSpec:
    try:
        return network.to_core(manifest.num_outputs)
    except InvalidOptionError as error:
        raise reworded(error, "manifest.network.") from error


def _require_width(spec: NetworkSpec, manifest: Manifest) -> None:
    width = num_parameters(spec)
    if manifest.num_features != width:
        raise InvalidInputError(
            f"manifest.num_features: {manifest.num_features}, but the last {spec.layers} layers of"
            f" this {spec.architecture} have D = {width} parameters",
            field="manifest.num_features",
            remedy=f"Declare {width}, or the layers and sizes that were linearised.",
        )


def _require_computable(spec: NetworkSpec) -> None:
    """Check that one sample does not need more memory than a worker has."""
    largest = max(math.prod(layer.input_shape) for layer in layers_of(spec))
    if largest * _POOLED > MAX_NUMBERS:
        raise InvalidInputError(
            f"manifest.network.input_shape: a layer of this network takes {largest} numbers of one"
            f" sample, at most {MAX_NUMBERS // _POOLED} are computed with",
            field="manifest.network.input_shape",
            remedy="Declare smaller inputs and layers, as the network was trained with.",
        )


def _require_range(network: NetworkDeclaration) -> None:
    """Check that a range is declared where inputs are held against it, and nowhere else."""
    declared, finding = network.input_range, None
    if network.samples is SampleKind.FEATURES:
        if declared is not None:
            finding = f"{declared} is about inputs, but samples are `features`"
            remedy = "Leave it out, or declare samples `inputs` and send all layers."
    elif declared is None:
        finding = "is missing, and without it no input can be told from a broken one"
        remedy = "Declare [lo, hi] that every number of every input lies in, e.g. [0.0, 1.0]."
    elif not declared[0] < declared[1]:
        finding = f"{declared} is no range"
        remedy = "Declare [lo, hi] with lo < hi."
    if finding is not None:
        raise InvalidInputError(
            f"manifest.network.input_range: {finding}",
            field="manifest.network.input_range",
            remedy=remedy,
        )


def _require_squared_loss(manifest: Manifest) -> None:
    if manifest.loss is not Loss.SQUARED:
        raise InvalidInputError(
            f"manifest.loss: '{manifest.loss}', but networks are linearised for the squared loss",
            field="manifest.loss",
            remedy="Train with the squared loss, on one-hot rows for classification, and declare"
            " `squared`.",
        )


def _require_no_noise_over_a_sketch(network: NetworkDeclaration, manifest: Manifest) -> None:
    if manifest.privacy is not None and network.statistics is StatisticsKind.SKETCH:
        raise InvalidInputError(
            "manifest.privacy: noise is declared, but the bound of a sketch holds with a"
            " probability: no (ε, δ) may rest on it",
            field="manifest.privacy",
            remedy="Declare no privacy; or linearise few enough layers for the statistics `gram`.",
        )


def _require_no_digest_of_a_secret(network: NetworkDeclaration, manifest: Manifest) -> None:
    if manifest.privacy is not None and network.weights_sha256 is not None:
        raise InvalidInputError(
            "manifest.network.weights_sha256: noise hides the weights, and a digest of them would"
            " let anybody test a guess",
            field="manifest.network.weights_sha256",
            remedy="Leave it out.",
        )


def _require_both_or_none(manifest: Manifest, content: bytes | None) -> None:
    if manifest.network is not None:
        raise InvalidInputError(
            "network: the manifest declares a network, but this part is missing",
            field="network",
            remedy="Send w_c as safetensors, under the keys of the architecture's state dict.",
        )
    if content is not None:
        raise InvalidInputError(
            "network: this part was sent, but the manifest declares no network",
            field="network",
            remedy="Declare it as manifest.network, or leave the part out for a linear head.",
        )


def _require_variances(tensor: tensors.AnyArray, field: str) -> None:
    if (tensor < 0).any():
        raise InvalidInputError(
            f"{field}: found {np.min(tensor)}, but a variance is at least 0",
            field=field,
            remedy="Send the statistics that training collected.",
        )
