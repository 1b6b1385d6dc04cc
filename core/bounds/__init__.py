"""What is left of the forget set: bounds that hold, and published ones that are only reported.

A bound certifies only where every term of METHOD (5) was computed or bounded from what is stored.
"""

from core.bounds._assumptions import with_membership
from core.bounds._parts import carried_gradient_norm, distance_to_retraining
from core.bounds.certified import (
    Expansion,
    certified_bounds,
    expand,
    measured_from_expansion,
    move_anchor,
)
from core.bounds.exact import exact_bounds, measured_bound, residual_from_statistics
from core.bounds.published import lemma_1, published_bounds, theorem_1
from core.bounds.surrogate import SurrogateDistance, conditional_residual, surrogate_bounds
from core.bounds.worst_case import cross_fitted_estimate, worst_case_bounds, worst_case_residual

__all__ = [
    "Expansion",
    "SurrogateDistance",
    "carried_gradient_norm",
    "certified_bounds",
    "conditional_residual",
    "cross_fitted_estimate",
    "distance_to_retraining",
    "exact_bounds",
    "expand",
    "lemma_1",
    "measured_bound",
    "measured_from_expansion",
    "move_anchor",
    "published_bounds",
    "residual_from_statistics",
    "surrogate_bounds",
    "theorem_1",
    "with_membership",
    "worst_case_bounds",
    "worst_case_residual",
]
