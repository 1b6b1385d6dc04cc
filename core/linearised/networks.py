"""Networks in plain torch, split into a frozen part and the last k layers (METHOD §6).

Weights come as tensors under the keys of `core.linearised.architectures`; nothing else of a file is
ever read, and no code of it is run. A network is evaluated as it stands: batch normalisation with
its running statistics, no dropout, all in float64.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.device import to_device
from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.architectures import (
    RESNET18_GROUPS,
    Architecture,
    NetworkSpec,
    feature_shape,
    head_tensors,
    is_count,
    layers_of,
    require_tensors,
    trainable,
)
from core.linearised.architectures import tensors as all_tensors

# What a batch of inputs may hold between two layers: 32 MiB, and several times that within each.
_BATCH_FLOATS = 2**22
_REAL = frozenset({torch.float32, torch.float64})
_Stage = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linearised layer x ↦ xWᵀ + b, and whether ReLU follows.

    Attributes:
        weight: Key of W, shape (outputs, inputs).
        bias: Key of b, shape (outputs,).
        activated: Whether the next layer sees max(0, ·) of its outputs.
    """

    weight: str
    bias: str
    activated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network around whose weights the last k layers are linearised; made by `load_network`.

    Not for two threads at once: a call of `head` lends its parameters to the module.

    Attributes:
        spec: Which network, and k.
        state: Its tensors by state-dict key, float64, counts int64; without the frozen layers' if
            `head_only`.
        head_only: Whether the frozen layers are unknown, so that samples come as features.
    """

    spec: NetworkSpec
    state: dict[str, Tensor]
    head_only: bool = False
    _module: "_Staged" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        module = _skeleton(self.spec)
        # Assigning shares the memory of `state`; what a head lacks stays without memory.
        module.load_state_dict(self.state, strict=not self.head_only, assign=True)
        object.__setattr__(self, "_module", module)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The centre w_c: what is linearised, by state-dict key in the module's order."""
        return {name: self.state[name] for name in trainable(self.spec)}

    @property
    def dense(self) -> tuple[DenseLayer, ...] | None:
        """The linearised layers in order if every one of them is dense, else None."""
        linearised = layers_of(self.spec)[-self.spec.layers :]
        if not all(layer.dense for layer in linearised):
            return None
        names = [tuple(layer.tensors) for layer in linearised]
        return tuple(
            DenseLayer(weight, bias, activated=index < len(names))
            for index, (weight, bias) in enumerate(names, start=1)
        )

    def frozen(self, inputs: Tensor) -> Tensor:
        """Compute the features that the last k layers see.

        Args:
            inputs: Samples, shape (n, *input_shape), float64.

        Returns:
            Features, shape (n, *feature_shape), float64, without a graph.

        Raises:
            InvalidOptionError: The frozen layers are unknown.
            InvalidTensorError: `inputs` has another shape or dtype.
        """
        if self.head_only:
            raise InvalidOptionError(
                f"samples: expected features of shape {feature_shape(self.spec)} a sample, got "
                "inputs, but the frozen layers of this network are unknown; send features, or "
                "register all layers"
            )
        _require_samples("inputs", inputs, self.spec.input_shape)
        widest = max(math.prod(layer.input_shape) for layer in layers_of(self.spec))
        batches = torch.split(inputs, max(1, _BATCH_FLOATS // widest))
        with torch.no_grad():
            parts = [self._module(batch, last=self._first_linearised) for batch in batches]
        return torch.cat(parts)

    def features_of(self, samples: Tensor) -> Tensor:
        """Return the features of samples as they are sent: these themselves if `head_only`.

        Args:
            samples: Inputs, or features if `head_only`, each flattened, shape (n, d), float64.

        Returns:
            Features, shape (n, *feature_shape), float64, where the network is.

        Raises:
            InvalidTensorError: `samples` has another dtype.
        """
        shape = feature_shape(self.spec) if self.head_only else self.spec.input_shape
        device = next(iter(self.state.values())).device
        shaped = samples.to(device).reshape(-1, *shape)
        return shaped if self.head_only else self.frozen(shaped)

    def head(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Compute the outputs f(x; w), a pure function that `torch.func` can transform.

        At `parameters` equal to the centre, `head(parameters, frozen(x))` is the network's output.

        Args:
            parameters: w, the tensors that `self.parameters` names and shapes.
            features: What `frozen` returns, shape (n, *feature_shape), float64.

        Returns:
            Outputs, shape (n, C), float64.

        Raises:
            InvalidTensorError: `parameters` has other keys, or `features` another shape or dtype.
        """
        if parameters.keys() != set(trainable(self.spec)):
            raise InvalidTensorError(
                f"parameters: expected keys {list(trainable(self.spec))}, got {list(parameters)}; "
                "pass all that is linearised and nothing else"
            )
        _require_samples("features", features, feature_shape(self.spec))
        outputs: Tensor = functional_call(
            self._module, dict(parameters), (features,), {"first": self._first_linearised}
        )
        return outputs

    def to(self, device: torch.device) -> "Network":
        """Return the network on a device; this one is unchanged."""
        return to_device(self, device)

    @property
    def _first_linearised(self) -> int:
        return len(self._module.stages) - self.spec.layers


def load_network(
    spec: NetworkSpec, tensors: Mapping[str, Tensor], *, head_only: bool = False
) -> Network:
    """Check the tensors of a file and make them a network.

    Args:
        spec: Which network, and k.
        tensors: Of the whole network, or of the last k layers if `head_only`, under the keys of
            `core.linearised.architectures`; float32 or float64, counts int64. Counts may be
            missing.
        head_only: Whether samples will come as features.

    Returns:
        The network in float64, on the tensors' device.

    Raises:
        InvalidTensorError: A key is missing or unknown, or a tensor has another shape or dtype,
            is not finite or is a negative variance; the message names it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    require_tensors(spec, shapes, head_only=head_only)
    for name, tensor in tensors.items():
        _require_numbers(name, tensor)
    # Evaluation never reads counts: zero for a missing one changes no output.
    zero = torch.zeros((), dtype=torch.int64, device=next(iter(tensors.values())).device)
    names = head_tensors(spec) if head_only else all_tensors(spec)
    return Network(
        spec, {name: _loaded(name, tensors.get(name, zero)) for name in names}, head_only
    )


def initialise(spec: NetworkSpec, seed: int) -> dict[str, Tensor]:
    """Draw tensors to train from: entries N(0, 2/inputs) after He et al., arXiv:1502.01852.

    Biases are 0 and normalisations change nothing yet.

    Args:
        spec: Which network.
        seed: Of the generator; the same seed gives the same numbers.

    Returns:
        Tensors of the whole network by state-dict key, float64, counts int64, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _initial(name, shape, generator) for name, shape in all_tensors(spec).items()}


def _initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if is_count(name):
        return torch.tensor(0)
    if len(shape) > 1:
        deviation = math.sqrt(2 / math.prod(shape[1:]))
        return deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
    # A vector named weight is the scale of a normalisation.
    if name.endswith(("weight", "running_var")):
        return torch.ones(shape, dtype=torch.float64)
    return torch.zeros(shape, dtype=torch.float64)


def _require_numbers(name: str, tensor: Tensor) -> None:
    if is_count(name):
        if tensor.dtype != torch.int64:
            raise InvalidTensorError(
                f"{name}: expected int64, got {tensor.dtype}; write the count as int64 or leave "
                "it out"
            )
        return
    if tensor.dtype not in _REAL:
        raise InvalidTensorError(
            f"{name}: expected float64 or float32, got {tensor.dtype}; convert it before sending"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise InvalidTensorError(
            f"{name}: expected finite numbers, got NaN or infinite values; train without overflow"
        )
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise InvalidTensorError(
            f"{name}: expected variances of at least 0, got {float(tensor.min())}; send the "
            "statistics that training collected"
        )


def _loaded(name: str, tensor: Tensor) -> Tensor:
    return tensor.detach() if is_count(name) else tensor.detach().to(torch.float64)


def _require_samples(name: str, samples: Tensor, shape: tuple[int, ...]) -> None:
    if samples.dtype != torch.float64:
        raise InvalidTensorError(
            f"{name}: expected float64, got {samples.dtype}; convert them, as their reader does"
        )
    if samples.ndim == 0 or tuple(samples.shape[1:]) != shape:
        expected = f"(n, {', '.join(map(str, shape))})"
        raise InvalidTensorError(
            f"{name}: expected shape {expected}, got {tuple(samples.shape)}; send samples of the "
            "declared shape"
        )


class _Staged(nn.Module):
    """A network as a chain: what brings inputs into shape, then one stage a layer.

    Attributes:
        stages: Functions of the registered submodules; a tuple, so that none is registered twice.
    """

    stages: tuple[_Stage, ...]

    def forward(self, values: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Return what the stages from `first` to before `last`, all by default, make of samples."""
        for stage in self.stages[first:last]:
            values = stage(values)
        return values


def _skeleton(spec: NetworkSpec) -> _Staged:
    # Nothing is allocated or drawn for weights that are about to be replaced.
    with torch.device("meta"):
        module = _MODULES[spec.architecture](spec)
    module.eval().requires_grad_(requires_grad=False)
    return module


class _Linear(_Staged):
    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        inputs = math.prod(spec.input_shape)
        self.weight = nn.Parameter(torch.empty(spec.num_outputs, inputs))
        self.bias = nn.Parameter(torch.empty(spec.num_outputs))
        self.stages = (nn.Flatten(), self._dense)

    def _dense(self, values: Tensor) -> Tensor:
        return nn.functional.linear(values, self.weight, self.bias)


class _Mlp(_Staged):
    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.layers = _dense_layers(spec)
        self.stages = (nn.Flatten(), *_dense_stages(self.layers))


class _SmallCnn(_Staged):
    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        sizes = (spec.input_shape[0], *spec.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, padding=1)
            for before, after in itertools.pairwise(sizes)
        )
        self.dense = _dense_layers(spec)
        *convolved, final = [
            nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2))
            for convolution in self.convolutions
        ]
        flattened = nn.Sequential(final, nn.Flatten())
        self.stages = (nn.Identity(), *convolved, flattened, *_dense_stages(self.dense))


class _ResNet18(_Staged):
    """As torchvision 0.29 names its parts, so that its weights load."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        blocks: list[nn.Module] = []
        for index, outputs in enumerate(RESNET18_GROUPS, start=1):
            group = nn.Sequential(_Block(inputs, outputs), _Block(outputs, outputs))
            self.add_module(f"layer{index}", group)
            blocks.extend(group)
            inputs = outputs
        self.fc = nn.Linear(inputs, spec.num_outputs)
        stem = nn.Sequential(
            self.conv1, self.bn1, nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        pooled = nn.Sequential(blocks.pop(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.stages = (nn.Identity(), stem, *blocks, pooled, self.fc)


class _Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut; the image is halved where channels are added."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if inputs == outputs:
            self.downsample: nn.Module = nn.Identity()
        else:
            convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, values: Tensor) -> Tensor:
        """Return what the block makes of (n, inputs, height, width)."""
        inner = nn.functional.relu(self.bn1(self.conv1(values)))
        outer: Tensor = self.bn2(self.conv2(inner)) + self.downsample(values)
        return nn.functional.relu(outer)


_MODULES: Mapping[Architecture, Callable[[NetworkSpec], _Staged]] = {
    Architecture.LINEAR: _Linear,
    Architecture.MLP: _Mlp,
    Architecture.SMALL_CNN: _SmallCnn,
    Architecture.RESNET18: _ResNet18,
}


def _dense_layers(spec: NetworkSpec) -> nn.ModuleList:
    """Return the dense part of `mlp` or `small-cnn`, as `layers_of` marks it."""
    shapes = [next(iter(layer.tensors.values())) for layer in layers_of(spec) if layer.dense]
    return nn.ModuleList(nn.Linear(inputs, outputs) for outputs, inputs in shapes)


def _dense_stages(layers: nn.ModuleList) -> list[_Stage]:
    *hidden, final = layers
    return [*(nn.Sequential(layer, nn.ReLU()) for layer in hidden), final]
