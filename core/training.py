"""Logistic training to the optimum: what certified deletion starts from (METHOD §1, §5).

Deletion needs no data, training does: this is for whoever still has it, and for tests and
benchmarks. Damped Newton steps, since everything here is small and convex: the gradient at the
result is round-off, so nothing of it has to be carried through later deletions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core import curvature, newton
from core.errors import InvalidTensorError, SolverError
from core.losses import logistic
from core.problem import Ridge, SampleSet, require_matrix
from core.results import SolverReport
from core.rounding import gamma, upward

_MAX_STEPS = 100
_MAX_HALVINGS = 60
# A step whose promised decrease of the loss is below its round-off is not searched along.
_SEARCHED = 1e-10
_SUFFICIENT = 1e-4
_LARGE_BATCH = 8192


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained logistic head.

    Attributes:
        weights: W*, shape (d, C), float64.
        report: Newton's iteration: `gradient_norm` ‖∇L(W*)‖_F (sum form), `gradient_round_off` (a
            bound on how far the computed one may be off), `steps`.
    """

    weights: Tensor
    report: SolverReport

    @property
    def gradient_norm_bound(self) -> float:
        """Return a bound on the true ‖∇L(W*)‖_F: the computed norm and its round-off."""
        figures = self.report.figures
        return figures["gradient_norm"] + figures["gradient_round_off"]


def fit_logistic(
    samples: SampleSet | Sequence[SampleSet],
    ridge: Ridge,
    *,
    objective_noise: Tensor | None = None,
) -> Fitted:
    """Minimise Σ_i Σ_c softplus(z) − yz + (shift(n)/2)‖W‖²_F + Σ_c b_c·w_c.

    Stops when another Newton step no longer halves the gradient, and accepts the result when
    what is left is within the bound on the gradient's round-off.

    Args:
        samples: The training set, whole or in batches, which are gone through many times; targets
            0 or 1.
        ridge: The L2 term.
        objective_noise: b of objective perturbation, shape (d, C), float64.

    Returns:
        Weights and the report of the solver.

    Raises:
        InvalidTensorError: There is no batch, shapes differ, or a target is not 0 or 1.
        IllConditionedError: The Hessian has no Cholesky factor in float64: the ridge is too weak.
        SolverError: The gradient stays above its round-off.

    >>> data = SampleSet(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    >>> from core.vocabulary import RidgeConvention
    >>> fit_logistic(data, Ridge(RidgeConvention.TOTAL, 1.0)).report.status
    'converged'
    """
    objective = _Objective.of(samples, ridge, objective_noise)
    weights = objective.zeros()
    gradient = objective.gradient(weights)
    norm, steps = float(torch.linalg.norm(gradient)), 0
    while steps < _MAX_STEPS and norm > 0:
        change = newton.solve(objective.hessian(weights), gradient).neg_()
        promised = -(gradient * change).sum(dim=0)
        searched = float(promised.max()) > _SEARCHED * (1.0 + objective.loss_scale)
        step = _search(objective, weights, change, promised) if searched else change
        moved = weights + step
        gradient = objective.gradient(moved)
        found = float(torch.linalg.norm(gradient))
        if not searched and found > 0.5 * norm:
            if found < norm:
                weights, norm = moved, found
            break
        weights, norm, steps = moved, found, steps + 1
    return _accepted(objective, weights, norm, steps)


@dataclass(frozen=True, slots=True, eq=False)
class _Objective:
    batches: Sequence[SampleSet]
    shift: float
    noise: Tensor
    loss_scale: float

    @classmethod
    def of(
        cls, samples: SampleSet | Sequence[SampleSet], ridge: Ridge, noise: Tensor | None
    ) -> "_Objective":
        batches = [samples] if isinstance(samples, SampleSet) else list(samples)
        if not batches:
            raise InvalidTensorError("samples: no batch was given, so there is nothing to train on")
        width, outputs = batches[0].features.shape[1], batches[0].targets.shape[1]
        for batch in batches:
            require_matrix("features", batch.features, columns=width)
            require_matrix("targets", batch.targets, columns=outputs)
            logistic.require_targets(batch.targets)
        if noise is None:
            noise = batches[0].features.new_zeros(width, outputs)
        require_matrix("objective_noise", noise, width, outputs)
        count = sum(len(batch) for batch in batches)
        return cls(batches, ridge.shift(count), noise, count * math.log(2.0))

    def zeros(self) -> Tensor:
        return torch.zeros_like(self.noise)

    def losses(self, weights: Tensor) -> Tensor:
        # One an output: outputs are independent problems, and each finds its own step length.
        total = 0.5 * self.shift * weights.square().sum(dim=0) + (self.noise * weights).sum(dim=0)
        for batch in self._pieces():
            total += logistic.loss_per_output(weights, batch)
        return total

    def gradient(self, weights: Tensor) -> Tensor:
        total = torch.add(self.noise, weights, alpha=self.shift)
        for batch in self._pieces():
            total += logistic.gradient(weights, batch)
        return total

    def gradient_round_off(self, weights: Tensor) -> float:
        """Bound the round-off of `gradient` in the Frobenius norm.

        That of every piece, and γ_{k+3} of the magnitudes for adding up k of them with the ridge's
        and the noise's share; a piece's gradient is at most Σ‖x‖·√C.

        Returns:
            A number >= ‖ĝ − g‖_F.
        """
        total = 0.0
        largest = self.shift * float(torch.linalg.norm(weights))
        largest += float(torch.linalg.norm(self.noise))
        pieces = 0
        for batch in self._pieces():
            total += logistic.gradient_round_off(weights, batch)
            largest += float(batch.features.norm(dim=1).sum()) * math.sqrt(weights.shape[1])
            pieces += 1
        return upward(total + gamma(pieces + 3) * largest)

    def hessian(self, weights: Tensor) -> Tensor:
        width, outputs = weights.shape
        total = weights.new_zeros(outputs, width, width)
        for batch in self._pieces():
            total += logistic.hessian(weights, batch.features)
        curvature.shift(total, self.shift)
        return total

    def _pieces(self) -> Iterator[SampleSet]:
        # Short sums round less, and the weighted copy of the features stays small.
        for batch in self.batches:
            for features, targets in zip(
                torch.split(batch.features, _LARGE_BATCH),
                torch.split(batch.targets, _LARGE_BATCH),
                strict=True,
            ):
                yield SampleSet(features, targets)


def _search(objective: _Objective, weights: Tensor, change: Tensor, promised: Tensor) -> Tensor:
    # Armijo's rule, an output at a time; outputs that promise next to nothing take the full step.
    before = objective.losses(weights)
    length = torch.ones_like(promised)
    slack = _SEARCHED * (1.0 + objective.loss_scale)
    for _ in range(_MAX_HALVINGS):
        after = objective.losses(weights + change * length)
        wanting = (after > before - _SUFFICIENT * length * promised) & (promised > slack)
        if not bool(wanting.any()):
            break
        length = torch.where(wanting, 0.5 * length, length)
    return change * length


def _accepted(objective: _Objective, weights: Tensor, norm: float, steps: int) -> Fitted:
    round_off = objective.gradient_round_off(weights)
    if not norm <= round_off:  # also for NaN
        raise SolverError(
            f"training: after {steps} Newton steps the gradient norm is {norm:.3g}, above its "
            f"round-off of {round_off:.3g}; rescale the features or train with a stronger ridge"
        )
    figures = {"gradient_norm": norm, "gradient_round_off": round_off, "steps": float(steps)}
    return Fitted(weights, SolverReport("newton", "converged", figures))
