"""What a caller may choose about a deletion from a network; free of torch."""

from enum import StrEnum


class HeadSolver(StrEnum):
    """How the system of `forget-curvature` is solved."""

    AUTO = "auto"  # dual where its kernel is small, else conjugate gradients
    DUAL = "dual"
    CONJUGATE_GRADIENTS = "conjugate-gradients"
    DIAGONAL = "diagonal"  # for comparison: what published code does
