"""Whether weights and stored statistics can belong together; numpy only (METHOD §4)."""

from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.schemas import Manifest
from app.registry.tensors import F64, I64, AnyArray, Array
from core.rounding import LARGEST_RELATIVE_ROUND_OFF, gamma
from core.vocabulary import RidgeConvention, Task

_TRACE_SLACK = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Stored statistics: G = XᵀX (d, d), B = XᵀY (d, C), YᵀY (C, C) and n.

    `round_off` bounds the rounding errors in them, if whoever collected them kept count.
    """

    gram: Array
    cross: Array
    target_gram: Array
    n_samples: int
    round_off: float | None = None

    def to_bytes(self) -> bytes:
        """Return the canonical file."""
        stored: dict[str, AnyArray] = {
            "gram": self.gram,
            "cross": self.cross,
            "target_gram": self.target_gram,
            "n_samples": np.array([self.n_samples], np.int64),
        }
        if self.round_off is not None:
            stored["round_off"] = np.array([self.round_off], np.float64)
        return tensors.write(stored)


def read_weights(content: bytes, manifest: Manifest) -> Array:
    """Return W, shape (d, C).

    Raises:
        InvalidInputError: The file is something else.
    """
    weight = tensors.read(content, field="weights", expected={"weight": (F64,)})["weight"]
    shape = (manifest.num_features, manifest.num_outputs)
    tensors.require_shape(weight, shape, field="weights.weight")
    tensors.require_finite(weight, field="weights.weight")
    return weight.astype(np.float64)


def read_statistics(content: bytes, manifest: Manifest) -> Statistics:
    """Return statistics that some training set of the manifest's can have.

    Raises:
        InvalidInputError: No such set has them; the message names the figure.
    """
    d, num_outputs = manifest.num_features, manifest.num_outputs
    shapes: dict[str, tuple[int | None, ...]] = {
        "gram": (d, d),
        "cross": (d, num_outputs),
        "target_gram": (num_outputs, num_outputs),
        "n_samples": (1,),
        "round_off": (1,),
    }
    found = tensors.read(
        content,
        field="statistics",
        expected={key: (I64,) if key == "n_samples" else (F64,) for key in shapes},
        optional={"round_off"},
    )
    for key, tensor in found.items():
        tensors.require_shape(tensor, shapes[key], field=f"statistics.{key}")
        tensors.require_finite(tensor, field=f"statistics.{key}")
    statistics = Statistics(
        gram=found["gram"].astype(np.float64),
        cross=found["cross"].astype(np.float64),
        target_gram=found["target_gram"].astype(np.float64),
        n_samples=int(found["n_samples"][0]),
        round_off=float(found["round_off"][0]) if "round_off" in found else None,
    )
    _require_no_overflow(statistics)
    _require_round_off(statistics)
    _require_count(statistics, manifest)
    _require_symmetric(statistics)
    _require_bounded(statistics, manifest)
    _require_semidefinite(statistics)
    return statistics


def training_gradient_norm(weights: Array, statistics: Statistics, manifest: Manifest) -> float:
    """Return a bound on ‖∇L(W; D)‖_F = ‖HW − B‖_F (sum form), computed from the statistics.

    Its own rounding is added: at most γ_{d+3}(|G||W| + s|W| + |B|), as in `core.statistics`.

    Raises:
        InvalidInputError: It is beyond the manifest's tolerance: the statistics are those of
            another training set, ridge or feature order than the weights.
    """
    shift = manifest.ridge.strength
    if manifest.ridge.convention is RidgeConvention.PER_SAMPLE:
        shift *= statistics.n_samples
    with np.errstate(over="ignore", invalid="ignore"):
        gradient = statistics.gram @ weights + shift * weights - statistics.cross
        norm = float(np.linalg.norm(gradient))
        scale = float(np.linalg.norm(statistics.cross))
        magnitude = np.abs(weights)
        terms = np.abs(statistics.gram) @ magnitude + shift * magnitude + np.abs(statistics.cross)
        rounding = gamma(manifest.num_features + 3) * float(np.linalg.norm(terms))
    # `inf <= inf` would let figures pass that say nothing any more.
    if not np.isfinite(norm + rounding) or not norm <= manifest.training_gradient_tolerance * scale:
        raise InvalidInputError(
            f"statistics: the weights are no optimum of them: ‖HW − B‖_F = {norm:.6g} with"
            f" ‖B‖_F = {scale:.6g}, above the training_gradient_tolerance"
            f" {manifest.training_gradient_tolerance:.6g}",
            field="statistics",
            remedy="Send the statistics of the training set of these weights, check the ridge"
            " convention and strength, train to convergence, or declare a larger tolerance.",
        )
    return norm + rounding


def _require_round_off(statistics: Statistics) -> None:
    """Check a declared round-off: one that is too large would switch off the membership test."""
    if statistics.round_off is None:
        return
    largest = LARGEST_RELATIVE_ROUND_OFF * _trace(statistics)
    if not 0 <= statistics.round_off <= largest:
        raise InvalidInputError(
            f"statistics.round_off: expected a bound between 0 and {largest:.3g}, which is"
            f" {LARGEST_RELATIVE_ROUND_OFF} of the trace, got {statistics.round_off:.6g}",
            field="statistics.round_off",
            remedy="Collect in float64, and let `core.statistics.collect` compute it, or leave it"
            " out.",
        )


def _require_no_overflow(statistics: Statistics) -> None:
    trace = _trace(statistics)
    if not np.isfinite(trace):
        raise InvalidInputError(
            f"statistics: the trace of [X Y]ᵀ[X Y] = Σ‖x‖² + Σ‖y‖² is {trace}",
            field="statistics",
            remedy="Scale the features and targets: the sums of their squares have to be finite.",
        )


def _require_count(statistics: Statistics, manifest: Manifest) -> None:
    if statistics.n_samples != manifest.n_samples:
        raise InvalidInputError(
            f"statistics.n_samples: {statistics.n_samples}, but the manifest says"
            f" {manifest.n_samples}",
            field="statistics.n_samples",
            remedy="Collect the statistics over the whole training set, and nothing else.",
        )


def _require_symmetric(statistics: Statistics) -> None:
    for name, matrix in (("gram", statistics.gram), ("target_gram", statistics.target_gram)):
        skew = float(np.abs(matrix - matrix.T).max())
        # Each entry is a sum of n products with Σ|x_i x_j| ≤ the largest diagonal entry.
        if skew > 2 * gamma(statistics.n_samples) * float(np.abs(np.diagonal(matrix)).max()):
            raise InvalidInputError(
                f"statistics.{name}: not symmetric, entries differ by up to {skew:.6g}",
                field=f"statistics.{name}",
                remedy="Compute it as the transposed matrix times the matrix, in float64.",
            )


def _require_bounded(statistics: Statistics, manifest: Manifest) -> None:
    trace = float(np.trace(statistics.gram))
    bound = statistics.n_samples * manifest.feature_norm_bound**2
    if trace > bound * (1 + _TRACE_SLACK):
        raise InvalidInputError(
            f"statistics.gram: its trace {trace:.6g} = Σ‖x‖² is above n·R_x² = {bound:.6g}",
            field="statistics.gram",
            remedy="Declare the feature_norm_bound that the training features satisfy.",
        )
    # One-hot rows: no two classes at once, and one class a sample.
    counts = np.diagonal(statistics.target_gram)
    is_one_hot = np.array_equal(statistics.target_gram, np.diag(counts)) and (
        counts.sum() == statistics.n_samples
    )
    if manifest.task is Task.CLASSIFICATION and not is_one_hot:
        raise InvalidInputError(
            "statistics.target_gram: one-hot targets give the diagonal matrix of class counts"
            f" with the sum {statistics.n_samples}, got another matrix",
            field="statistics.target_gram",
            remedy="Train a classifier on one-hot rows, or declare the task `regression`.",
        )


def _require_semidefinite(statistics: Statistics) -> None:
    """Check that [X Y]ᵀ[X Y] is positive semidefinite to round-off, as any data set's is.

    Its computed entries are off by at most γ_n·Σ|·||·|, in the spectral norm by at most
    γ_n·trace, and the factorisation adds γ_{d+C+1}·trace (Higham, Theorem 10.3).
    """
    augmented = np.block(
        [
            [statistics.gram, statistics.cross],
            [statistics.cross.T, statistics.target_gram],
        ]
    )
    trace = float(np.trace(augmented))
    size = len(augmented)
    tolerance = gamma(statistics.n_samples + size + 1) * trace
    # All-zero statistics are those of all-zero samples; any positive shift lets them pass.
    augmented[np.diag_indices(size)] += tolerance or np.finfo(np.float64).tiny
    try:
        np.linalg.cholesky(augmented)
    except np.linalg.LinAlgError as error:
        raise InvalidInputError(
            "statistics: [X Y]ᵀ[X Y] has a negative eigenvalue below round-off"
            f" (−{tolerance:.6g}); no data set has these statistics",
            field="statistics",
            remedy="Collect gram, cross and target_gram over the same samples, in float64.",
        ) from error


def _trace(statistics: Statistics) -> float:
    with np.errstate(over="ignore"):
        return float(np.trace(statistics.gram) + np.trace(statistics.target_gram))
