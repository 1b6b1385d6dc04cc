"""How an owner's rows become samples, bit for bit the same at training and at deletion."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import InvalidTensorError
from core.problem import SampleSet

_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Encoding:
    """How features and targets are written for one model.

    Attributes:
        num_features: Columns of the owner's X, without the constant.
        num_outputs: C.
        classes: Labels in the order of the outputs; with one output the second is the positive
            one. None where targets are numbers.
        negative: Target of every class but a row's own, whose is 1.
        constant: Whether a feature that is always 1 follows the owner's.
        shape: Of one sample where the owner has images, say, which are flattened; None: a row.
    """

    num_features: int
    num_outputs: int
    classes: tuple[Any, ...] | None = None
    negative: float = 0.0
    constant: bool = False
    shape: tuple[int, ...] | None = None

    def samples(self, features: Any, targets: Any) -> SampleSet:
        """Write rows as samples.

        Args:
            features: X, shape (n, d), or (n, *shape) where there is one: an array, a data frame, a
                tensor or a sparse matrix.
            targets: n labels where there are classes, else shape (n, C), or (n,) with one output.

        Returns:
            The samples in float64, on the device of `features`.

        Raises:
            InvalidTensorError: A shape, a label or a value does not fit.
        """
        rows = self.rows(features)
        encoded = torch.tensor(self._target_rows(targets), device=rows.device)
        return SampleSet(rows, encoded)

    def batches(self, features: Any, targets: Any, size: int = _BATCH_ROWS) -> Iterator[SampleSet]:
        """Write rows as samples, a few thousand at a time.

        Args:
            features: As for `samples`.
            targets: As for `samples`.
            size: How many at a time.

        Yields:
            All samples, each once.

        Raises:
            InvalidTensorError: As for `samples`, or X and y differ in their lengths.
        """
        rows = _sliceable(features)
        wanted = targets if isinstance(targets, Tensor) else np.asarray(targets)
        if rows.shape[0] != len(wanted):
            raise InvalidTensorError(
                f"y: expected as many rows as X has, {rows.shape[0]}, got {len(wanted)}"
            )
        if rows.shape[0] == 0:
            raise InvalidTensorError("X: has no rows")
        for start in range(0, rows.shape[0], size):
            part = slice(start, start + size)
            yield self.samples(rows[part], wanted[part])

    def rows(self, features: Any) -> Tensor:
        """Write features without targets.

        Args:
            features: As for `samples`.

        Returns:
            Shape (n, d), float64, the constant included where there is one.

        Raises:
            InvalidTensorError: A shape or a value does not fit.
        """
        rows = _dense(features)
        expected = self.shape or (self.num_features,)
        if rows.ndim > 1 and tuple(rows.shape[1:]) == expected:
            rows = rows.flatten(1)
        if rows.ndim != 2 or rows.shape[1] != self.num_features:  # noqa: PLR2004 - a matrix
            raise InvalidTensorError(
                f"X: expected shape (n, {', '.join(map(str, expected))}), as the model was fitted "
                f"on, got {tuple(rows.shape)}"
            )
        return torch.hstack([rows, rows.new_ones(len(rows), 1)]) if self.constant else rows

    def _target_rows(self, targets: Any) -> NDArray[np.float64]:
        values = targets.detach().cpu().numpy() if isinstance(targets, Tensor) else targets
        values = np.asarray(values)
        if self.classes is not None:
            return self._of_labels(values)
        if values.ndim == 1 and self.num_outputs == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != self.num_outputs:  # noqa: PLR2004 - a matrix
            raise InvalidTensorError(
                f"y: expected shape (n, {self.num_outputs}), got {values.shape}"
            )
        try:
            return np.ascontiguousarray(values, dtype=np.float64)
        except ValueError as error:
            raise InvalidTensorError(f"y: expected numbers, got {values.dtype}") from error

    def _of_labels(self, labels: NDArray[Any]) -> NDArray[np.float64]:
        classes = self.classes or ()
        if labels.ndim == 2 and labels.shape[1] == 1:  # noqa: PLR2004 - a column
            labels = labels[:, 0]
        if labels.ndim == 2 and labels.shape[1] == self.num_outputs:  # noqa: PLR2004 - rows
            return self._of_rows(labels)
        if labels.ndim != 1:
            raise InvalidTensorError(
                f"y: expected one label a row, shape (n,), got shape {labels.shape}"
            )
        of_class = labels[:, None] == np.asarray(classes)[None, :]
        known = np.broadcast_to(np.asarray(of_class), (len(labels), len(classes)))
        if not known.any(axis=1).all():
            unknown = labels[int(np.argmin(known.any(axis=1)))]
            raise InvalidTensorError(
                f"y: {str(unknown)!r} is none of the classes that the model knows: {list(classes)}"
            )
        if self.num_outputs == 1:
            known = known[:, 1:]
        return np.where(known, 1.0, self.negative)

    def _of_rows(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if not np.isin(rows, (self.negative, 1.0)).all():
            raise InvalidTensorError(
                f"y: expected labels, or rows of {self.negative:g} and 1 as they were trained on"
            )
        return np.ascontiguousarray(rows, dtype=np.float64)


def labels_of(num_outputs: int) -> tuple[int, ...]:
    """Return the labels of a model of torch: 0, 1, …, and two of them for one output.

    Args:
        num_outputs: C.

    Returns:
        As many as there are classes.

    >>> labels_of(1), labels_of(3)
    ((0, 1), (0, 1, 2))
    """
    return tuple(range(max(num_outputs, 2)))


def _sliceable(features: Any) -> Any:
    if isinstance(features, Tensor):
        return features
    # Whatever sparse format: only rows of CSR can be taken.
    return features.tocsr() if hasattr(features, "tocsr") else np.asarray(features)


def _dense(features: Any) -> Tensor:
    if isinstance(features, Tensor):
        return features.detach().to(torch.float64, copy=True)
    array = features.toarray() if hasattr(features, "toarray") else features
    try:
        # Copied: the samples must not change when the owner's array does.
        return torch.tensor(np.asarray(array, dtype=np.float64), device="cpu")
    except ValueError as error:
        raise InvalidTensorError(f"X: expected rows of numbers: {error}") from error
