"""Samples of clients: parsed, checked against the manifest, and made canonical.

Samples of a network may come in their own shape, images say; flattened they are like any others.
"""

from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.schemas import Manifest
from app.registry.tensors import F32, F64, I64, AnyArray, Array
from core.vocabulary import Loss, Task

# Norms are computed with rounding: a sample at the bound itself has to pass.
_NORM_SLACK = 1e-9

# 256 MiB. Labels grow to one-hot rows: 64 MiB of them could ask for more memory than there is.
MAX_NUMBERS = 2**25


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Canonical samples: float64, −0.0 written as 0.0, class labels as one-hot rows.

    Attributes:
        features: X, shape (n, d); of a network, its inputs or features flattened.
        targets: Y, shape (n, C).
    """

    features: Array
    targets: Array

    def __len__(self) -> int:
        return len(self.features)


def from_file(content: bytes, manifest: Manifest, *, field: str) -> Samples:
    """Parse a safetensors file with `x` (n, d) and `y`: labels (n,) int64, or targets (n, C).

    Of a network `x` has the shape (n, ...) of its samples, or is flattened.

    Raises:
        InvalidInputError: It is something else.
    """
    found = tensors.read(content, field=field, expected={"x": (F64, F32), "y": (F64, F32, I64)})
    return from_arrays(found["x"], found["y"], manifest, field=field)


def from_lists(
    x: list[list[float]], y: list[int] | list[list[float]], manifest: Manifest, *, field: str
) -> Samples:
    """Build samples from what JSON holds.

    Raises:
        InvalidInputError: Rows differ in length, or the samples do not fit the manifest.
    """
    dtype = np.int64 if y and isinstance(y[0], int) else np.float64
    features = _matrix(x, f"{field}.x")
    targets = np.array(y, dtype) if dtype is np.int64 else _matrix(y, f"{field}.y")  # type: ignore[arg-type]  # rows, since the first is no label
    return from_arrays(features, targets, manifest, field=field)


def from_arrays(x: AnyArray, y: AnyArray, manifest: Manifest, *, field: str) -> Samples:
    """Check arrays against the manifest's d, C and task, and make them canonical.

    Raises:
        InvalidInputError: They are empty, not finite, of another shape, too many, out of range, or
            no valid targets.
    """
    features = _features(x, manifest, f"{field}.x")
    targets = _targets(y, len(x), manifest, f"{field}.y")
    return Samples(features, targets + 0.0)


def read_surrogate(content: bytes, manifest: Manifest) -> Array:
    """Parse a safetensors file with `x` (n_S, d): features that stand in for the training set's.

    Raises:
        InvalidInputError: It is something else, or a row is longer than R_x.
    """
    found = tensors.read(content, field="surrogate", expected={"x": (F64, F32)})
    features = _features(found["x"], manifest, "surrogate.x")
    require_norms(features, manifest, field="surrogate")
    return features


def require_norms(features: Array, manifest: Manifest, *, field: str) -> None:
    """Check ‖x‖₂ ≤ R_x, which every bound on what a deletion leaves behind rests on.

    Of a network the bound is on J(x), which only the worker can compute and holds against it.

    Raises:
        InvalidInputError: A sample is longer; the message says which.
    """
    if manifest.network is not None:
        return
    # hypot-style scaling: squares of huge values must not overflow into a wrong answer.
    largest = np.abs(features).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    norms = scale[:, 0] * np.linalg.norm(features / scale, axis=1)
    row = int(norms.argmax())
    if norms[row] > manifest.feature_norm_bound * (1 + _NORM_SLACK):
        raise InvalidInputError(
            f"{field}.x: row {row} has the norm {norms[row]:.6g}, above the declared"
            f" feature_norm_bound {manifest.feature_norm_bound:.6g}",
            field=f"{field}.x",
            remedy="A sample of the training set satisfies the bound: scale its features as in"
            " training.",
        )


def require_fewer(count: int, n_samples: int, *, field: str) -> None:
    """Check n_f < n: what is left has to be a training set.

    Raises:
        InvalidInputError: Nothing would remain.
    """
    if count >= n_samples:
        raise InvalidInputError(
            f"{field}: {count} samples to forget, but the model has {n_samples}; nothing would"
            " remain",
            field=field,
            remedy="Retire the model instead, or send the samples that it was trained on.",
        )


def to_bytes(samples: Samples) -> bytes:
    """Return the canonical file of samples."""
    return tensors.write({"x": samples.features, "y": samples.targets})


def from_bytes(content: bytes) -> Samples:
    """Return samples from their canonical file."""
    found = tensors.read(content, field="samples", expected={"x": (F64,), "y": (F64,)})
    return Samples(found["x"].astype(np.float64), found["y"].astype(np.float64))


def _matrix(rows: list[list[float]], field: str) -> Array:
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise InvalidInputError(
            f"{field}: rows of {min(lengths)} to {max(lengths)} numbers",
            field=field,
            remedy="Give every row the same length.",
        )
    return np.array(rows, np.float64).reshape(len(rows), *lengths)


def _features(x: AnyArray, manifest: Manifest, field: str) -> Array:
    if x.ndim > 0 and len(x) == 0:
        raise InvalidInputError(f"{field}: is empty", field=field, remedy="Send at least one row.")
    rows = _flattened(x, manifest, field)
    width = manifest.sample_width + manifest.num_outputs
    if len(rows) * width > MAX_NUMBERS:
        raise InvalidInputError(
            f"{field}: {len(rows)} samples of {width} features and targets are"
            f" {len(rows) * width} numbers, at most {MAX_NUMBERS} are taken",
            field=field,
            remedy="Send fewer samples a request.",
        )
    tensors.require_finite(rows, field=field)
    _require_range(rows, manifest, field)
    # Adding 0.0 turns −0.0 into 0.0: equal samples get equal digests.
    return rows.astype(np.float64) + 0.0


def _flattened(x: AnyArray, manifest: Manifest, field: str) -> AnyArray:
    shape = manifest.sample_shape
    rows = x.reshape(len(x), -1) if x.ndim > 0 and x.shape[1:] == shape else x
    if manifest.network is None:
        tensors.require_shape(rows, (None, *shape), field=field)
    else:
        remedy = f"Of this network a sample has the shape {shape}, as it is or flattened."
        tensors.require_shape(rows, (None, manifest.sample_width), field=field, remedy=remedy)
    return rows


def _require_range(rows: AnyArray, manifest: Manifest, field: str) -> None:
    """Check that inputs of a network are what it is fed with: scaled, say, as in training."""
    if manifest.network is None or manifest.network.input_range is None:
        return
    least, most = manifest.network.input_range
    outside = (rows < least) | (rows > most)
    if outside.any():
        row, column = (int(index) for index in np.argwhere(outside)[0])
        raise InvalidInputError(
            f"{field}: row {row} has the value {rows[row, column]:.6g}, outside the declared"
            f" input_range {least:.6g} to {most:.6g}",
            field=field,
            remedy="Scale the inputs as in training.",
        )


def _targets(y: AnyArray, count: int, manifest: Manifest, field: str) -> Array:
    if y.ndim == 1 and y.dtype == np.int64:
        return _one_hot(y, count, manifest, field)
    tensors.require_shape(y, (count, manifest.num_outputs), field=field)
    tensors.require_finite(y, field=field)
    targets = y.astype(np.float64)
    if manifest.task is Task.CLASSIFICATION:
        (_require_binary if _is_binary(manifest) else _require_one_hot)(targets, field)
    return targets


def _is_binary(manifest: Manifest) -> bool:
    """Tell whether one output stands for two classes, 0 and 1."""
    return manifest.loss is Loss.LOGISTIC and manifest.num_outputs == 1


def _one_hot(labels: AnyArray, count: int, manifest: Manifest, field: str) -> Array:
    if manifest.task is not Task.CLASSIFICATION:
        raise InvalidInputError(
            f"{field}: got integer labels, but the model's task is {manifest.task}",
            field=field,
            remedy="Send a float matrix of targets, one row a sample.",
        )
    tensors.require_shape(labels, (count,), field=field)
    classes = 2 if _is_binary(manifest) else manifest.num_outputs
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        row = int(outside[0])
        raise InvalidInputError(
            f"{field}: label {labels[row]} in row {row} is outside 0 to {classes - 1}",
            field=field,
            remedy="Number the classes as in training.",
        )
    if _is_binary(manifest):
        return labels[:, None].astype(np.float64)
    targets = np.zeros((count, manifest.num_outputs))
    targets[np.arange(count), labels.astype(np.intp)] = 1.0
    return targets


def _require_binary(targets: Array, field: str) -> None:
    is_binary = np.isin(targets, (0.0, 1.0)).all(axis=1)
    if not is_binary.all():
        row = int(np.argmin(is_binary))
        raise InvalidInputError(
            f"{field}: row {row} is {targets[row].tolist()}, neither 0 nor 1",
            field=field,
            remedy="Send integer labels 0 and 1, or a column of them.",
        )


def _require_one_hot(targets: Array, field: str) -> None:
    is_one_hot = np.isin(targets, (0.0, 1.0)).all(axis=1) & (targets.sum(axis=1) == 1.0)
    if not is_one_hot.all():
        row = int(np.argmin(is_one_hot))
        raise InvalidInputError(
            f"{field}: row {row} is not one-hot",
            field=field,
            remedy="Send integer labels, or rows with a single 1 and zeros.",
        )
