r"""The forget set's mean Gauss–Newton matrix for the retain set's, matrix-free (METHOD §4, §6).

Ĥ = (n_r/n_f)·J_fᵀJ_f + shift(n_r)·I. Three ways to solve with it, chosen by size: the dual, whose
n_fC × n_fC kernel Woodbury's identity needs; conjugate gradients; and, for comparison with
published code, the diagonal alone. Conjugate gradients run plainly, or preconditioned by a sketch
where one is stored: diagonals, of entries or of layers, make them slower (measured), for the ridge
weighs all parameters alike.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import SolverError
from core.linearised.conjugate_gradients import Operator, conjugate_gradients
from core.linearised.linearisation import Linearisation
from core.linearised.options import HeadSolver
from core.newton import cholesky
from core.results import SolverReport

# A kernel of 128 MiB; by rows of the Jacobian, where layers are not dense, one is dear.
_MOST_DUAL_ROWS = 4096
_MOST_DUAL_ROWS_GENERIC = 64
# An estimate is off by tenths; what a solver leaves need not be much smaller.
_TOLERANCE = 1e-6
_GATE_TOLERANCE = 1e-2
_REFINEMENTS = 4
_PROBES = 64
_KERNEL = "kernel of the forget set"


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """V = Ĥ⁻¹q, and how it came about.

    Attributes:
        change: V, shape (D, 1), float64.
        report: With the `relative_residual` ‖ĤV − q‖ / ‖q‖ of whatever Ĥ was solved with.
    """

    change: Tensor
    report: SolverReport


@dataclass(frozen=True, slots=True, eq=False)
class ForgetCurvature:
    """Ĥ as an operator; made by `of`.

    Attributes:
        linearisation: f_{w_c} and J.
        features: Of the forget set, shape (n_f, ...), float64.
        n_remaining: n_r.
        shift: What the ridge of the retain set adds to every eigenvalue.
        solver: How to solve; never `AUTO`.
        seed: Of the probes of `DIAGONAL`.
        kernel: J_fJ_fᵀ, shape (n_f·C, n_f·C), float64, of `DUAL`; else None.
        preconditioner: r ↦ M⁻¹r for `CONJUGATE_GRADIENTS`, if there is one.
    """

    linearisation: Linearisation
    features: Tensor
    n_remaining: int
    shift: float
    solver: HeadSolver
    seed: int
    kernel: Tensor | None
    preconditioner: Operator | None

    @classmethod
    def of(
        cls,
        linearisation: Linearisation,
        features: Tensor,
        n_remaining: int,
        shift: float,
        *,
        solver: HeadSolver = HeadSolver.AUTO,
        seed: int = 0,
        preconditioner: Operator | None = None,
    ) -> "ForgetCurvature":
        """Choose how to solve, by size where that is left open.

        Args:
            linearisation: f_{w_c} and J.
            features: Of the forget set, shape (n_f, ...), float64.
            n_remaining: n_r.
            shift: What the ridge of the retain set adds to every eigenvalue, positive.
            solver: How to solve.
            seed: Of the probes of `DIAGONAL`.
            preconditioner: r ↦ M⁻¹r for `CONJUGATE_GRADIENTS`, if there is one.

        Returns:
            The operator.
        """
        if solver is HeadSolver.AUTO:
            rows = len(features) * linearisation.num_outputs
            dense = linearisation.network.dense is not None
            fits = rows <= (_MOST_DUAL_ROWS if dense else _MOST_DUAL_ROWS_GENERIC)
            solver = HeadSolver.DUAL if fits else HeadSolver.CONJUGATE_GRADIENTS
        kernel = linearisation.kernel(features, features) if solver is HeadSolver.DUAL else None
        return cls(
            linearisation, features, n_remaining, shift, solver, seed, kernel, preconditioner
        )

    @property
    def scale(self) -> float:
        """Return n_r/n_f."""
        return self.n_remaining / len(self.features)

    def times(self, change: Tensor) -> Tensor:
        """Return ĤV.

        Args:
            change: V, shape (D, 1), float64.

        Returns:
            Shape (D, 1), float64.
        """
        product = self.linearisation.gauss_newton(self.features, change.T).mul_(self.scale)
        return product.T.add_(change, alpha=self.shift)

    def solve(self, right_side: Tensor, tolerance: float = _TOLERANCE) -> Solution:
        """Return Ĥ⁻¹q.

        Args:
            right_side: q, shape (D, 1), float64.
            tolerance: Relative residual to stop at.

        Returns:
            The solution; of `DIAGONAL`, with the diagonal of Ĥ in place of Ĥ.

        Raises:
            IllConditionedError: The kernel has no Cholesky factor.
            SolverError: The residual does not come down to the tolerance.
        """
        if self.kernel is not None:
            return self._solve_dual(self.kernel, right_side, tolerance)
        if self.solver is HeadSolver.DIAGONAL:
            return self._solve_diagonal(right_side)
        return self._solve_iteratively(right_side, tolerance)

    def cross_fitted_residual(self, right_side: Tensor, *, splits: int, seed: int) -> float:
        """Estimate ρ_g by random halves of the forget set, METHOD (7).

        Args:
            right_side: q = ∇_f − g*, shape (D, 1), float64.
            splits: How many random halvings are averaged.
            seed: Of the halvings, drawn on the CPU.

        Returns:
            ρ̂_g, relative to ‖q‖; 0 where q is 0.

        Raises:
            IllConditionedError: A half's kernel has no Cholesky factor.
            SolverError: A half's system is not solved.
        """
        size = float(torch.linalg.vector_norm(right_side))
        if size == 0:
            return 0.0
        orders = list(_orders(len(self.features), splits, seed))
        if self.kernel is not None:
            judge = _KernelJudge.of(self, self.kernel, right_side)
            found = [judge.mismatch(*halves) for order in orders for halves in judge.split(order)]
        else:
            middle = len(self.features) // 2
            found = [
                self._mismatch(right_side, *halves)
                for order in orders
                for halves in _both_ways(order[:middle], order[middle:])
            ]
        return sum(found) / (len(found) * size)

    def _solve_dual(self, kernel: Tensor, right_side: Tensor, tolerance: float) -> Solution:
        # V = (q − Jᵀ(K + (s/c)I)⁻¹Jq)/s. The difference cancels where curvature is large; what it
        # loses, refinement with the same factor brings back.
        factor = cholesky(kernel, self.shift / self.scale, name=_KERNEL)
        size = float(torch.linalg.vector_norm(right_side))
        change = torch.zeros_like(right_side)
        left, relative, steps = right_side, float(size != 0), 0
        while relative > tolerance and steps < _REFINEMENTS:
            images = self.linearisation.jvp(self.features, left.T).reshape(-1, 1)
            pulled = factor.solve(images).reshape(1, len(self.features), -1)
            step = left - self.linearisation.vjp(self.features, pulled).T
            change.add_(step, alpha=1.0 / self.shift)
            left = right_side - self.times(change)
            relative, steps = float(torch.linalg.vector_norm(left)) / size, steps + 1
        if not relative <= tolerance:  # also for NaN
            raise SolverError(
                f"dual: after {steps} refinements the relative residual is {relative:.3g}, above "
                f"{tolerance:g}; train with a stronger ridge"
            )
        figures = {
            "rows": float(len(kernel)),
            "steps": float(steps),
            "relative_residual": relative,
        }
        return Solution(change, SolverReport("dual-cholesky", "converged", figures))

    def _solve_iteratively(self, right_side: Tensor, tolerance: float) -> Solution:
        found = conjugate_gradients(
            self.times, right_side, tolerance=tolerance, preconditioner=self.preconditioner
        )
        return Solution(found.solution, found.report)

    def _solve_diagonal(self, right_side: Tensor) -> Solution:
        diagonal = _hutchinson(self.linearisation, self.features, _PROBES, self.seed)
        # An estimate may be negative where the truth is small.
        diagonal = diagonal.clamp_min_(0.0).mul_(self.scale).add_(self.shift)
        figures = {"probes": float(_PROBES), "relative_residual": 0.0}
        report = SolverReport("hutchinson-diagonal", "estimated", figures)
        return Solution(right_side / diagonal[:, None], report)

    def _of(self, rows: Tensor) -> "ForgetCurvature":
        return dataclasses.replace(self, features=self.features[rows])

    def _mismatch(self, right_side: Tensor, half: Tensor, other: Tensor) -> float:
        change = self._of(half).solve(right_side, _GATE_TOLERANCE).change
        return float(torch.linalg.vector_norm(self._of(other).times(change).sub_(right_side)))


@dataclass(frozen=True, slots=True, eq=False)
class _KernelJudge:
    """METHOD (7) in the span of q and the rows of J_f, where no vector of length D is needed."""

    kernel: Tensor  # K, (n_f·C, n_f·C)
    images: Tensor  # J_f q, (n_f·C, 1)
    outputs: int
    n_remaining: int
    shift: float
    scratch: tuple[Tensor, Tensor]  # of the kernel's shape, for each halving in turn

    @classmethod
    def of(cls, curvature: ForgetCurvature, kernel: Tensor, right_side: Tensor) -> "_KernelJudge":
        linearisation = curvature.linearisation
        return cls(
            kernel,
            linearisation.jvp(curvature.features, right_side.T).reshape(-1, 1),
            linearisation.num_outputs,
            curvature.n_remaining,
            curvature.shift,
            (torch.empty_like(kernel), torch.empty_like(kernel)),
        )

    def split(self, order: Tensor) -> Iterator[tuple["_Half", "_Half", Tensor]]:
        # Rows of one half together, so that every block is a view: good until the next halving.
        middle = len(order) // 2
        within = torch.arange(self.outputs, device=order.device)
        rows = (order[:, None] * self.outputs + within).reshape(-1).to(self.kernel.device)
        partly = torch.index_select(self.kernel, 0, rows, out=self.scratch[0])
        kernel = torch.index_select(partly, 1, rows, out=self.scratch[1])
        images = self.images[rows]
        end = middle * self.outputs
        first = _Half(middle, kernel[:end, :end], images[:end])
        second = _Half(len(order) - middle, kernel[end:, end:], images[end:])
        yield first, second, kernel[end:, :end]
        yield second, first, kernel[:end, end:]

    def mismatch(self, half: "_Half", other: "_Half", cross: Tensor) -> float:
        # V = (q − J_Aᵀα)/s solves Ĥ_A V = q; what the other half makes of it,
        # c_B J_BᵀJ_B V + sV − q = c_B J_Bᵀβ − J_Aᵀα with β = J_B V, has its norm from K.
        factor = cholesky(half.kernel, self.shift * half.count / self.n_remaining, name=_KERNEL)
        alpha = factor.solve(half.images)
        beta = (other.images - cross @ alpha).mul_(self.n_remaining / (other.count * self.shift))
        square = beta.T @ (other.kernel @ beta) + alpha.T @ (half.kernel @ alpha)
        square -= 2.0 * (beta.T @ (cross @ alpha))
        return math.sqrt(max(float(square), 0.0))


@dataclass(frozen=True, slots=True, eq=False)
class _Half:
    """Half of a forget set, as far as its kernel goes."""

    count: int
    kernel: Tensor
    images: Tensor


def _orders(count: int, splits: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        yield torch.randperm(count, generator=generator)


def _both_ways(first: Tensor, second: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (first, second), (second, first)


def _hutchinson(linearisation: Linearisation, features: Tensor, probes: int, seed: int) -> Tensor:
    # E[z ∘ Gz] is the diagonal of G for random signs z.
    generator = torch.Generator().manual_seed(seed)
    total: Tensor = features.new_zeros(linearisation.num_parameters)
    for _ in range(probes):
        signs = torch.randint(2, (1, len(total)), generator=generator).to(total).mul_(2).sub_(1)
        total += linearisation.gauss_newton(features, signs)[0].mul_(signs[0])
    return total.div_(probes)
