"""Tensors to safetensors bytes and back: weights, statistics, samples. Nothing else is ever read.

Files hold float64; samples may come as float32, and classes as int64 labels.
"""

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from core.errors import InvalidTensorError
from core.problem import SampleSet, require_matrix
from core.statistics import StoredStatistics

_REAL = frozenset({torch.float32, torch.float64})


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
    weights = _load(content, required={"weight"})["weight"]
    require_matrix("weight", weights)
    return weights


def dump_statistics(statistics: StoredStatistics) -> bytes:
    """Write {`gram`, `cross`, `target_gram`, `round_off`: float64, `n_samples`: int64}.

    Args:
        statistics: What to write.

    Returns:
        The same bytes for the same numbers.
    """
    return _dump(
        {
            "gram": statistics.gram,
            "cross": statistics.cross,
            "target_gram": statistics.target_gram,
            "n_samples": torch.tensor([statistics.n_samples], dtype=torch.int64),
            "round_off": torch.tensor([statistics.round_off], dtype=torch.float64),
        }
    )


def load_statistics(content: bytes) -> StoredStatistics:
    """Read statistics.

    Args:
        content: A safetensors file. `round_off` may be missing where statistics were collected
            elsewhere; then the worst case of float64 sums is taken.

    Returns:
        Statistics, on the CPU.

    Raises:
        InvalidTensorError: It is no such file, or its numbers are no data set's.
        InvalidOptionError: `n_samples` or `round_off` is out of range.
    """
    tensors = _load(
        content,
        required={"gram", "cross", "target_gram", "n_samples"},
        optional={"round_off"},
    )
    round_off = tensors.get("round_off")
    return StoredStatistics.from_arrays(
        tensors["gram"],
        tensors["cross"],
        tensors["target_gram"],
        int(_scalar("n_samples", tensors["n_samples"], torch.int64)),
        None if round_off is None else _scalar("round_off", round_off, torch.float64),
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
    tensors = _load(content, required={"x", "y"})
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


def _load(
    content: bytes, *, required: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise InvalidTensorError(f"file: not a safetensors file: {error}") from error
    found = set(tensors)
    if not required <= found <= required | optional:
        raise InvalidTensorError(f"file: expected keys {sorted(required)}, got {sorted(found)}")
    return tensors


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
