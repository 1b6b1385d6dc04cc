"""What every estimator of the retain Hessian returns."""

from dataclasses import dataclass

from torch import Tensor

from core.results import SolverReport


@dataclass(frozen=True, slots=True)
class HessianEstimate:
    """An estimate Ĥ of the retain Hessian.

    Attributes:
        matrix: Ĥ, float64, symmetric, in sum form over the retain set with its ridge; shape (d, d),
            shared by all outputs, or (C, d, d), one an output.
        report: How it came about.
    """

    matrix: Tensor
    report: SolverReport
