"""unlearn() for mixed-linear networks: as `core.pipeline`, matrix-free where D×D would not fit."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from core import gate
from core.errors import InvalidOptionError, InvalidTensorError
from core.gate import GateFailedError
from core.linearised import estimated, exact, sketched
from core.linearised.deletion import NetworkDeletion, NetworkOutcome
from core.linearised.evaluation import compare
from core.linearised.options import HeadSolver
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.linearised.sketch import SketchStatistics
from core.options import UnlearningOptions
from core.pipeline import ignore_progress
from core.problem import require_matrix
from core.results import AnyStatistics, GateResult, Refused, Unlearned
from core.statistics import StoredStatistics
from core.tiers._answer import answer
from core.tiers._deletion import Progress
from core.vocabulary import Mechanism, Method, RefusalCause, Standing, Task, Tier

_TIERS: Mapping[Tier, Callable[[NetworkDeletion], NetworkOutcome]] = {
    Tier.EXACT: exact.run,
    Tier.CERTIFIED: sketched.run,
    Tier.ESTIMATED: estimated.run,
}


_METHODS = (Method.STORED, Method.SKETCH, Method.FORGET_CURVATURE)


def unlearn(
    model: MixedLinearModel,
    forget: FeatureSamples,
    *,
    statistics: AnyStatistics | None = None,
    holdout: FeatureSamples | None = None,
    task: Task,
    options: UnlearningOptions,
    solver: HeadSolver = HeadSolver.AUTO,
    membership: Standing = Standing.ATTESTED,
    noise_key: bytes | None = None,
    released_before: Tensor | None = None,
    progress: Progress = ignore_progress,
) -> Unlearned | Refused:
    """Remove the influence of a forget set from the linear part of a network.

    Args:
        model: The network, at or near the optimum of its training objective.
        forget: D_f, members of the training set.
        statistics: Of the whole training set: the Gram matrix of the Jacobian's rows, required by
            `stored`, or a sketch, required by `stored-sketch`; downdated by any method.
        holdout: Samples that were never trained on, for the scores.
        task: What the outputs mean.
        options: Method (`stored`, `stored-sketch` or `forget-curvature`), seed, gate, anchor.
        solver: How the system of `forget-curvature` is solved; by size, and reported, if `AUTO`.
        membership: As for `core.pipeline.unlearn`.
        noise_key: As for `core.pipeline.unlearn`.
        released_before: As for `core.pipeline.unlearn`, shape (D, 1).
        progress: As for `core.pipeline.unlearn`.

    Returns:
        `Unlearned` with new weights of shape (D, 1), statistics and every bound; or `Refused`.

    Raises:
        InvalidTensorError: Inputs do not belong together.
        InvalidOptionError: Something that the method needs is missing, or does not belong to the
            network.
    """
    deletion = NetworkDeletion(
        model,
        forget,
        statistics,
        holdout,
        task,
        options,
        solver,
        membership,
        progress,
        released_before,
    )
    _require_consistent(deletion)
    return answer(deletion, _find_outcome, compare, noise_key)


def _find_outcome(deletion: NetworkDeletion) -> NetworkOutcome:
    deletion.gates.append(gate.require_remainder(len(deletion.forget), deletion.model.n_samples))
    deletion.gates.append(_require_norms(deletion))
    return _TIERS[deletion.tier](deletion)


def _require_norms(deletion: NetworkDeletion) -> GateResult:
    # Every bound rests on ‖J(x)‖ ≤ R_J, which only here can be computed.
    norms = deletion.model.linearisation.norms(deletion.forget.features)
    longest, limit = float(norms.max()), deletion.jacobian_norm_bound
    result = GateResult(
        "jacobian_within_bound",
        longest <= limit,
        longest if math.isfinite(longest) else None,
        limit,
        f"the largest Jacobian of a forget sample has the norm {longest:.6g}",
    )
    if not result.passed:
        raise GateFailedError(
            result,
            RefusalCause.NOT_IN_TRAINING_SET,
            "a sample of the training set is within the declared feature_norm_bound: send the "
            "samples exactly as the network was trained on them",
        )
    return result


def _require_consistent(deletion: NetworkDeletion) -> None:
    model, statistics = deletion.model, deletion.statistics
    for name, samples in (("forget", deletion.forget), ("holdout", deletion.holdout)):
        if samples is not None:
            _require_samples(name, samples, model)
    if deletion.released_before is not None:
        require_matrix("released_before", deletion.released_before, *model.weights.shape)
    method = deletion.options.method
    if method not in _METHODS:
        raise InvalidOptionError(
            f"method: a network has no `{method}`; take `stored`, `stored-sketch` or "
            "`forget-curvature`"
        )
    needed = {Method.STORED: StoredStatistics, Method.SKETCH: SketchStatistics}.get(method)
    if needed is not None and not isinstance(statistics, needed):
        found = "none are stored" if statistics is None else f"got {type(statistics).__name__}"
        raise InvalidOptionError(f"method: `{method}` needs {needed.__name__}, and {found}")
    if method is Method.SKETCH and model.privacy is not None:
        raise InvalidOptionError(
            "privacy: the bound of a sketch holds with a probability, which no (ε, δ) here "
            "accounts for; store a Gram matrix, or declare no noise"
        )
    if model.privacy is not None and model.privacy.mechanism is Mechanism.OBJECTIVE:
        raise InvalidOptionError(
            "privacy.mechanism: squared loss has no objective perturbation here; declare output "
            "perturbation"
        )
    if statistics is not None:
        _require_statistics(statistics, model)


def _require_samples(name: str, samples: FeatureSamples, model: MixedLinearModel) -> None:
    outputs = model.linearisation.num_outputs
    require_matrix(f"{name}.targets", samples.targets, columns=outputs)
    expected = model.linearisation.feature_shape
    if (found := tuple(samples.features.shape[1:])) != expected:
        raise InvalidTensorError(
            f"{name}.features: expected {expected} a sample, as the frozen part of the network "
            f"leaves them, got {found}"
        )


def _require_statistics(statistics: AnyStatistics, model: MixedLinearModel) -> None:
    outputs, width = model.linearisation.num_outputs, model.linearisation.num_parameters
    if isinstance(statistics, StoredStatistics):
        found = (statistics.num_features, statistics.num_outputs, statistics.n_samples)
        expected = (width, 1, model.n_samples * outputs)
    elif isinstance(statistics, SketchStatistics):
        found = (statistics.num_parameters, 1, statistics.n_samples)
        expected = (width, 1, model.n_samples)
    else:
        raise InvalidOptionError(
            f"statistics: of logistic loss, {type(statistics).__name__}, and a network's is squared"
        )
    if found != expected:
        raise InvalidTensorError(
            f"statistics: expected (D, columns, n) = {expected}, got {found}; a Gram matrix "
            "counts C rows a sample"
        )
