"""What bounds rest on, and on whose word."""

import dataclasses
from collections.abc import Mapping

from core.results import Assumption, Bound
from core.vocabulary import Loss, Standing

ATTESTED_STATISTICS = Assumption(
    "the stored statistics are those of the training set, summed in float64 with the round-off "
    "that travels with them",
    Standing.ATTESTED,
)
# No computation can show it for a single sample: sums of different data sets may look alike.
ATTESTED_MEMBERSHIP = Assumption(
    "every forget sample is a member of the training set, sent with the target that it was trained "
    "with, and has not been removed before; nothing but the owner's word says so of each one",
    Standing.ATTESTED,
)
COMPUTED_MEMBERSHIP = Assumption(
    "every forget sample's keyed digest is among those that the owner stored of all training "
    "samples, and occurs there at least as often as it was forgotten",
    Standing.COMPUTED,
)
ATTESTED_OBJECTIVE = Assumption(
    "the model's training objective is the squared loss with the declared ridge",
    Standing.ATTESTED,
)
ATTESTED_SIZE = Assumption(
    "the training set has the declared number of samples, none longer than the declared norm bound "
    "by more than 1e-6 of it",
    Standing.ATTESTED,
)
ATTESTED_OPTIMUM = Assumption(
    "the training gradient at the weights before the deletion is within the bound on record",
    Standing.ATTESTED,
)
POSSIBLE_DOWNDATE = Assumption(
    "the downdated statistics are positive semidefinite up to round-off", Standing.COMPUTED
)
ROUND_OFF_MODEL = Assumption(
    "float64 arithmetic rounds as IEEE-754 says, in sums of any order, without underflow",
    Standing.ASSUMED,
)
ATTESTED_EXPANSION = Assumption(
    "the stored statistics are those of the training set at their anchor, summed in float64 with "
    "the round-off that travels with them, and none of its samples is longer than their largest "
    "norm",
    Standing.ATTESTED,
)
ATTESTED_LOGISTIC_OBJECTIVE = Assumption(
    "the model's training objective is the one-vs-rest logistic loss with the declared ridge, plus "
    "the secret linear term of objective perturbation, if any",
    Standing.ATTESTED,
)
SIGMOID_ACCURACY = Assumption(
    "the logistic function is computed to within 8 units in the last place", Standing.ASSUMED
)
EXCHANGEABLE = Assumption(
    "the forget set is drawn like the retain set (a person or a class is not)", Standing.ASSUMED
)

EXACT_ASSUMPTIONS = (
    ATTESTED_STATISTICS,
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    POSSIBLE_DOWNDATE,
    ROUND_OFF_MODEL,
)
CERTIFIED_ASSUMPTIONS = (
    ATTESTED_EXPANSION,
    ATTESTED_MEMBERSHIP,
    ATTESTED_LOGISTIC_OBJECTIVE,
    POSSIBLE_DOWNDATE,
    ROUND_OFF_MODEL,
    SIGMOID_ACCURACY,
)
_WORST_CASE = (ATTESTED_SIZE, ATTESTED_OPTIMUM, ROUND_OFF_MODEL)
WORST_CASE_ASSUMPTIONS: Mapping[Loss, tuple[Assumption, ...]] = {
    Loss.SQUARED: (ATTESTED_MEMBERSHIP, ATTESTED_OBJECTIVE, *_WORST_CASE),
    Loss.LOGISTIC: (
        ATTESTED_MEMBERSHIP,
        ATTESTED_LOGISTIC_OBJECTIVE,
        *_WORST_CASE,
        SIGMOID_ACCURACY,
    ),
}


def with_membership(bounds: tuple[Bound, ...], standing: Standing) -> tuple[Bound, ...]:
    """Return bounds that say on whose word the forget samples are members.

    Args:
        bounds: Bounds that take it on the owner's word.
        standing: `computed` where it was checked.

    Returns:
        The same bounds, with the other assumption where it was checked.
    """
    if standing is not Standing.COMPUTED:
        return bounds
    return tuple(
        dataclasses.replace(
            bound,
            assumptions=tuple(
                COMPUTED_MEMBERSHIP if stated is ATTESTED_MEMBERSHIP else stated
                for stated in bound.assumptions
            ),
        )
        for bound in bounds
    )
