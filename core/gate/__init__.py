"""Tests that a deletion has to pass before anything is written (METHOD §4)."""

from core.gate._failure import GateFailedError
from core.gate._p_values import SkewTest, judge, mean_p_value, require_testable
from core.gate.admission import (
    downdate_failed,
    downdate_passed,
    require_possible_rest,
    require_precise,
    require_remainder,
    unsolvable,
)
from core.gate.distance import estimated_surrogate_distance
from core.gate.reliability import (
    cross_fitted_residual,
    estimate_deviation,
    halvings,
    require_halves,
    require_identified,
    require_reliable,
)
from core.gate.skew import require_exchangeable, skew_not_tested

__all__ = [
    "GateFailedError",
    "SkewTest",
    "cross_fitted_residual",
    "downdate_failed",
    "downdate_passed",
    "estimate_deviation",
    "estimated_surrogate_distance",
    "halvings",
    "judge",
    "mean_p_value",
    "require_exchangeable",
    "require_halves",
    "require_identified",
    "require_possible_rest",
    "require_precise",
    "require_reliable",
    "require_remainder",
    "require_testable",
    "skew_not_tested",
    "unsolvable",
]
