"""Bounds on what a deletion from a network leaves, and what they rest on."""

import dataclasses

from core.bounds._assumptions import (
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    ROUND_OFF_MODEL,
)
from core.bounds._parts import distance_bound, finite
from core.linearised.sketched_curvature import FAILURE_PROBABILITY
from core.problem import Ridge
from core.results import Assumption, Bound
from core.vocabulary import Standing

ATTESTED_CENTRE = Assumption(
    "the network's own weights, which the last layers are linearised around, and all layers below "
    "are those with the registered digest and were chosen without the forget samples: the training "
    "objective is that of the linear part alone",
    Standing.ATTESTED,
)
COMPUTED_JACOBIAN = Assumption(
    "outputs and Jacobian of the network are what float64 differentiation makes of them here and "
    "made of them at training; products with it are off by less than 2⁻³⁰ of their size, which "
    "is not proved",
    Standing.ASSUMED,
)
ATTESTED_SKETCH = Assumption(
    "the stored sketch, and the gradient beside it, are those of the training set along the "
    "directions of the stored seed",
    Standing.ATTESTED,
)
UNSEEN_PROBES = Assumption(
    "the directions that measure the sketch's error are a secret that neither the training set, "
    "the network, the sketch's basis nor the choice of forget samples depends on; the bound then "
    f"fails with a probability of at most {FAILURE_PROBABILITY:g} for each deletion of the lineage",
    Standing.ASSUMED,
)
POSSIBLE_SKETCH = Assumption(
    "the downdated sketch is positive semidefinite up to round-off", Standing.COMPUTED
)
NETWORK_ASSUMPTIONS = (ATTESTED_CENTRE, COMPUTED_JACOBIAN)
SKETCH_ASSUMPTIONS = (
    ATTESTED_SKETCH,
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    POSSIBLE_SKETCH,
    UNSEEN_PROBES,
    ROUND_OFF_MODEL,
)


def of_network(found: tuple[Bound, ...]) -> tuple[Bound, ...]:
    """Return bounds about rows of a Jacobian as bounds about a network.

    Args:
        found: Bounds of a linear model whose features are the rows.

    Returns:
        The same with the assumptions that every network adds.
    """
    return tuple(
        dataclasses.replace(bound, assumptions=(*bound.assumptions, *NETWORK_ASSUMPTIONS))
        if bound.value is not None
        else bound
        for bound in found
    )


def sketch_bounds(
    residual: float, n_remaining: int, ridge: Ridge, *, certifies: bool
) -> tuple[Bound, ...]:
    """Return METHOD (5) with the sketch's own error as its first-order term, then (6).

    Args:
        residual: ‖∇L(w_u; D_r)‖ as far as the sketch knows it, and bounds on the rest.
        n_remaining: n_r.
        ridge: The L2 term.
        certifies: Whether the step was taken by the sketch; another tier's stays what it is.

    Returns:
        `residual_gradient_norm`, and with it `distance_to_retraining` if it certifies.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    note = (
        "the retain gradient as the sketch tells it, plus what the sketch lacks along the step and "
        "what earlier steps left undetermined"
    )
    if not certifies:
        note += "; of a step that was not taken by the sketch"
    seen = Bound(
        "residual_gradient_norm",
        "METHOD (5), first-order term by the sketch's error",
        finite(residual),
        certifies=certifies,
        note=note,
        assumptions=SKETCH_ASSUMPTIONS,
    )
    if not certifies:
        return of_network((seen,))
    distance = distance_bound(
        "distance_to_retraining", residual, n_remaining, ridge, SKETCH_ASSUMPTIONS, certifies=True
    )
    return of_network((seen, distance))
