"""Stored statistics of the squared loss: can a training set have them, and these weights?"""

from dataclasses import dataclass

import numpy as np

from app.errors import InvalidInputError
from app.registry import tensors
from app.registry.checks import _numbers
from app.registry.schemas import Manifest
from app.registry.tensors import AnyArray, Array
from core.rounding import gamma
from core.vocabulary import Task


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

    def training_gradient_norm(self, weights: Array, manifest: Manifest) -> float:
        """Return a bound on ‖∇L(W; D)‖_F = ‖HW − B‖_F (sum form), computed from them.

        Its own rounding is added: at most γ_{d+3}(|G||W| + s|W| + |B|), as in `core.statistics`.

        Raises:
            InvalidInputError: It is beyond the manifest's tolerance: the statistics are those of
                another training set, ridge or feature order than the weights.
        """
        shift = _numbers.ridge_shift(manifest)
        with np.errstate(over="ignore", invalid="ignore"):
            gradient = self.gram @ weights + shift * weights - self.cross
            norm = float(np.linalg.norm(gradient))
            scale = float(np.linalg.norm(self.cross))
            magnitude = np.abs(weights)
            terms = np.abs(self.gram) @ magnitude + shift * magnitude + np.abs(self.cross)
            rounding = gamma(manifest.num_features + 3) * float(np.linalg.norm(terms))
        largest = manifest.training_gradient_tolerance * scale
        # `inf <= inf` would let figures pass that say nothing any more.
        if not np.isfinite(norm + rounding) or not norm <= largest:
            raise InvalidInputError(
                f"statistics: the weights are no optimum of them: ‖HW − B‖_F = {norm:.6g} with"
                f" ‖B‖_F = {scale:.6g}, above the training_gradient_tolerance"
                f" {manifest.training_gradient_tolerance:.6g}",
                field="statistics",
                remedy="Send the statistics of the training set of these weights, check the ridge"
                " convention and strength, train to convergence, or declare a larger tolerance.",
            )
        return norm + rounding


def read(content: bytes, manifest: Manifest) -> Statistics:
    """Return statistics that some training set of the manifest's can have.

    Raises:
        InvalidInputError: No such set has them; the message names the figure.
    """
    d, num_outputs = manifest.num_features, manifest.num_outputs
    found = _numbers.read(
        content,
        {
            "gram": (d, d),
            "cross": (d, num_outputs),
            "target_gram": (num_outputs, num_outputs),
            "n_samples": (1,),
            "round_off": (1,),
        },
        optional={"round_off"},
        counts={"n_samples"},
    )
    statistics = Statistics(
        gram=found["gram"].astype(np.float64),
        cross=found["cross"].astype(np.float64),
        target_gram=found["target_gram"].astype(np.float64),
        n_samples=int(found["n_samples"][0]),
        round_off=float(found["round_off"][0]) if "round_off" in found else None,
    )
    _numbers.require_finite_trace(_trace(statistics), "[X Y]ᵀ[X Y] = Σ‖x‖² + Σ‖y‖²")
    if statistics.round_off is not None:
        _numbers.require_round_off("round_off", statistics.round_off, _trace(statistics))
    _numbers.require_count(statistics.n_samples, manifest)
    for name, matrix in (("gram", statistics.gram), ("target_gram", statistics.target_gram)):
        _numbers.require_symmetric(name, matrix, statistics.n_samples)
    _numbers.require_norms(statistics.gram, manifest)
    _require_one_hot(statistics, manifest)
    _require_semidefinite(statistics)
    return statistics


def _require_one_hot(statistics: Statistics, manifest: Manifest) -> None:
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
    tolerance = gamma(statistics.n_samples + len(augmented) + 1) * trace
    if not _numbers.has_no_eigenvalue_below(augmented, tolerance):
        raise InvalidInputError(
            "statistics: [X Y]ᵀ[X Y] has a negative eigenvalue below round-off"
            f" (−{tolerance:.6g}); no data set has these statistics",
            field="statistics",
            remedy="Collect gram, cross and target_gram over the same samples, in float64.",
        )


def _trace(statistics: Statistics) -> float:
    with np.errstate(over="ignore"):
        return float(np.trace(statistics.gram) + np.trace(statistics.target_gram))
