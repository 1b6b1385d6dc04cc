"""Safetensors files of clients, read with numpy: exact keys and dtypes, finite values, no code."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from app.errors import InvalidInputError

Array = NDArray[np.float64]
AnyArray = NDArray[np.float64 | np.float32 | np.int64 | np.uint8]

Stored = Mapping[str, Any]  # a tensor as the file has it

F64, F32, I64, U8 = "F64", "F32", "I64", "U8"
_DTYPES = {F64: "<f8", F32: "<f4", I64: "<i8", U8: "u1"}


def read(
    content: bytes,
    *,
    field: str,
    expected: Mapping[str, tuple[str, ...]],
    optional: AbstractSet[str] = frozenset(),
) -> dict[str, AnyArray]:
    """Return the tensors of a file that has exactly the expected keys, each with an allowed dtype.

    Args:
        content: The file.
        field: What messages call it.
        expected: Allowed dtypes by key, in safetensors' names.
        optional: Those of the keys that may be missing.

    Raises:
        InvalidInputError: It is no safetensors file, or another one.
    """
    stored = parse(content, field=field)
    if stored.keys() - expected.keys() or expected.keys() - stored.keys() - optional:
        raise InvalidInputError(
            f"{field}: expected the keys {sorted(expected)}, got {sorted(stored)}",
            field=field,
            remedy=f"Store exactly the tensors {sorted(expected.keys() - optional)}"
            + (f", optionally {sorted(optional)}." if optional else "."),
        )
    return arrays(stored, expected, field=field)


def parse(content: bytes, *, field: str) -> dict[str, Stored]:
    """Return the tensors of a file as they are stored: `dtype`, `shape` and `data` of each.

    Raises:
        InvalidInputError: It is no safetensors file.
    """
    try:
        return dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise InvalidInputError(
            f"{field}: not a safetensors file: {error}",
            field=field,
            remedy="Write it with `safetensors.numpy.save` or `safetensors.torch.save`.",
        ) from error


def arrays(
    stored: Mapping[str, Stored], expected: Mapping[str, tuple[str, ...]], *, field: str
) -> dict[str, AnyArray]:
    """Return parsed tensors as arrays, each of one of the dtypes that are expected of it.

    Raises:
        InvalidInputError: One has another dtype.
    """
    for key, tensor in stored.items():
        allowed = expected[key]
        if (dtype := tensor["dtype"]) not in allowed:
            raise InvalidInputError(
                f"{field}.{key}: expected the dtype {' or '.join(allowed)}, got {dtype}",
                field=f"{field}.{key}",
                remedy=f"Convert it to {allowed[0]} before saving.",
            )
    return {key: _as_array(tensor, f"{field}.{key}") for key, tensor in stored.items()}


def require_shape(
    array: AnyArray,
    shape: tuple[int | None, ...],
    *,
    field: str,
    remedy: str = "The manifest's num_features and num_outputs say d and C.",
) -> None:
    """Check an array's shape; None stands for any length.

    Raises:
        InvalidInputError: It has another shape.
    """
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        expected = tuple("n" if length is None else length for length in shape)
        raise InvalidInputError(
            f"{field}: expected the shape {expected}, got {array.shape}".replace("'", ""),
            field=field,
            remedy=remedy,
        )


def require_finite(array: AnyArray, *, field: str) -> None:
    """Check that an array has neither NaN nor infinite values.

    Raises:
        InvalidInputError: It has; the message says where the first one is.
    """
    finite = np.isfinite(array)
    if not finite.all():
        place = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise InvalidInputError(
            f"{field}: found {array[place]} at index {list(place)}",
            field=field,
            remedy="Send finite numbers only.",
        )


def write(tensors: Mapping[str, AnyArray]) -> bytes:
    """Return the canonical bytes of tensors: the same tensors always give the same file."""
    return safetensors.numpy.save({key: np.ascontiguousarray(tensors[key]) for key in tensors})


def _as_array(stored: Mapping[str, Any], field: str) -> AnyArray:
    shape = tuple(stored["shape"])
    try:
        return np.ndarray(shape, _DTYPES[stored["dtype"]], buffer=stored["data"])
    except (ValueError, OverflowError) as error:
        # More axes than numpy knows; or no element at all, but another axis beyond its integers.
        raise InvalidInputError(
            f"{field}: no array has the shape {shape}",
            field=field,
            remedy="Write it with `safetensors.numpy.save` or `safetensors.torch.save`.",
        ) from error
