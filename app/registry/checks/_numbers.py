"""What all checks of statistics share: shapes, symmetry, semidefiniteness, counts, anchors."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.schemas import Manifest
from app.registry.tensors import F32, F64, I64, AnyArray, Array
from core.rounding import LARGEST_RELATIVE_ROUND_OFF, gamma
from core.vocabulary import RidgeConvention

Shape = tuple[int | None, ...]

_TRACE_SLACK = 1e-9


def read(
    content: bytes,
    shapes: Mapping[str, Shape],
    *,
    optional: AbstractSet[str],
    counts: AbstractSet[str],
    singles: AbstractSet[str] = frozenset(),
) -> dict[str, AnyArray]:
    """Return a statistics file's tensors: exactly these keys and shapes.

    Those named by `counts` are int64, by `singles` float32, all others float64.
    """
    dtypes = dict.fromkeys(shapes, (F64,))
    dtypes |= dict.fromkeys(counts, (I64,)) | dict.fromkeys(singles, (F32,))
    found = tensors.read(content, field="statistics", expected=dtypes, optional=optional)
    for key, tensor in found.items():
        tensors.require_shape(tensor, shapes[key], field=f"statistics.{key}")
        tensors.require_finite(tensor, field=f"statistics.{key}")
    return found


def require_finite_trace(trace: float, formula: str) -> None:
    """Check that sums of squares did not overflow."""
    if not np.isfinite(trace):
        raise InvalidInputError(
            f"statistics: the trace of {formula} is {trace}",
            field="statistics",
            remedy="Scale the features and targets: the sums of their squares have to be finite.",
        )


def ridge_shift(manifest: Manifest) -> float:
    """Return what the ridge adds to every eigenvalue of the training Hessian, sum form."""
    if manifest.ridge.convention is RidgeConvention.PER_SAMPLE:
        return manifest.ridge.strength * manifest.n_samples
    return manifest.ridge.strength


def require_count(n_samples: int, manifest: Manifest) -> None:
    """Check that they are of the whole training set."""
    if n_samples != manifest.n_samples:
        raise InvalidInputError(
            f"statistics.n_samples: {n_samples}, but by the manifest it is {manifest.n_samples}",
            field="statistics.n_samples",
            remedy="Collect the statistics over the whole training set, and nothing else; the Gram"
            " matrix of a network is of C rows a sample.",
        )


def require_round_off(name: str, value: float, size: float) -> None:
    """Check a declared round-off: one that is too large would switch off the membership test."""
    largest = LARGEST_RELATIVE_ROUND_OFF * size
    if not 0 <= value <= largest:
        raise InvalidInputError(
            f"statistics.{name}: expected a bound between 0 and {largest:.3g}, which is"
            f" {LARGEST_RELATIVE_ROUND_OFF} of the size of what was summed, got {value:.6g}",
            field=f"statistics.{name}",
            remedy="Collect in float64, and let `core.statistics` compute it, or leave it out.",
        )


def require_symmetric(name: str, matrix: Array, n_samples: int) -> None:
    """Check that a matrix of sums of products is one."""
    skew = float(np.abs(matrix - matrix.T).max())
    # Each entry is a sum of n products with Σ|x_i x_j| ≤ the largest diagonal entry.
    if skew > 2 * gamma(n_samples) * float(np.abs(np.diagonal(matrix)).max()):
        raise InvalidInputError(
            f"statistics.{name}: not symmetric, entries differ by up to {skew:.6g}",
            field=f"statistics.{name}",
            remedy="Compute it as the transposed matrix times the matrix, in float64.",
        )


def require_norms(gram: Array, manifest: Manifest) -> None:
    """Check Σ‖x‖² ≤ n·R_x²."""
    trace = float(np.trace(gram))
    bound = manifest.n_samples * manifest.feature_norm_bound**2
    if trace > bound * (1 + _TRACE_SLACK):
        raise InvalidInputError(
            f"statistics.gram: its trace {trace:.6g} = Σ‖x‖² is above n·R_x² = {bound:.6g}",
            field="statistics.gram",
            remedy="Declare the feature_norm_bound that the training features satisfy.",
        )


def has_no_eigenvalue_below(matrix: Array, tolerance: float) -> bool:
    """Tell whether λ_min(M) ≥ −tolerance, to the rounding of the factorisation itself."""
    padded = matrix.copy()
    # All-zero statistics are those of all-zero samples; any positive shift lets them pass.
    padded[np.diag_indices(len(padded))] += tolerance or np.finfo(np.float64).tiny
    try:
        np.linalg.cholesky(padded)
    except np.linalg.LinAlgError:
        return False
    return True


def require_anchor(anchor: Array, weights: Array) -> None:
    """Check that statistics were collected at the very weights that are registered."""
    # As bits, so that not even −0.0 passes for 0.0: the digest of the weights is of bits, too.
    differs = anchor.view(np.int64) != weights.view(np.int64)
    if differs.any():
        place = tuple(int(index) for index in np.argwhere(differs)[0])
        raise InvalidInputError(
            f"statistics.anchor: {anchor[place]!r} at index {list(place)}, where the weights have"
            f" {weights[place]!r}; they have to agree bit for bit",
            field="statistics.anchor",
            remedy="Collect the statistics at the very weights that you register.",
        )


def norm_at_anchor(
    name: str,
    gradient: Array,
    weights: Array,
    manifest: Manifest,
    *,
    uncertainty: float,
    scale: tuple[str, float],
    remedy: str,
) -> float:
    """Return a bound on ‖∇L(W; D)‖_F = ‖gradient + shift·W‖_F, in sum form.

    Its own rounding, two operations an entry, is added.

    Args:
        name: The tensor, for messages.
        gradient: Without the ridge.
        weights: W.
        manifest: Its ridge and its tolerance.
        uncertainty: Bound on how far `gradient` is from that of the samples.
        scale: In words and numbers, what the tolerance is relative to.
        remedy: What helps where it is exceeded.

    Raises:
        InvalidInputError: The gradient is beyond the tolerance.
    """
    shift = ridge_shift(manifest)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(gradient + shift * weights))
        terms = np.abs(gradient) + shift * np.abs(weights)
        rounding = gamma(3) * float(np.linalg.norm(terms)) + uncertainty
    words, size = scale
    # `inf <= inf` would let figures pass that say nothing any more.
    if not np.isfinite(norm + rounding) or not norm <= manifest.training_gradient_tolerance * size:
        raise InvalidInputError(
            f"statistics.{name}: the weights are no optimum: ‖∇L(W; D)‖_F = {norm:.6g} with"
            f" {words} = {size:.6g}, above the training_gradient_tolerance"
            f" {manifest.training_gradient_tolerance:.6g}",
            field=f"statistics.{name}",
            remedy=remedy,
        )
    return norm + rounding
