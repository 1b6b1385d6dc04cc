r"""Gaussian noise from a secret key: for releases and for training objectives (METHOD §5).

Free of torch, so that the API can use it too. The noise is a function of the key, so that the same
release can be computed again by whoever holds the key, and by nobody else: the key must come from
the operating system's generator, stay secret as long as what is released counts, and never be
recorded beside the result, as a seed would be.

**What float64 does to the proof.** The (ε, δ) of the Gaussian mechanism is proved for real numbers.
Here u₁ and u₂ have 53 bits, so tails end at 8.6σ (a normal variable goes there with probability
1e-17), logarithm, square root and cosine round, and the sum w + z is a float64 whose last bits
depend on w: Mironov (*On significance of the least significant bits for differential privacy*, CCS
2012) tells two inputs apart from exactly these bits. `perturbed` therefore rounds every entry to a
grid of about σ·2⁻²⁴, on which a cell holds some 2²⁸ values of z or more within a few σ of w. This
removes the bits that the attack reads; it does not make the proof one about float64, so a statement
of (ε, δ) has to name the approximation as assumed. Timing is not constant either.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidOptionError, InvalidTensorError

KEY_BYTES = 32

_RELEASE = b"lethe/noise/release/v1"
_OBJECTIVE = b"lethe/noise/objective/v1"

_MANTISSA_BITS = 53
# Cells of the grid a standard deviation, as a power of two.
_GRID_BITS = 24


def gaussian(
    key: bytes, shape: tuple[int, ...], sigma: float, *, context: bytes = b""
) -> NDArray[np.float64]:
    """Draw independent N(0, σ²) entries from a key.

    The stream is SHAKE-256(key ‖ purpose ‖ shape ‖ context), each part preceded by its length; 16
    bytes give one entry by the cosine half of Box and Muller, √(−2 ln u₁)·cos(2πu₂) with u₁ in
    (0, 1] and u₂ in [0, 1). For its limits in float64 see the module.

    Args:
        key: 32 secret bytes. The same key, shape and context give the same noise: two releases
            with one noise reveal their exact difference, so give each a context of its own.
        shape: Of the result.
        sigma: σ, positive.
        context: What the noise is for, public or not.

    Returns:
        Shape `shape`, float64. The same bits on any machine whose numpy rounds log, sqrt and cos
        alike.

    Raises:
        InvalidOptionError: The key has another length, or `sigma` or `shape` is out of range.
    """
    return _draw(key, _RELEASE, shape, sigma, context)


def objective_noise(key: bytes, shape: tuple[int, ...], sigma: float) -> NDArray[np.float64]:
    """Draw b of the perturbed training objective L(W; D) + Σ_c b_cᵀw_c.

    Args:
        key: 32 secret bytes; b stays a secret of the model as long as the model is in use.
        shape: (d, C).
        sigma: σ, positive.

    Returns:
        Shape `shape`, float64; independent of what `gaussian` draws from the same key.

    Raises:
        InvalidOptionError: The key has another length, or `sigma` or `shape` is out of range.
    """
    return _draw(key, _OBJECTIVE, shape, sigma, b"")


def least_sigma(weights: NDArray[np.float64]) -> float:
    """Return the least σ that the rounding of a release does not absorb.

    A release is rounded to a grid of σ·2⁻²⁴, and float64 has to hold w + z on it; the grid itself
    has to be a normal number, with room for quotients by it.

    Args:
        weights: W, any shape, float64.

    Returns:
        2⁻²⁸·max|W|, or 2⁻⁹⁰⁰ if that is larger.

    >>> least_sigma(np.ones(2)) == 2.0**-28
    True
    """
    return max(2.0**-28 * float(np.abs(weights).max(initial=0.0)), 2.0**-900)


def perturbed(weights: NDArray[np.float64], sigma: float, key: bytes) -> NDArray[np.float64]:
    """Return what output perturbation releases: weights with noise, on a grid.

    The context of the noise is a digest of the weights: with a secret key, other weights get noise
    independent of these weights' noise, so that a key that is used twice by mistake does not
    reveal a difference; the same weights get the same release.

    Args:
        weights: W, any shape, float64.
        sigma: σ of each entry, positive.
        key: 32 secret bytes, best fresh for every release.

    Returns:
        W + N(0, σ²I), each entry rounded to a multiple of the largest power of two that is at most
        σ·2⁻²⁴; a new array.

    Raises:
        InvalidOptionError: The key has another length, or `sigma` is out of range or so small
            beside the weights that they would absorb it.
        InvalidTensorError: The weights are not float64, or not finite.
    """
    if weights.dtype != np.float64:
        raise InvalidTensorError(f"weights: expected float64, got {weights.dtype}")
    if not bool(np.isfinite(weights).all()):
        raise InvalidTensorError("weights: contains NaN or infinite values")
    if sigma < (least := least_sigma(weights)):
        raise InvalidOptionError(
            f"sigma: {sigma:.3g} vanishes in the rounding of these weights; declare at least "
            f"{least:.3g}"
        )
    # Little-endian and row by row, whatever machine and memory layout they come from; −0 is 0.
    content = np.ascontiguousarray(weights + 0.0, dtype="<f8").tobytes()
    context = hashlib.sha256(content).digest()
    noisy = weights + gaussian(key, weights.shape, sigma, context=context)
    grid = 2.0 ** (math.frexp(sigma)[1] - 1 - _GRID_BITS)
    return np.asarray(np.round(noisy / grid) * grid)


def _draw(
    key: bytes, purpose: bytes, shape: tuple[int, ...], sigma: float, context: bytes
) -> NDArray[np.float64]:
    if len(key) != KEY_BYTES:
        raise InvalidOptionError(
            f"noise_key: expected {KEY_BYTES} secret bytes, got {len(key)}; take them from "
            "secrets.token_bytes"
        )
    if not 0 < sigma < math.inf:
        raise InvalidOptionError(f"sigma: expected a positive number, got {sigma}")
    if any(size < 0 for size in shape):
        raise InvalidOptionError(f"shape: expected sizes >= 0, got {shape}")
    count = math.prod(shape)
    words = np.frombuffer(_stream(key, purpose, shape, context, 16 * count), dtype="<u8")
    # The upper 53 bits: exact in float64.
    whole = (words >> np.uint64(64 - _MANTISSA_BITS)).astype(np.float64)
    first = (whole[:count] + 1.0) * 2.0**-_MANTISSA_BITS  # never 0, whose logarithm is infinite
    angle = whole[count:] * (2.0 * math.pi * 2.0**-_MANTISSA_BITS)
    entries = sigma * np.sqrt(-2.0 * np.log(first)) * np.cos(angle)
    return np.asarray(entries.reshape(shape))


def _stream(
    key: bytes, purpose: bytes, shape: tuple[int, ...], context: bytes, length: int
) -> bytes:
    sizes = b"".join(size.to_bytes(8, "big") for size in shape)
    hashed = hashlib.shake_256()
    # Lengths first: otherwise the end of one part could be read as the beginning of the next.
    for part in (key, purpose, sizes, context):
        hashed.update(len(part).to_bytes(8, "big"))
        hashed.update(part)
    return hashed.digest(length)
