"""Tensors to safetensors bytes and back: weights, statistics, samples. Nothing else is ever read.

Files hold float64; samples may come as float32, and classes as int64 labels.
"""

import dataclasses
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from core.errors import InvalidTensorError
from core.linearised.sketch import SketchStatistics
from core.problem import SampleSet, require_matrix
from core.results import AnyStatistics
from core.statistics import LogisticStatistics, StoredStatistics

_REAL = frozenset({torch.float32, torch.float64})
# What a file holds of a factor; what was proved about the statistics is proved anew.
_FACTOR = ("inverse", "shift", "joint_inverse")


def dump_weights(weights: Tensor) -> bytes:
    """Write W as {`weight`: (d, C) float64}.

    Args:
        weights: W, shape (d, C), float64.

    Returns:
        The same bytes for the same numbers.

    Raises:
        InvalidTensorError: A shape, dtype or value does not fit.

    >>> bool((load_weights(dump_weights(torch.eye(2, dtype=torch.float64))) == torch.eye(2)).all())
    True
    """
    require_matrix("weight", weights)
    return _dump({"weight": weights})


def load_weights(content: bytes) -> Tensor:
    """Read W from what `dump_weights` wrote.

    Args:
        content: A safetensors file.

    Returns:
        W, shape (d, C), float64, on the CPU.

    Raises:
        InvalidTensorError: It is no such file.
    """
    tensors = _load(content)
    _require_keys(tensors, required={"weight"})
    weights = tensors["weight"]
    require_matrix("weight", weights)
    return weights


def dump_statistics(statistics: AnyStatistics) -> bytes:
    """Write the attributes of statistics under their names; the keys tell the kinds apart.

    Squared loss: `gram`, `cross`, `target_gram`, `n_samples`, `round_off`; with a factor also
    `factor.inverse`, `factor.shift`, `factor.joint_inverse`. Logistic loss: as the attributes of
    `core.statistics.LogisticStatistics`. Sketch of a network: as those of
    `core.linearised.sketch.SketchStatistics`, `basis` only where there is one, in float32. Counts
    are int64, all else float64.

    Args:
        statistics: What to write.

    Returns:
        The same bytes for the same numbers.
    """
    tensors = {
        field.name: _as_tensor(getattr(statistics, field.name))
        for field in dataclasses.fields(statistics)
        if field.name != "factor" and getattr(statistics, field.name) is not None
    }
    if isinstance(statistics, StoredStatistics) and statistics.factor is not None:
        tensors |= {
            f"factor.{name}": _as_tensor(getattr(statistics.factor, name)) for name in _FACTOR
        }
    return _dump(tensors)


def load_statistics(content: bytes) -> AnyStatistics:
    """Read statistics of any kind.

    Args:
        content: A safetensors file. `round_off` may be missing where statistics of the squared
            loss were collected elsewhere; then the worst case of float64 sums is taken.

    Returns:
        Statistics, on the CPU.

    Raises:
        InvalidTensorError: It is no such file, or its numbers are no data set's.
        InvalidOptionError: A count or a round-off is out of range.
    """
    tensors = _load(content)
    if "hessians" in tensors:
        return LogisticStatistics(**_fields(LogisticStatistics, tensors))
    if "sketch" in tensors:
        return SketchStatistics(**_fields(SketchStatistics, tensors, optional={"basis"}))
    stored = {f"factor.{name}" for name in _FACTOR} if "factor.inverse" in tensors else set()
    _require_keys(
        tensors,
        required={"gram", "cross", "target_gram", "n_samples"} | stored,
        optional={"round_off"},
    )
    round_off = tensors.get("round_off")
    statistics = StoredStatistics.from_arrays(
        tensors["gram"],
        tensors["cross"],
        tensors["target_gram"],
        int(_scalar("n_samples", tensors["n_samples"], torch.int64)),
        None if round_off is None else _scalar("round_off", round_off, torch.float64),
    )
    if not stored:
        return statistics
    return statistics.with_stored_factor(
        tensors["factor.inverse"],
        _scalar("factor.shift", tensors["factor.shift"], torch.float64),
        tensors["factor.joint_inverse"],
    )


def dump_samples(samples: SampleSet) -> bytes:
    """Write {`x`: (n, d), `y`: (n, C)}, both float64.

    Args:
        samples: What to write.

    Returns:
        The same bytes for the same numbers.
    """
    return _dump({"x": samples.features, "y": samples.targets})


def load_samples(content: bytes, num_outputs: int) -> SampleSet:
    """Read samples.

    Args:
        content: A safetensors file with `x`, (n, d) float64 or float32, and `y`: (n, C) of the
            same dtypes, or (n,) int64 labels in 0 … C−1.
        num_outputs: C.

    Returns:
        Samples in float64, labels as one-hot rows, on the CPU.

    Raises:
        InvalidTensorError: It is no such file, or a shape, dtype or value does not fit.
    """
    tensors = _load(content)
    _require_keys(tensors, required={"x", "y"})
    targets = tensors["y"]
    if targets.dtype == torch.int64:
        targets = _one_hot(targets, num_outputs)
    samples = SampleSet(_as_float64("x", tensors["x"]), _as_float64("y", targets))
    require_matrix("y", samples.targets, columns=num_outputs)
    return samples


def _dump(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )


def _load(content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise InvalidTensorError(f"file: not a safetensors file: {error}") from error


def _require_keys(
    tensors: Mapping[str, Tensor],
    *,
    required: set[str],
    optional: AbstractSet[str] = frozenset(),
) -> None:
    found = set(tensors)
    if not required <= found <= required | optional:
        raise InvalidTensorError(f"file: expected keys {sorted(required)}, got {sorted(found)}")


def _fields(
    kind: type, tensors: Mapping[str, Tensor], optional: AbstractSet[str] = frozenset()
) -> dict[str, Any]:
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    _require_keys(tensors, required=set(types) - optional, optional=optional)
    values: dict[str, Any] = {}
    for name in types.keys() & tensors.keys():
        if types[name] is int:
            values[name] = int(_scalar(name, tensors[name], torch.int64))
        elif types[name] is float:
            values[name] = _scalar(name, tensors[name], torch.float64)
        else:
            values[name] = tensors[name]
    return values


def _as_tensor(value: Tensor | float) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor([value], dtype=torch.int64 if isinstance(value, int) else torch.float64)


def _scalar(name: str, tensor: Tensor, dtype: torch.dtype) -> float:
    if tensor.dtype != dtype or tensor.shape != (1,):
        raise InvalidTensorError(
            f"{name}: expected {dtype} of shape (1,), got {tensor.dtype} of {tuple(tensor.shape)}"
        )
    return tensor.item()


def _as_float64(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in _REAL:
        raise InvalidTensorError(f"{name}: expected float64 or float32, got {tensor.dtype}")
    return tensor.to(torch.float64)


def _one_hot(labels: Tensor, num_outputs: int) -> Tensor:
    if labels.ndim != 1:
        raise InvalidTensorError(f"y: expected labels of shape (n,), got {tuple(labels.shape)}")
    outside = (labels < 0) | (labels >= num_outputs)
    if bool(outside.any()):
        worst = int(labels[outside][0])
        raise InvalidTensorError(f"y: expected labels in 0 … {num_outputs - 1}, got {worst}")
    return torch.nn.functional.one_hot(labels, num_outputs).to(torch.float64)
