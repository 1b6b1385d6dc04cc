"""From a deletion to its answer: what every kind of model has in common."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

from core import bounds, gate
from core.errors import IllConditionedError, SolverError, StatisticsMismatchError
from core.gate import GateFailedError
from core.options import UnlearningOptions
from core.privacy import Privacy
from core.release import release, require_budget, require_true_bound
from core.results import (
    AnyStatistics,
    Assumption,
    Bound,
    GateResult,
    Metrics,
    Refused,
    SolverReport,
    Unlearned,
)
from core.tiers._deletion import Progress
from core.vocabulary import Standing, Tier


class AnyModel(Protocol):
    """What is asked of a model, whatever its kind."""

    @property
    def privacy(self) -> Privacy | None:
        """Return how residuals of deletions are hidden."""


class AnyDeletion(Protocol):
    """What is asked of a deletion, whatever it is from."""

    options: UnlearningOptions
    membership: Standing
    gates: list[GateResult]
    seeds: dict[str, int]

    @property
    def model(self) -> AnyModel:
        """Return the model before."""

    @property
    def progress(self) -> Progress:
        """Return whom to tell about each stage."""

    @property
    def tier(self) -> Tier:
        """Return the tier that the method aims at."""

    @property
    def n_remaining(self) -> int:
        """Return n_r."""


class AnyOutcome(Protocol):
    """What is asked of an outcome, whatever tier and kind of model found it."""

    @property
    def weights(self) -> Tensor:
        """Return the new weights."""

    @property
    def remaining(self) -> AnyStatistics | None:
        """Return the statistics to store from now on."""

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """Return every bound, certifying or not."""

    @property
    def solvers(self) -> tuple[SolverReport, ...]:
        """Return the reports of the solvers, in order."""

    @property
    def gradient_norm_bound(self) -> float:
        """Return the bound on the gradient that is left, for the next deletion."""


_Deletion = TypeVar("_Deletion", bound=AnyDeletion)
_Outcome = TypeVar("_Outcome", bound=AnyOutcome)


def answer(
    deletion: _Deletion,
    find_outcome: Callable[[_Deletion], _Outcome],
    compare: Callable[[_Deletion, _Outcome, Tensor], Metrics],
    noise_key: bytes | None,
) -> Unlearned | Refused:
    """Run the stages of a deletion, and say what came of them.

    Args:
        deletion: A consistent one.
        find_outcome: Admits it and computes the new weights with their bounds.
        compare: Measures the weights that are released.
        noise_key: Secret that the noise of a release is derived from.

    Returns:
        New weights; or why a gate refused, or what could not be solved.
    """
    try:
        return _run_stages(deletion, find_outcome, compare, noise_key)
    except GateFailedError as failure:
        return _refused(deletion, failure)
    except StatisticsMismatchError as error:
        return _refused(deletion, gate.downdate_failed(error))
    except (IllConditionedError, SolverError) as error:
        return _refused(deletion, gate.unsolvable(error))


def _run_stages(
    deletion: _Deletion,
    find_outcome: Callable[[_Deletion], _Outcome],
    compare: Callable[[_Deletion, _Outcome, Tensor], Metrics],
    noise_key: bytes | None,
) -> Unlearned:
    privacy = deletion.model.privacy
    deletion.gates.extend(require_true_bound(privacy, deletion.tier, noise_key))
    outcome = find_outcome(deletion)
    deletion.gates.extend(require_budget(privacy, deletion.tier, outcome.bounds))
    released = release(privacy, outcome.weights, outcome.bounds, noise_key)
    deletion.progress("evaluate", 0.9)
    found = bounds.with_membership(outcome.bounds, deletion.membership)
    result = Unlearned(
        weights=outcome.weights,
        release=released.weights,
        statistics=outcome.remaining,
        n_samples=deletion.n_remaining,
        gradient_norm_bound=outcome.gradient_norm_bound,
        tier=deletion.tier,
        method=deletion.options.method,
        bounds=found,
        gates=tuple(deletion.gates),
        solvers=outcome.solvers,
        metrics=compare(deletion, outcome, released.weights),
        seeds=dict(deletion.seeds),
        assumptions=_assumptions(found),
        privacy=released.privacy,
    )
    deletion.progress("evaluate", 1.0)
    return result


def _assumptions(found: tuple[Bound, ...]) -> tuple[Assumption, ...]:
    # Each once, in the order of the bounds that rest on them.
    return tuple(dict.fromkeys(stated for bound in found for stated in bound.assumptions))


def _refused(deletion: AnyDeletion, failure: GateFailedError) -> Refused:
    return Refused(
        cause=failure.cause,
        detail=failure.result.detail,
        remedy=failure.remedy,
        tier=deletion.tier,
        method=deletion.options.method,
        gates=(*deletion.gates, failure.result),
        seeds=dict(deletion.seeds),
    )
