"""Keyed digests of samples: they name a sample to whoever holds the key, and to nobody else.

Free of torch, so that the API, the worker and whoever trains a model compute the same digests.
"""

import hashlib
import hmac

import numpy as np
from numpy.typing import ArrayLike

from core.errors import InvalidTensorError

DIGEST_BYTES = 32
KEY_BYTES = 32

# Rows of a block: a whole training set as float64 beside its own copy would double its memory.
_BLOCK_ROWS = 4096


def of_each(features: ArrayLike, targets: ArrayLike, key: bytes) -> list[bytes]:
    """Return HMAC-SHA256 of each sample under a key (METHOD §4).

    The message is the canonical form of (x, y): their d + C numbers as float64, little endian, x
    first, with −0.0 written as 0.0. So equal samples have equal digests, whatever precision or byte
    order they were stored in; a float32 number is taken at its float64 value.

    Args:
        features: X, shape (n, d); numpy array, nested lists, or a CPU tensor.
        targets: Y, shape (n, C); one-hot rows for classes, a column of 0 and 1 for two classes.
        key: The secret, 32 bytes.

    Returns:
        n digests of 32 bytes, in the order of the samples.

    Raises:
        InvalidTensorError: Shapes do not fit, numbers are not finite, or the key is too short.

    >>> len(of_each([[1.0, 2.0]], [[1.0]], bytes(range(32))))
    1
    """
    if len(key) != KEY_BYTES:
        raise InvalidTensorError(f"key: expected {KEY_BYTES} bytes, got {len(key)}")
    x, y = np.asarray(features), np.asarray(targets)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):  # noqa: PLR2004 - matrices
        raise InvalidTensorError(
            f"features, targets: expected the shapes (n, d) and (n, C), got {x.shape} and {y.shape}"
        )
    digests: list[bytes] = []
    for start in range(0, len(x), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        # Adding 0.0 turns −0.0 into 0.0.
        rows = np.ascontiguousarray(np.hstack([x[block], y[block]]).astype("<f8") + 0.0, "<f8")
        if not np.isfinite(rows).all():
            raise InvalidTensorError("features, targets: contain NaN or infinite values")
        digests += [hmac.digest(key, row.tobytes(), hashlib.sha256) for row in rows]
    return digests
