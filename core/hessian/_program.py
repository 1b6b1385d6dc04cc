"""Equation (2) as the solvers see it: least squares over the positive semidefinite cone."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """min (1/m) Σ_i (½⟨δ_i, Zδ_i⟩ − b_i)² + weight·‖Z − K‖²_F subject to Z ⪰ 0.

    Attributes:
        directions: δ_i, shape (m, d), float64.
        targets: b_i, shape (m,), float64: what the floor leaves to be explained.
        centre: K = H_0 − F, shape (d, d), float64, symmetric; plays no part with weight 0.
        weight: Of the penalty, in the units of the equations; 0 without a prior.
    """

    directions: Tensor
    targets: Tensor
    centre: Tensor
    weight: float

    def misfit(self, excess: Tensor) -> float:
        """Return (1/m) Σ_i (½⟨δ_i, Zδ_i⟩ − b_i)²."""
        return float((quadratic(self.directions, excess) - self.targets).square().mean())

    def objective(self, excess: Tensor) -> float:
        """Return what is minimised, at Z."""
        return self.misfit(excess) + self.penalty(excess)

    def penalty(self, excess: Tensor) -> float:
        """Return weight·‖Z − K‖²_F."""
        if self.weight == 0:
            return 0.0
        return self.weight * float((excess - self.centre).square().sum())


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What a solver returns.

    Attributes:
        excess: Z, shape (d, d), float64, symmetric, positive semidefinite to round-off.
        status: The solver's own word.
        figures: Of the solver: iterations and what it knows about its error.
    """

    excess: Tensor
    status: str
    figures: dict[str, float]


def quadratic(directions: Tensor, matrix: Tensor) -> Tensor:
    """Return ½⟨δ_i, Xδ_i⟩ for every i.

    Args:
        directions: Shape (m, d), float64.
        matrix: X, shape (d, d), float64, symmetric.

    Returns:
        Shape (m,), float64.
    """
    found: Tensor = torch.linalg.vecdot(directions @ matrix, directions)
    return found.mul_(0.5)


def onto_cone(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the nearest positive semidefinite matrix, and how far off `matrix` was.

    Args:
        matrix: Shape (d, d), float64, symmetric up to round-off.

    Returns:
        The projection, exactly symmetric, and −λ_min relative to |λ_max|; 0 inside of the cone.
    """
    values, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    largest, outside = float(values[-1].abs()), max(-float(values[0]), 0.0)
    projected = (vectors * values.clamp(min=0.0)) @ vectors.T
    return 0.5 * (projected + projected.T), outside / largest if largest > 0 else 0.0
