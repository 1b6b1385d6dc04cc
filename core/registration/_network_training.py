"""The linear part of a network at its optimum, trained here or elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidOptionError
from core.linearised.linearisation import Linearisation
from core.linearised.problem import FeatureSamples
from core.linearised.training import fit
from core.problem import Ridge, require_matrix
from core.registration._record import relative_size
from core.registration._watcher import Watcher


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """w, and what is left of its gradient.

    Attributes:
        weights: w, shape (D, 1), float64.
        gradient_norm: ‖∇L(w)‖, sum form.
        relative_gradient: ‖∇L(w)‖ / ‖∇L(0)‖.
    """

    weights: Tensor
    gradient_norm: float
    relative_gradient: float


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """L(w) = Σ ½‖f_{w_c}(x) + J(x)w − y‖² + (shift(n)/2)‖w‖².

    Attributes:
        linearisation: f_{w_c} and J.
        batches: The training set.
        ridge: The L2 term.
        tolerance: Largest ‖∇L(w)‖ / ‖∇L(0)‖ at an optimum.
    """

    linearisation: Linearisation
    batches: Sequence[FeatureSamples]
    ridge: Ridge
    tolerance: float

    def minimise(self, start: Tensor | None, watcher: Watcher) -> Trained:
        """Return the optimum.

        Args:
            start: Where to begin, shape (D, 1), float64; 0 if None.
            watcher: Told about each iteration.

        Returns:
            w within the tolerance.

        Raises:
            InvalidTensorError: `start` has another shape.
            SolverError: The gradient does not come down to the tolerance.
        """
        fitted = fit(
            self.linearisation,
            self.batches,
            self.ridge,
            tolerance=self.tolerance,
            start=None if start is None else self._placed("start", start),
            progress=watcher.training,
        )
        figures = fitted.report.figures
        return Trained(fitted.weights, figures["gradient_norm"], figures["relative_residual"])

    def accept(self, weights: Tensor) -> Trained:
        """Return weights that were trained elsewhere.

        Args:
            weights: w, shape (D, 1), float64.

        Returns:
            The same, with their gradient.

        Raises:
            InvalidOptionError: They are no optimum.
            InvalidTensorError: They have another shape.
        """
        placed = self._placed("weights", weights)
        left, first = self.gradient(placed), self.gradient(torch.zeros_like(placed))
        relative = relative_size(left, float(torch.linalg.norm(first)))
        if not relative <= self.tolerance:
            raise InvalidOptionError(
                f"weights: no optimum of the squared loss with ridge {self.ridge.convention} "
                f"{self.ridge.strength:.6g} on these samples: the gradient is {relative:.3g} of "
                f"that at zero weights, above the tolerance {self.tolerance:.3g}; pass them as "
                "`start`, to train on from there, or declare a larger tolerance"
            )
        return Trained(placed, float(torch.linalg.norm(left)), relative)

    def gradient(self, weights: Tensor) -> Tensor:
        """Return ∇L(w), sum form.

        Args:
            weights: w, shape (D, 1), float64.

        Returns:
            Shape (D, 1), float64.
        """
        total = weights * self.ridge.shift(sum(len(batch) for batch in self.batches))
        for batch in self.batches:
            errors = self.linearisation.centre_outputs(batch.features).sub_(batch.targets)
            errors.add_(self.linearisation.jvp(batch.features, weights.T)[0])
            total += self.linearisation.vjp(batch.features, errors[None]).T
        return total

    def _placed(self, name: str, weights: Tensor) -> Tensor:
        require_matrix(name, weights, self.linearisation.num_parameters, 1)
        return weights.detach().to(self.linearisation.device)
