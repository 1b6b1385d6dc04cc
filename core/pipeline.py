"""unlearn(): the stages of one deletion, in order. Pure: no I/O, no clock, inputs never change."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core import bounds, gate, losses
from core.errors import (
    IllConditionedError,
    InvalidOptionError,
    InvalidTensorError,
    SolverError,
    StatisticsMismatchError,
)
from core.evaluation.scores import compare
from core.gate import GateFailedError
from core.hessian._estimate import HessianEstimate
from core.hessian.forget_curvature import forget_curvature
from core.hessian.paper_sdp import paper_sdp
from core.hessian.stored import stored
from core.newton import NewtonStep, newton_step
from core.options import UnlearningOptions
from core.perturbation import LossDifferences, measure
from core.problem import LinearModel, SampleSet, require_matrix
from core.results import Assumption, Bound, GateResult, Metrics, Refused, Unlearned
from core.statistics import StoredStatistics
from core.vocabulary import TIER_OF, Method, Task, Tier

Progress = Callable[[str, float], None]

# A norm may exceed its declared bound by the rounding of a float32 normalisation.
_NORM_SLACK = 1e-6


def ignore_progress(_stage: str, _fraction: float) -> None:
    """Tell nobody: the default of `unlearn`."""


@dataclass(slots=True)
class _Deletion:
    """What was asked for, and what the stages find on their way."""

    model: LinearModel
    forget: SampleSet
    statistics: StoredStatistics | None
    holdout: SampleSet | None
    task: Task
    options: UnlearningOptions
    progress: Progress
    gates: list[GateResult] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)

    @property
    def tier(self) -> Tier:
        return TIER_OF[self.options.method]

    @property
    def n_remaining(self) -> int:
        return self.model.n_samples - len(self.forget)

    @property
    def forgotten_shift(self) -> float:
        return self.model.ridge.forgotten_shift(len(self.forget))


def unlearn(
    model: LinearModel,
    forget: SampleSet,
    *,
    statistics: StoredStatistics | None = None,
    holdout: SampleSet | None = None,
    task: Task,
    options: UnlearningOptions,
    progress: Progress = ignore_progress,
) -> Unlearned | Refused:
    """Remove the influence of a forget set from a model, without the rest of its training data.

    Args:
        model: The model, at or near the optimum of its training objective.
        forget: D_f, members of the training set.
        statistics: Of the whole training set; required by method `stored`, downdated by any.
        holdout: Samples that were never trained on, for the scores.
        task: What the outputs mean.
        options: Method, seed, gate and the like.
        progress: Called with a stage (`perturb`, `estimate`, `step`, `bound`, `evaluate`) as it
            begins and the fraction of the whole that is done; may raise to cancel.

    Returns:
        `Unlearned` with new weights, statistics and every bound; or `Refused` when a gate failed.

    Raises:
        InvalidTensorError: Inputs do not belong together, or a forget sample is longer than R_x.
        InvalidOptionError: Method `stored` without statistics, or statistics of another n.
    """
    deletion = _Deletion(model, forget, statistics, holdout, task, options, progress)
    _require_consistent(deletion)
    try:
        return _run_stages(deletion)
    except GateFailedError as failure:
        return _refused(deletion, failure)
    except StatisticsMismatchError as error:
        return _refused(deletion, gate.downdate_failed(error))
    except (IllConditionedError, SolverError) as error:
        return _refused(deletion, gate.unsolvable(error))


def _run_stages(deletion: _Deletion) -> Unlearned:
    remaining = _admit(deletion)
    forget_gradient = losses.gradient(
        deletion.model.weights, deletion.forget, deletion.forgotten_shift
    )
    reliability = _foresee_reliability(deletion, forget_gradient)
    measured = _perturb(deletion)
    estimate = _estimate(deletion, remaining, measured)
    step = _step(deletion, estimate, forget_gradient)
    reliability = _review_reliability(deletion, estimate, step, forget_gradient, reliability)
    # The estimate's d² numbers are not needed any more when the bounds and scores take theirs.
    estimate_report = estimate.report
    del estimate
    found = _bound(deletion, remaining, step, forget_gradient, reliability)
    metrics = _evaluate(deletion, remaining, step)
    deletion.progress("evaluate", 1.0)
    return Unlearned(
        weights=step.weights,
        statistics=remaining,
        n_samples=deletion.n_remaining,
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        tier=deletion.tier,
        method=deletion.options.method,
        bounds=found,
        gates=tuple(deletion.gates),
        solvers=(estimate_report, step.report),
        metrics=metrics,
        seeds=dict(deletion.seeds),
        assumptions=_assumptions(found),
    )


# --- Before the stages -------------------------------------------------------------------------


def _require_consistent(deletion: _Deletion) -> None:
    width, outputs = deletion.model.weights.shape
    for name, samples in (("forget", deletion.forget), ("holdout", deletion.holdout)):
        if samples is not None:
            require_matrix(f"{name}.features", samples.features, columns=width)
            require_matrix(f"{name}.targets", samples.targets, columns=outputs)
    longest = float(torch.linalg.vector_norm(deletion.forget.features, dim=1).max())
    if longest > deletion.model.feature_norm_bound * (1.0 + _NORM_SLACK):
        raise InvalidTensorError(
            f"forget.features: a row has norm {longest:.6g}, more than the model's declared bound "
            f"{deletion.model.feature_norm_bound:.6g}; it cannot be a training sample"
        )
    _require_statistics(deletion)


def _require_statistics(deletion: _Deletion) -> None:
    statistics, model = deletion.statistics, deletion.model
    if statistics is None:
        if deletion.options.method is Method.STORED:
            raise InvalidOptionError("method: `stored` needs statistics, and none are stored")
        return
    require_matrix("statistics.cross", statistics.cross, *model.weights.shape)
    if statistics.n_samples != model.n_samples:
        raise InvalidOptionError(
            f"statistics.n_samples: expected the model's {model.n_samples}, "
            f"got {statistics.n_samples}"
        )


def _admit(deletion: _Deletion) -> StoredStatistics | None:
    # Whatever the method: does anything remain, and could the samples have been trained on?
    deletion.gates.append(gate.require_remainder(len(deletion.forget), deletion.model.n_samples))
    if deletion.statistics is None:
        return None
    deletion.gates.append(gate.require_precise(deletion.statistics.relative_round_off))
    remaining = deletion.statistics.downdate(deletion.forget)
    deletion.gates.append(gate.downdate_passed())
    return remaining


def _foresee_reliability(deletion: _Deletion, forget_gradient: Tensor) -> float:
    # Estimates are refused before anything dear is computed. Exact deletions need no estimate.
    if deletion.tier is Tier.EXACT:
        return 0.0
    options = deletion.options
    deletion.gates.append(gate.require_halves(len(deletion.forget)))
    if options.method is Method.PAPER_SDP and options.gate.require_identified:
        width = deletion.model.weights.shape[0]
        count = options.perturbation.equations(width)
        deletion.gates.append(gate.require_identified(count, width))
    reliability = gate.cross_fitted_residual(
        forget=deletion.forget,
        forget_gradient=forget_gradient,
        n_remaining=deletion.n_remaining,
        ridge=deletion.model.ridge,
        splits=options.gate.splits,
        seed=_seed(deletion, "gate"),
    )
    deletion.gates.append(gate.require_reliable("cross_fitted_residual", reliability, options.gate))
    return reliability


def _seed(deletion: _Deletion, purpose: str) -> int:
    # One stream a purpose, so that the gate's halves do not depend on how much was perturbed.
    purposes = ("gate", "perturbation")
    seed = (deletion.options.seed + purposes.index(purpose)) % 2**32
    deletion.seeds[purpose] = seed
    return seed


# --- The stages --------------------------------------------------------------------------------


def _perturb(deletion: _Deletion) -> LossDifferences | None:
    if deletion.options.method is not Method.PAPER_SDP:
        return None
    deletion.progress("perturb", 0.0)
    return measure(
        deletion.model,
        deletion.forget,
        deletion.options.perturbation,
        _seed(deletion, "perturbation"),
    )


def _estimate(
    deletion: _Deletion, remaining: StoredStatistics | None, measured: LossDifferences | None
) -> HessianEstimate:
    deletion.progress("estimate", 0.1)
    ridge, options = deletion.model.ridge, deletion.options
    if options.method is Method.STORED and remaining is not None:
        return stored(remaining, ridge)
    if measured is not None:
        return paper_sdp(
            measured,
            deletion.forget,
            deletion.n_remaining,
            ridge,
            floor=options.floor,
            solver=options.solver,
        )
    return forget_curvature(deletion.forget, deletion.n_remaining, ridge)


def _step(deletion: _Deletion, estimate: HessianEstimate, forget_gradient: Tensor) -> NewtonStep:
    deletion.progress("step", 0.6)
    training_gradient = None
    if deletion.tier is Tier.EXACT and deletion.statistics is not None:
        training_gradient = deletion.statistics.training_gradient(
            deletion.model.weights, deletion.model.ridge
        )
    return newton_step(deletion.model.weights, estimate.matrix, forget_gradient, training_gradient)


def _review_reliability(
    deletion: _Deletion,
    estimate: HessianEstimate,
    step: NewtonStep,
    forget_gradient: Tensor,
    reliability: float,
) -> float:
    # (7) is about n_r·H̄_f; what another estimate deviates from it in the step taken comes on top.
    if deletion.options.method is not Method.PAPER_SDP:
        return reliability
    curvature = forget_curvature(deletion.forget, deletion.n_remaining, deletion.model.ridge)
    reliability += gate.estimate_deviation(
        curvature=curvature.matrix,
        estimate=estimate.matrix,
        change=step.weights - deletion.model.weights,
        forget_gradient=forget_gradient,
    )
    deletion.gates.append(
        gate.require_reliable(
            "cross_fitted_residual_of_estimate", reliability, deletion.options.gate
        )
    )
    return reliability


def _bound(
    deletion: _Deletion,
    remaining: StoredStatistics | None,
    step: NewtonStep,
    forget_gradient: Tensor,
    reliability: float,
) -> tuple[Bound, ...]:
    deletion.progress("bound", 0.8)
    model = deletion.model
    if deletion.tier is Tier.EXACT and remaining is not None:
        return bounds.exact_bounds(remaining, step.weights, model.ridge)
    worst = bounds.worst_case_residual(
        change=step.weights - model.weights,
        forget_gradient=forget_gradient,
        forget_gradient_round_off=losses.gradient_round_off(
            model.weights, deletion.forget, deletion.forgotten_shift
        ),
        n_remaining=deletion.n_remaining,
        ridge=model.ridge,
        # Retain samples may be as long as forget samples may be.
        feature_norm_bound=model.feature_norm_bound * (1.0 + _NORM_SLACK),
        training_gradient_bound=model.gradient_norm_bound,
    )
    found = [
        *bounds.worst_case_bounds(worst, deletion.n_remaining, model.ridge),
        bounds.cross_fitted_estimate(reliability),
        *bounds.published_bounds(),
    ]
    if remaining is not None:
        found.append(bounds.measured_bound(remaining, step.weights, model.ridge))
    return tuple(found)


def _evaluate(deletion: _Deletion, remaining: StoredStatistics | None, step: NewtonStep) -> Metrics:
    deletion.progress("evaluate", 0.9)
    return compare(
        deletion.model,
        step.weights,
        forget=deletion.forget,
        holdout=deletion.holdout,
        remaining=remaining,
        task=deletion.task,
    )


# --- The answers -------------------------------------------------------------------------------


def _assumptions(found: tuple[Bound, ...]) -> tuple[Assumption, ...]:
    # Each once, in the order of the bounds that rest on them.
    return tuple(dict.fromkeys(stated for bound in found for stated in bound.assumptions))


def _refused(deletion: _Deletion, failure: GateFailedError) -> Refused:
    return Refused(
        cause=failure.cause,
        detail=failure.result.detail,
        remedy=failure.remedy,
        tier=deletion.tier,
        method=deletion.options.method,
        gates=(*deletion.gates, failure.result),
        seeds=dict(deletion.seeds),
    )
