"""Tier `surrogate`: public or synthetic features stand in for the training set's (METHOD §4)."""

import torch
from torch import Tensor

from core import bounds, gate
from core.bounds import SurrogateDistance
from core.errors import InvalidOptionError
from core.hessian._estimate import HessianEstimate
from core.hessian.surrogate import surrogate_curvature
from core.newton import newton_step
from core.problem import Surrogate
from core.results import Bound, GateResult
from core.rounding import UNIT_ROUND_OFF, gamma, upward
from core.tiers._deletion import Deletion, Outcome
from core.tiers._exchangeability import require_exchangeable
from core.tiers._inspection import inspect
from core.tiers._worst_case import worst_case
from core.vocabulary import Loss, Standing

_BETTER = (
    "declare the surrogate's distance (measured while the training data was there), take a "
    "surrogate that is more like the training set, store statistics (method `stored`) or retrain"
)


def run(deletion: Deletion) -> Outcome:
    """Take the Newton step with a surrogate's curvature, and say on what condition it is good.

    Args:
        deletion: An admitted deletion with surrogate features.

    Returns:
        Weights with conditional bounds and the worst case; nothing certifies.

    Raises:
        InvalidOptionError: There are no surrogate features.
        GateFailedError: The step might do harm, or cannot be judged.
        IllConditionedError: The estimate has no Cholesky factor, or something overflows.
    """
    surrogate, model = deletion.surrogate, deletion.model
    if surrogate is None:
        raise InvalidOptionError("method: `surrogate` needs surrogate features, and there are none")
    if surrogate.distance is None:
        # Only then does anything rest on what the forget set is like.
        deletion.gates.append(gate.require_halves(len(deletion.forget), remedy=_BETTER))
    forget_gradient = deletion.forget_gradient()
    deletion.progress("estimate", 0.1)
    estimate = surrogate_curvature(model, surrogate, deletion.forget)
    deletion.progress("step", 0.6)
    step = newton_step(model.weights, estimate.matrix, forget_gradient)
    distance = _distance(deletion, surrogate, estimate)
    deletion.progress("bound", 0.8)
    change = step.weights - model.weights
    residual = _residual(deletion, surrogate, estimate, change, distance)
    deletion.gates.append(_require_harmless(deletion, residual, distance, forget_gradient))
    found = _bounds(deletion, change, residual, distance)
    if surrogate.distance is None:
        deletion.gates.append(require_exchangeable(deletion))
    seen = inspect(deletion, step.weights)
    found = (*found, *seen.bounds)
    return Outcome(
        weights=step.weights,
        remaining=seen.remaining,
        bounds=found,
        solvers=(estimate.report, step.report),
        gradient_norm_bound=bounds.carried_gradient_norm(found),
        retain_losses=seen.retain_losses,
    )


def _distance(
    deletion: Deletion, surrogate: Surrogate, estimate: HessianEstimate
) -> SurrogateDistance:
    if surrogate.distance is not None:
        return SurrogateDistance(surrogate.distance, Standing.ATTESTED)
    value = gate.estimated_surrogate_distance(
        deletion.model,
        surrogate,
        deletion.forget,
        estimate.matrix,
        splits=deletion.options.gate.splits,
        seed=deletion.seed("gate"),
    )
    return SurrogateDistance(value, Standing.ASSUMED)


def _residual(
    deletion: Deletion,
    surrogate: Surrogate,
    estimate: HessianEstimate,
    change: Tensor,
    distance: SurrogateDistance,
) -> float:
    model = deletion.model
    return bounds.conditional_residual(
        loss=model.loss,
        estimate=estimate.matrix,
        estimate_round_off=_estimate_round_off(deletion, surrogate.features),
        change=change,
        forget_gradient=deletion.forget_gradient(),
        forget_gradient_round_off=deletion.forget_gradient_round_off(),
        distance=distance.value,
        n_samples=model.n_samples,
        n_remaining=deletion.n_remaining,
        ridge=model.ridge,
        feature_norm_bound=deletion.feature_norm_bound,
    )


def _bounds(
    deletion: Deletion, change: Tensor, residual: float, distance: SurrogateDistance
) -> tuple[Bound, ...]:
    model = deletion.model
    return (
        *bounds.surrogate_bounds(
            residual,
            distance,
            loss=model.loss,
            training_gradient_bound=model.gradient_norm_bound,
            n_remaining=deletion.n_remaining,
            ridge=model.ridge,
        ),
        *worst_case(deletion, change),
    )


def _require_harmless(
    deletion: Deletion, residual: float, distance: SurrogateDistance, forget_gradient: Tensor
) -> GateResult:
    size = float(torch.linalg.norm(forget_gradient))
    word = "bounded" if distance.standing is Standing.ATTESTED else "estimated"
    # Where nothing is to be removed, no step is taken and nothing is left over.
    return gate.require_reliable(
        "surrogate_residual",
        residual / size if size > 0 else 0.0,
        deletion.options.gate,
        finding=f"{word} residual, with the surrogate at a distance of {distance.value:.3g},",
        remedy=_BETTER,
    )


def _estimate_round_off(deletion: Deletion, features: Tensor) -> float:
    # Sums of n_S and of n_f products, scaled and subtracted; for logistic loss each weight σ' may
    # be off by the rounding of its margin (|σ''| < 0.1) and of σ itself.
    model, forget = deletion.model, deletion.forget.features
    width = model.weights.shape[0]
    scale = model.n_samples / features.shape[0]
    squares = scale * float(features.square().sum()) + float(forget.square().sum())
    rounded = gamma(features.shape[0] + len(forget) + 8)
    if model.loss is Loss.LOGISTIC:
        reach = max(
            float(torch.linalg.vector_norm(rows, dim=1).max()) for rows in (features, forget)
        )
        length = float(torch.linalg.vector_norm(model.weights, dim=0).max())
        rounded += 0.1 * gamma(width) * reach * length + 20.0 * UNIT_ROUND_OFF
    return upward(rounded * squares + gamma(4) * model.ridge.shift(deletion.n_remaining))
