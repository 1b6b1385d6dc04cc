r"""What a sketch says of the Hessian H = G + shift·I: an estimate, and how far off it is.

The estimate is A = T + tI with the Nyström approximation T = Yᵀ(ΩᵀGΩ)⁻¹Y, Y = ΩᵀG, and
t = shift + c, where c stands for what T lacks. The error E = H − A = G − T − cI is never seen as a
whole; but E·ψ is, along each ψ of Ψ, which nothing in A depends on. For a vector V that does not
depend on Ψ either, ψ·EV is normal with the variance ‖EV‖², so that

    ‖EV‖² ≤ Σ_ψ (ψ·EV)² / q,      q the quantile of χ² with |Ψ| degrees of freedom,          (8)

fails with the quantile's probability only: 1e-12. A few of Ψ set c, and are left out of (8).
"""

import importlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from core.factorisation import Factorisation
from core.linearised.sketch import SketchStatistics
from core.newton import cholesky
from core.problem import Ridge
from core.results import SolverReport
from core.rounding import PRODUCT_ROUND_OFF, upward

FAILURE_PROBABILITY = 1e-12

# Of Ψ, for c.
_CALIBRATION_SHARE = 5
# Curvature that T lacks is uneven: measured, half of its mean over rows serves best.
_TAIL_SHARE = 0.5
# Regularises a core that fewer rows than directions leave singular, relative to its diagonal.
_CORE_SHIFT = 2.0**-40
_REFINEMENTS = 2
# Of Y at a time.
_COLUMNS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class SketchedCurvature:
    """A, factorised for solving; made by `of`.

    Attributes:
        statistics: The sketch.
        shift: What the ridge adds to every eigenvalue.
        tail: c.
        captured: tr T / tr G.
    """

    statistics: SketchStatistics
    shift: float
    tail: float
    captured: float
    _core: Factorisation
    _capacitance: Factorisation

    @classmethod
    def of(cls, statistics: SketchStatistics, ridge: Ridge) -> "SketchedCurvature":
        """Factorise what is needed, in O(Dℓ² + ℓ³).

        Args:
            statistics: The sketch.
            ridge: The L2 term.

        Returns:
            A = T + (shift + c)I.

        Raises:
            IllConditionedError: The core has no Cholesky factor in float64.
        """
        rank, shift = statistics.rank, ridge.shift(statistics.n_samples)
        spanned = statistics.sketch[:rank]
        small = 0.5 * (statistics.core[:rank, :rank] + statistics.core[:rank, :rank].T)
        small.diagonal().add_(_CORE_SHIFT * float(small.diagonal().max()))
        core = cholesky(small, name="core of the sketch")
        gram = _whitened_gram(core, spanned)
        trace = float(gram.trace())
        tail = _tail(statistics, core, statistics.trace - trace)
        gram.diagonal().add_(shift + tail)
        capacitance = cholesky(gram)
        captured = trace / statistics.trace if statistics.trace > 0 else 1.0
        return cls(statistics, shift, tail, captured, core, capacitance)

    def times(self, change: Tensor) -> Tensor:
        """Return AV.

        Args:
            change: V, shape (D, 1), float64.

        Returns:
            Shape (D, 1), float64.
        """
        spanned = self._spanned
        return torch.addmm(
            change, spanned.T, self._core.solve(spanned @ change), beta=self.shift + self.tail
        )

    def precondition(self, right_side: Tensor) -> Tensor:
        """Return A⁻¹q to within what one pass over the sketch gives.

        Args:
            right_side: q, shape (D, 1), float64.

        Returns:
            Shape (D, 1), float64.
        """
        # A⁻¹ = (I − Bᵀ(tI + BBᵀ)⁻¹B)/t with B = U⁻ᵀY and the core UᵀU, so that T = BᵀB.
        spanned, upper = self._spanned, self._core.upper
        inner = torch.linalg.solve_triangular(upper.mT, spanned @ right_side, upper=False)
        inner = torch.linalg.solve_triangular(upper, self._capacitance.solve(inner), upper=True)
        return torch.addmm(right_side, spanned.T, inner, alpha=-1).div_(self.shift + self.tail)

    def solve(self, right_side: Tensor) -> tuple[Tensor, SolverReport]:
        """Return A⁻¹q, by Woodbury's identity in the span of the sketch.

        Args:
            right_side: q, shape (D, 1), float64.

        Returns:
            V, shape (D, 1), float64, and a report with the `rank`, the share of the curvature that
            is `captured`, the `tail` c relative to the shift and the `relative_residual`.
        """
        change = self.precondition(right_side)
        for _ in range(_REFINEMENTS):
            change.add_(self.precondition(right_side - self.times(change)))
        size = float(torch.linalg.vector_norm(right_side))
        misfit = float(torch.linalg.vector_norm(self.times(change).sub_(right_side)))
        figures = {
            "rank": float(self.statistics.rank),
            "captured": self.captured,
            "tail_over_shift": self.tail / self.shift,
            "relative_residual": misfit / size if size > 0 else misfit,
        }
        return change, SolverReport("sketch-woodbury", "direct", figures)

    def error(self, change: Tensor) -> float:
        """Bound ‖(H − A)V‖ by (8), for a V that does not depend on Ψ.

        Args:
            change: V, shape (D, 1), float64.

        Returns:
            A number that is too small with probability 1e-12, rounding of products included as far
            as `PRODUCT_ROUND_OFF` covers it.
        """
        statistics, first = self.statistics, self._first_probe
        count, rank = len(statistics.sketch) - first, statistics.rank
        seen = statistics.sketch[first:] @ change
        explained = statistics.core[first:, :rank] @ self._core.solve(self._spanned @ change)
        shifted = _products(statistics, first, change).mul_(self.tail)
        error = float(torch.linalg.vector_norm(seen - explained - shifted))
        size = float(torch.linalg.vector_norm(change))
        largest = float(torch.linalg.norm(statistics.sketch[first:])) * size
        # ψ·V is about ‖V‖ for each ψ.
        largest += float(torch.linalg.vector_norm(shifted))
        rounded = PRODUCT_ROUND_OFF * largest
        return upward((error + rounded) / math.sqrt(quantile(count)))

    @property
    def _spanned(self) -> Tensor:
        return self.statistics.sketch[: self.statistics.rank]

    @property
    def _first_probe(self) -> int:
        return self.statistics.rank + _calibrating(self.statistics)


@lru_cache
def quantile(degrees: int) -> float:
    """Return what χ² with some degrees of freedom stays below with probability 1e-12.

    Args:
        degrees: At least 1.

    Returns:
        A positive number.

    >>> round((64 / quantile(64)) ** 0.5, 1)
    2.2
    """
    special: Any = importlib.import_module("scipy.special")  # it has no types
    return 2.0 * float(special.gammaincinv(0.5 * degrees, FAILURE_PROBABILITY))


def _whitened_gram(core: Factorisation, spanned: Tensor) -> Tensor:
    # BBᵀ, B a part at a time. Not YYᵀ + t·core, which is the same but for the condition: where the
    # core is nearly singular, the rounding of YYᵀ is more than t times its smallest eigenvalue.
    gram: Tensor = spanned.new_zeros(len(spanned), len(spanned))
    for columns in torch.split(spanned, _COLUMNS, dim=1):
        part = torch.linalg.solve_triangular(core.upper.mT, columns, upper=False)
        gram.addmm_(part, part.T)
    return gram


def _calibrating(statistics: SketchStatistics) -> int:
    return statistics.error_probes // _CALIBRATION_SHARE


def _products(statistics: SketchStatistics, first: int, change: Tensor) -> Tensor:
    # ψ·V one at a time: all of Ψ would be as much as the sketch's own error part.
    count = len(statistics.sketch)
    parts = [statistics.directions(row, row + 1) @ change for row in range(first, count)]
    return torch.cat(parts)


def _tail(statistics: SketchStatistics, core: Factorisation, left: float) -> float:
    # The rows of the Jacobian put tr(R²)/tr(R), R = G − T, into a direction of R on average.
    # Both by Hutchinson's estimator: E‖Rφ‖² = tr R².
    if left <= PRODUCT_ROUND_OFF * statistics.trace:
        return 0.0
    rank, count = statistics.rank, _calibrating(statistics)
    squares = 0.0
    for row in range(rank, rank + count):
        explained = core.solve(statistics.core[:rank, row : row + 1])
        rest = torch.addmv(
            statistics.sketch[row], statistics.sketch[:rank].T, explained[:, 0], alpha=-1
        )
        squares += float(torch.dot(rest, rest))
    return _TAIL_SHARE * squares / (count * left)
