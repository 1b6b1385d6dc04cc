"""Random directions that a sketch is taken along, as a function of a seed; free of torch.

A sketch is of use only with the directions it was taken along, years and machines later. numpy
promises the bits of its bit generators for ever (NEP 19), not what its distributions make of them,
so that the normal law is made here; logarithm and cosine may differ in their last bit from one
machine to another, which a sketch, rounded in float64 itself, does not notice.
"""

import math

import numpy as np
from numpy.typing import NDArray

# Of a few probes, a large deviation would be all that a bound could say.
FEWEST_ERROR_PROBES = 10
# Seeds are stored and shown as JSON, where integers beyond 2^53 are not exact.
SEED_LIMIT = 2**53

_MANTISSA_BITS = 53
_WORD_BITS = 64
_BYTES = np.arange(256, dtype=np.uint8)[:, None]
_SIGNS_OF_BYTES = np.unpackbits(_BYTES, axis=1) * 2.0 - 1.0
# Purposes draw from streams of their own: the bound of a sketch rests on directions that nothing
# else has seen.
_SIGNS, _GAUSSIAN = 1, 2


def sign_rows(seed: int, start: int, count: int, width: int) -> NDArray[np.float64]:
    """Draw independent random signs: directions that span an estimate need no normal law.

    Args:
        seed: 0 <= seed < 2^64; whoever knows it knows the directions.
        start: Number of the first row.
        count: How many rows.
        width: D.

    Returns:
        Shape (count, width), float64, entries ±1.

    >>> bool((sign_rows(7, 0, 3, 5)[2] == sign_rows(7, 2, 1, 5)[0]).all())
    True
    """
    size = -(-width // _WORD_BITS)
    rows, signs = np.empty((count, width)), np.empty((size * _WORD_BITS // 8, 8))
    for index in range(count):
        words = _stream(seed, _SIGNS, start + index).random_raw(size)
        # Little-endian, so that every machine sees the same bits. No byte is out of range, and to
        # look for one would take nine tenths of the time.
        found = words.astype("<u8").view(np.uint8)
        np.take(_SIGNS_OF_BYTES, found, axis=0, mode="clip", out=signs)
        rows[index] = signs.reshape(-1)[:width]
    return rows


def gaussian_rows(seed: int, start: int, count: int, width: int) -> NDArray[np.float64]:
    """Draw independent N(0, 1) entries, each row from a stream of its own (Philox 4x64).

    Box and Muller: √(−2 ln u₁)·cos(2πu₂) and ·sin(2πu₂), u₁ in (0, 1] and u₂ in [0, 1), 53 bits
    each.

    Args:
        seed: 0 <= seed < 2^64; whoever knows it knows the directions.
        start: Number of the first row.
        count: How many rows.
        width: D.

    Returns:
        Shape (count, width), float64.

    >>> bool((gaussian_rows(7, 0, 3, 5)[2] == gaussian_rows(7, 2, 1, 5)[0]).all())
    True
    """
    half = -(-width // 2)
    rows = np.empty((count, 2 * half))
    for index in range(count):
        words = _stream(seed, _GAUSSIAN, start + index).random_raw(2 * half)
        words >>= np.uint64(_WORD_BITS - _MANTISSA_BITS)
        whole = words.astype(np.float64) * 2.0**-_MANTISSA_BITS
        radius = np.sqrt(-2.0 * np.log(whole[:half] + 2.0**-_MANTISSA_BITS))
        angle = whole[half:] * (2.0 * math.pi)
        np.multiply(radius, np.cos(angle), out=rows[index, :half])
        np.multiply(radius, np.sin(angle), out=rows[index, half:])
    return rows[:, :width]


def _stream(seed: int, purpose: int, row: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, (purpose << 32) + row], np.uint64))
