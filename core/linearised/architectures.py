"""Which networks there are and which tensors each has (METHOD §6); free of torch, for the API.

A network is declared by name and sizes, and its weights come as tensors alone: no client's code is
ever run. `core.linearised.networks` computes with what is described here.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from core.errors import InvalidOptionError, InvalidTensorError

Shape = tuple[int, ...]

_COUNT = "num_batches_tracked"
_BUFFERS = frozenset({"running_mean", "running_var", _COUNT})

# Channels of the four groups of two blocks; every group but the first halves the image.
RESNET18_GROUPS = (64, 128, 256, 512)

# A file's keys are whatever its sender wrote, of any length.
_SHOWN_CHARACTERS = 80


class Architecture(StrEnum):
    """The networks that can be declared."""

    LINEAR = "linear"  # one dense layer
    MLP = "mlp"  # dense layers with ReLU between
    SMALL_CNN = "small-cnn"  # 3×3 convolutions, each with ReLU and 2×2 max-pooling, then an mlp
    RESNET18 = "resnet18"  # He et al., arXiv:1512.03385, with torchvision's keys


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network's shape, and how much of it is linearised.

    Attributes:
        architecture: Which network; a string is looked up.
        input_shape: Shape of one sample; `linear` and `mlp` flatten it, the others take
            (channels, height, width).
        num_outputs: C.
        layers: k, how many of the last layers are linearised. Dense layers and convolutions count
            one each; in `resnet18` the stem, each of the eight blocks and `fc` do.
        widths: Hidden dense layers of `mlp` and `small-cnn`, outputs of each.
        channels: Convolutions of `small-cnn`, output channels of each.
    """

    architecture: Architecture
    input_shape: Shape
    num_outputs: int
    layers: int
    widths: Shape = ()
    channels: Shape = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", _architecture(self.architecture))
        for name in ("input_shape", "widths", "channels"):
            object.__setattr__(self, name, _sizes(name, getattr(self, name)))
        for name in ("num_outputs", "layers"):
            _require_positive(name, getattr(self, name))
        _RULES[self.architecture](self)
        if self.layers > (available := len(layers_of(self))):
            raise InvalidOptionError(
                f"layers: expected at most {available}, all that this {self.architecture} has, "
                f"got {self.layers}; linearise fewer"
            )


@dataclass(frozen=True, slots=True)
class Layer:
    """What is counted once by k.

    Attributes:
        input_shape: Shape of one sample that comes in, flattened or pooled where the layer needs
            it.
        tensors: Shapes of its parameters and buffers by state-dict key, in the module's order.
        dense: Whether it is one matrix and one bias.
    """

    input_shape: Shape
    tensors: Mapping[str, Shape]
    dense: bool = False


def layers_of(spec: NetworkSpec) -> tuple[Layer, ...]:
    """Return all layers from input to output.

    >>> [list(layer.tensors) for layer in layers_of(NetworkSpec("mlp", (4,), 2, 1, widths=(3,)))]
    [['layers.0.weight', 'layers.0.bias'], ['layers.1.weight', 'layers.1.bias']]
    """
    return _LAYERS[spec.architecture](spec)


def tensors(spec: NetworkSpec) -> dict[str, Shape]:
    """Return the shape of every tensor of the network, in the order of its state dict.

    >>> tensors(NetworkSpec(Architecture.LINEAR, (28, 28), 10, 1))
    {'weight': (10, 784), 'bias': (10,)}
    """
    return _merge(layers_of(spec))


def head_tensors(spec: NetworkSpec) -> dict[str, Shape]:
    """Return the shapes of the last k layers' tensors, buffers included.

    These are what a file has to hold where samples come as precomputed features.
    """
    return _merge(layers_of(spec)[-spec.layers :])


def trainable(spec: NetworkSpec) -> tuple[str, ...]:
    """Return the keys of what is linearised, in order: the parameters of the last k layers.

    Scale and shift of a batch normalisation belong to them, its running statistics never do.

    >>> trainable(NetworkSpec(Architecture.RESNET18, (3, 32, 32), 10, 1))
    ('fc.weight', 'fc.bias')
    """
    return tuple(name for name in head_tensors(spec) if not _is_buffer(name))


def num_parameters(spec: NetworkSpec) -> int:
    """Return D, how many numbers are linearised.

    >>> num_parameters(NetworkSpec(Architecture.RESNET18, (3, 32, 32), 10, 1))
    5130
    """
    shapes = head_tensors(spec)
    return sum(math.prod(shapes[name]) for name in trainable(spec))


def feature_shape(spec: NetworkSpec) -> Shape:
    """Return the shape of one sample where the last k layers begin.

    >>> feature_shape(NetworkSpec(Architecture.RESNET18, (3, 32, 32), 10, 2))
    (512, 1, 1)
    """
    return layers_of(spec)[-spec.layers].input_shape


def is_count(name: str) -> bool:
    """Return whether a tensor is an integer: how many batches a normalisation has seen.

    >>> is_count("bn1.num_batches_tracked"), is_count("bn1.running_var")
    (True, False)
    """
    return _last_part(name) == _COUNT


def require_tensors(
    spec: NetworkSpec, shapes: Mapping[str, Shape], *, head_only: bool = False
) -> None:
    """Check that a file holds a network's tensors and nothing else.

    Counts may be missing: torchvision's older weights have none, and no output depends on them.

    Args:
        spec: The network.
        shapes: Shape of every tensor in the file by its key.
        head_only: Whether the file holds the last k layers alone.

    Raises:
        InvalidTensorError: A key is missing or unknown, or a shape differs; the message names it.
    """
    expected = head_tensors(spec) if head_only else tensors(spec)
    part = f"the last {spec.layers} of {len(layers_of(spec))} layers" if head_only else "all layers"
    network = f"{part} of {spec.architecture}"
    missing = [name for name in expected if name not in shapes and not is_count(name)]
    unknown = [name for name in shapes if name not in expected]
    if missing:
        found = f"none; unknown keys such as {_shown(unknown[0])}" if unknown else "none"
        raise InvalidTensorError(
            f"{missing[0]}: expected shape {expected[missing[0]]}, got {found}; the file needs "
            f"{network} under the keys of its state dict, {_keys(missing)} missing"
        )
    if unknown:
        raise InvalidTensorError(
            f"{_shown(unknown[0])}: expected no such key, got shape {shapes[unknown[0]]}; the file "
            f"holds {network} and nothing else, remove {_keys(unknown)}"
        )
    for name, found_shape in shapes.items():
        if found_shape != expected[name]:
            raise InvalidTensorError(
                f"{name}: expected shape {expected[name]}, got {found_shape}; declare the sizes "
                "that the network was trained with, or send its own tensors"
            )


def _merge(layers: tuple[Layer, ...]) -> dict[str, Shape]:
    return {name: shape for layer in layers for name, shape in layer.tensors.items()}


def _is_buffer(name: str) -> bool:
    return _last_part(name) in _BUFFERS


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _keys(names: list[str]) -> str:
    return "1 key" if len(names) == 1 else f"{len(names)} keys"


def _shown(name: str) -> str:
    return repr(name[:_SHOWN_CHARACTERS])


def _architecture(name: str) -> Architecture:
    try:
        return Architecture(name)
    except ValueError as error:
        known = ", ".join(Architecture)
        raise InvalidOptionError(
            f"architecture: expected one of {known}, got {name!r}; choose one of these, or send "
            "features of your own network as samples of `linear`"
        ) from error


def _sizes(name: str, value: object) -> Shape:
    if not isinstance(value, tuple | list):
        raise InvalidOptionError(
            f"{name}: expected a list of whole numbers, got {value!r}; write one number a layer "
            "or dimension"
        )
    for size in value:
        _require_positive(name, size)
    return tuple(value)


def _require_positive(name: str, value: object) -> None:
    # True is an int to Python, and would be a width of 1.
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidOptionError(
            f"{name}: expected a whole number of at least 1, got {value!r}; declare the size that "
            "the network has"
        )


def _require_none(spec: NetworkSpec, *names: str) -> None:
    for name in names:
        if value := getattr(spec, name):
            raise InvalidOptionError(
                f"{name}: expected none for {spec.architecture}, got {value}; leave the field out"
            )


def _require_some(spec: NetworkSpec, name: str, otherwise: Architecture) -> None:
    if not getattr(spec, name):
        raise InvalidOptionError(
            f"{name}: expected at least one for {spec.architecture}, got none; name them, or "
            f"declare `{otherwise}`"
        )


def _check_linear(spec: NetworkSpec) -> None:
    _require_none(spec, "widths", "channels")
    _require_samples(spec)


def _check_mlp(spec: NetworkSpec) -> None:
    _require_none(spec, "channels")
    _require_some(spec, "widths", Architecture.LINEAR)
    _require_samples(spec)


def _require_samples(spec: NetworkSpec) -> None:
    if not spec.input_shape:
        raise InvalidOptionError(
            "input_shape: expected at least one dimension, got (); declare (d,) for d features"
        )


def _check_small_cnn(spec: NetworkSpec) -> None:
    _require_some(spec, "channels", Architecture.MLP)
    _require_image(spec, "(channels, height, width)")
    smallest = 2 ** len(spec.channels)
    if min(spec.input_shape[1:]) < smallest:
        raise InvalidOptionError(
            f"input_shape: expected height and width of at least {smallest}, since each of "
            f"{len(spec.channels)} convolutions is followed by a halving, got {spec.input_shape}; "
            "declare fewer channels or larger images"
        )


def _check_resnet18(spec: NetworkSpec) -> None:
    _require_none(spec, "widths", "channels")
    _require_image(spec, "(3, height, width)")
    if spec.input_shape[0] != 3:  # noqa: PLR2004 - red, green, blue
        raise InvalidOptionError(
            f"input_shape: expected (3, height, width), got {spec.input_shape}; bring the samples "
            "to three colour channels"
        )


def _require_image(spec: NetworkSpec, expected: str) -> None:
    if len(spec.input_shape) != 3:  # noqa: PLR2004 - channels, height, width
        raise InvalidOptionError(
            f"input_shape: expected {expected} for {spec.architecture}, got {spec.input_shape}; "
            "declare the shape of one sample, without the batch"
        )


_RULES: Mapping[Architecture, Callable[[NetworkSpec], None]] = {
    Architecture.LINEAR: _check_linear,
    Architecture.MLP: _check_mlp,
    Architecture.SMALL_CNN: _check_small_cnn,
    Architecture.RESNET18: _check_resnet18,
}


def _linear(spec: NetworkSpec) -> tuple[Layer, ...]:
    return (_dense("", math.prod(spec.input_shape), spec.num_outputs),)


def _mlp(spec: NetworkSpec) -> tuple[Layer, ...]:
    return _dense_stack("layers", math.prod(spec.input_shape), spec)


def _small_cnn(spec: NetworkSpec) -> tuple[Layer, ...]:
    layers = []
    shape = spec.input_shape
    for index, outputs in enumerate(spec.channels):
        inputs, height, width = shape
        prefix = f"convolutions.{index}."
        held = {f"{prefix}weight": (outputs, inputs, 3, 3), f"{prefix}bias": (outputs,)}
        layers.append(Layer(shape, held))
        shape = (outputs, height // 2, width // 2)
    return (*layers, *_dense_stack("dense", math.prod(shape), spec))


def _resnet18(spec: NetworkSpec) -> tuple[Layer, ...]:
    _, height, width = spec.input_shape
    stem = {"conv1.weight": (64, 3, 7, 7)} | _normalisation("bn1", 64)
    layers = [Layer(spec.input_shape, stem)]
    # The stem's convolution and its pooling halve, rounding up as every stride here does.
    shape: Shape = (64, _half(_half(height)), _half(_half(width)))
    for group, outputs in enumerate(RESNET18_GROUPS, start=1):
        for index in range(2):
            inputs, height, width = shape
            layers.append(Layer(shape, _block(f"layer{group}.{index}.", inputs, outputs)))
            if inputs != outputs:
                height, width = _half(height), _half(width)
            shape = (outputs, height, width)
    return (*layers, _dense("fc.", RESNET18_GROUPS[-1], spec.num_outputs))


_LAYERS: Mapping[Architecture, Callable[[NetworkSpec], tuple[Layer, ...]]] = {
    Architecture.LINEAR: _linear,
    Architecture.MLP: _mlp,
    Architecture.SMALL_CNN: _small_cnn,
    Architecture.RESNET18: _resnet18,
}


def _dense(prefix: str, inputs: int, outputs: int) -> Layer:
    held = {f"{prefix}weight": (outputs, inputs), f"{prefix}bias": (outputs,)}
    return Layer((inputs,), held, dense=True)


def _dense_stack(name: str, inputs: int, spec: NetworkSpec) -> tuple[Layer, ...]:
    sizes = (inputs, *spec.widths, spec.num_outputs)
    pairs = enumerate(itertools.pairwise(sizes))
    return tuple(_dense(f"{name}.{index}.", before, after) for index, (before, after) in pairs)


def _block(prefix: str, inputs: int, outputs: int) -> dict[str, Shape]:
    held: dict[str, Shape] = {f"{prefix}conv1.weight": (outputs, inputs, 3, 3)}
    held |= _normalisation(f"{prefix}bn1", outputs)
    held |= {f"{prefix}conv2.weight": (outputs, outputs, 3, 3)}
    held |= _normalisation(f"{prefix}bn2", outputs)
    if inputs != outputs:
        held |= {f"{prefix}downsample.0.weight": (outputs, inputs, 1, 1)}
        held |= _normalisation(f"{prefix}downsample.1", outputs)
    return held


def _normalisation(prefix: str, channels: int) -> dict[str, Shape]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    held: dict[str, Shape] = {f"{prefix}.{name}": (channels,) for name in vectors}
    return held | {f"{prefix}.{_COUNT}": ()}


def _half(size: int) -> int:
    return (size + 1) // 2
