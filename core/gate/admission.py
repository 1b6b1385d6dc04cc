"""Whatever the method: does anything remain, and could the samples have been trained on?"""

import math

from core.errors import IllConditionedError, SolverError, StatisticsMismatchError
from core.gate._failure import GateFailedError
from core.gate._sums import counts_are_broken, gram_round_off
from core.results import GateResult
from core.rounding import LARGEST_RELATIVE_ROUND_OFF, upward
from core.statistics import Statistics
from core.vocabulary import RefusalCause, Task

_AS_TRAINED = (
    "send the samples exactly as the model was trained on them: same features, same targets"
)


def require_remainder(n_forget: int, n_samples: int) -> GateResult:
    """Check n_f < n.

    Args:
        n_forget: n_f.
        n_samples: n.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: Nothing would remain to be trained on.
    """
    passed = n_forget < n_samples
    result = GateResult(
        "something_remains",
        passed,
        float(n_forget),
        float(n_samples),
        f"{n_forget} of {n_samples} samples are to be forgotten",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.NOTHING_WOULD_REMAIN,
            "retire the model: without training samples there is nothing that it could be",
        )
    return result


def require_precise(relative_round_off: float) -> GateResult:
    """Check that stored statistics are precise enough to refuse samples and to certify anything.

    Round-off as large as the statistics would let any samples pass the downdate, and a bound of its
    size would certify weights that it says nothing about.

    Args:
        relative_round_off: Bound on the round-off of the statistics over their trace.

    Returns:
        The passed gate.

    Raises:
        GateFailedError: It is above 1e-6.
    """
    passed = relative_round_off <= LARGEST_RELATIVE_ROUND_OFF
    result = GateResult(
        "statistics_are_precise",
        passed,
        relative_round_off if math.isfinite(relative_round_off) else None,
        LARGEST_RELATIVE_ROUND_OFF,
        f"the statistics carry a round-off of at most {relative_round_off:.3g} of their trace",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.ILL_CONDITIONED,
            "collect the statistics of the remaining samples anew, in float64, or retrain",
        )
    return result


def downdate_passed() -> GateResult:
    """Return the gate that `StoredStatistics.downdate` is, when it did not raise.

    Returns:
        The passed gate.
    """
    return _downdate_gate(
        "the downdated statistics are positive semidefinite up to round-off, as those of any data "
        "set are"
    )


def downdate_failed(error: StatisticsMismatchError) -> GateFailedError:
    """Return the refusal of a forget set that was never in the training set.

    Args:
        error: What the downdate raised.

    Returns:
        The refusal, to be raised or recorded.
    """
    return GateFailedError(
        _downdate_gate(str(error), passed=False),
        RefusalCause.NOT_IN_TRAINING_SET,
        _AS_TRAINED,
    )


def require_possible_rest(
    before: Statistics,
    rest: Statistics,
    *,
    feature_norm_bound: float,
    task: Task,
) -> GateResult:
    r"""Check what is known of every training set beyond that its Gram matrix has no negative sign.

    The downdate asks only for a positive semidefinite rest. Two more things hold for the rest of
    true members, so that what breaks them was never in the training set:

    * trace(G_r) = Σ_r ‖x‖² ≤ n_r·R_x²: samples that were shrunk before they were sent leave too
      much behind;
    * where the targets were one-hot, the rest's class counts are whole numbers, none negative,
      that add up to n_r, and no two classes meet in a sample: a label that was changed, or a class
      that has no samples left, breaks it.

    Neither shows that samples *were* members: that needs their digests (METHOD §4).

    Args:
        before: Statistics of the whole training set.
        rest: `before`, downdated.
        feature_norm_bound: R_x, with the slack that samples are allowed.
        task: Targets are one-hot only for classification.

    Returns:
        The passed gate: trace(G_r) against n_r·R_x².

    Raises:
        GateFailedError: The samples cannot have been in the training set.
    """
    trace = float(rest.gram.trace())
    limit = rest.n_samples * feature_norm_bound**2 + rest.gram.shape[0] * gram_round_off(rest)
    problems = []
    if trace > upward(limit):
        problems.append(
            f"the squared norms of the {rest.n_samples} remaining rows would add up to "
            f"{trace:.6g}, more than the model's declared bound on norms allows"
        )
    if task is Task.CLASSIFICATION and counts_are_broken(before, rest):
        problems.append(
            "the remaining class counts would not be whole numbers, none negative, that add up to "
            f"{rest.n_samples}, as those of one-hot targets are"
        )
    result = GateResult(
        "rest_is_possible",
        not problems,
        trace,
        limit,
        "; ".join(problems) or "norms and class counts of the rest are those of a training set",
    )
    if problems:
        raise GateFailedError(result, RefusalCause.NOT_IN_TRAINING_SET, _AS_TRAINED)
    return result


def unsolvable(error: IllConditionedError | SolverError) -> GateFailedError:
    """Return the refusal of a deletion whose linear system or program has no usable solution.

    Args:
        error: What the solver raised.

    Returns:
        The refusal, to be raised or recorded.
    """
    return GateFailedError(
        GateResult("solution_exists", passed=False, value=None, threshold=None, detail=str(error)),
        RefusalCause.ILL_CONDITIONED,
        "train with a stronger ridge, or rescale or drop features that repeat each other",
    )


def _downdate_gate(detail: str, *, passed: bool = True) -> GateResult:
    return GateResult("downdate_is_possible", passed, value=None, threshold=None, detail=detail)
