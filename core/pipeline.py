"""unlearn(): the stages of one deletion, in order. Pure: no I/O, no clock, inputs never change."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from core import gate
from core.errors import InvalidOptionError, InvalidTensorError
from core.evaluation.comparison import compare
from core.options import UnlearningOptions
from core.problem import LinearModel, SampleSet, Surrogate, require_matrix, require_shape
from core.results import Refused, Unlearned
from core.statistics import Statistics, require_fit
from core.tiers import certified, estimated, exact, surrogate
from core.tiers._answer import answer
from core.tiers._deletion import Deletion, Outcome, Progress
from core.vocabulary import Method, Standing, Task, Tier

_TIERS: Mapping[Tier, Callable[[Deletion], Outcome]] = {
    Tier.EXACT: exact.run,
    Tier.CERTIFIED: certified.run,
    Tier.SURROGATE: surrogate.run,
    Tier.ESTIMATED: estimated.run,
}


def ignore_progress(_stage: str, _fraction: float) -> None:
    """Tell nobody: the default of `unlearn`."""


def unlearn(
    model: LinearModel,
    forget: SampleSet,
    *,
    statistics: Statistics | None = None,
    surrogate: Surrogate | None = None,
    holdout: SampleSet | None = None,
    task: Task,
    options: UnlearningOptions,
    membership: Standing = Standing.ATTESTED,
    noise_key: bytes | None = None,
    released_before: Tensor | None = None,
    progress: Progress = ignore_progress,
) -> Unlearned | Refused:
    """Remove the influence of a forget set from a model, without the rest of its training data.

    Args:
        model: The model, at or near the optimum of its training objective.
        forget: D_f, members of the training set.
        statistics: Of the whole training set; required by method `stored`, downdated by any.
        surrogate: Stand-in for the training features; required by method `surrogate`.
        holdout: Samples that were never trained on, for the scores.
        task: What the outputs mean.
        options: Method, seed, gate and the like.
        membership: `computed` where the caller has checked the forget samples against digests of
            all training samples, else `attested`; written into the assumptions.
        noise_key: 32 secret bytes that the noise of output perturbation is derived from; required
            by it. Never part of the result: whoever knows it can take the noise off.
        released_before: What was released of the model so far, shape (d, C), float64: with output
            perturbation, needed to measure what both releases together reveal.
        progress: Called with a stage (`perturb`, `estimate`, `step`, `bound`, `evaluate`) as it
            begins and the fraction of the whole that is done; may raise to cancel.

    Returns:
        `Unlearned` with new weights, statistics and every bound; or `Refused` when a gate failed.

    Raises:
        InvalidTensorError: Inputs do not belong together, or a forget sample is longer than R_x.
        InvalidOptionError: Something that the method or the mechanism needs is missing, or does
            not belong to the model.
    """
    deletion = Deletion(
        model, forget, statistics, surrogate, holdout, task, options, membership, progress
    )
    deletion.released_before = released_before
    _require_consistent(deletion)
    return answer(deletion, _find_outcome, compare, noise_key)


def _find_outcome(deletion: Deletion) -> Outcome:
    _admit(deletion)
    return _TIERS[deletion.tier](deletion)


# --- Before the stages -------------------------------------------------------------------------


def _require_consistent(deletion: Deletion) -> None:
    width, outputs = deletion.model.weights.shape
    for name, samples in (("forget", deletion.forget), ("holdout", deletion.holdout)):
        if samples is not None:
            # `SampleSet` had a look at the numbers.
            require_shape(f"{name}.features", samples.features, columns=width)
            require_shape(f"{name}.targets", samples.targets, columns=outputs)
    longest = float(torch.linalg.vector_norm(deletion.forget.features, dim=1).max())
    if not longest <= deletion.feature_norm_bound:
        raise InvalidTensorError(
            f"forget.features: a row has norm {longest:.6g}, more than the model's declared bound "
            f"{deletion.model.feature_norm_bound:.6g}; it cannot be a training sample"
        )
    if deletion.released_before is not None:
        require_matrix("released_before", deletion.released_before, width, outputs)
    _require_statistics(deletion)
    if deletion.surrogate is not None:
        require_matrix("surrogate.features", deletion.surrogate.features, columns=width)
    elif deletion.options.method is Method.SURROGATE:
        raise InvalidOptionError("method: `surrogate` needs surrogate features, and there are none")


def _require_statistics(deletion: Deletion) -> None:
    statistics, model = deletion.statistics, deletion.model
    if statistics is None:
        if deletion.options.method is Method.STORED:
            raise InvalidOptionError("method: `stored` needs statistics, and none are stored")
        return
    require_fit(statistics, model)


def _admit(deletion: Deletion) -> None:
    # Whatever the method: does anything remain, and could the samples have been trained on?
    deletion.gates.append(gate.require_remainder(len(deletion.forget), deletion.model.n_samples))
    if deletion.statistics is None:
        return
    deletion.gates.append(gate.require_precise(deletion.statistics.relative_round_off))
    deletion.remaining = deletion.statistics.downdate(deletion.forget)
    deletion.gates.append(gate.downdate_passed())
    deletion.gates.append(
        gate.require_possible_rest(
            deletion.statistics,
            deletion.remaining,
            feature_norm_bound=deletion.feature_norm_bound,
            task=deletion.task,
        )
    )
