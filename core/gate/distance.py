"""How far is a surrogate from the training set, as far as the forget set can tell?"""

import torch
from torch import Tensor

from core import curvature, losses, newton
from core.gate.reliability import halvings
from core.problem import LinearModel, SampleSet, Surrogate


def estimated_surrogate_distance(
    model: LinearModel,
    surrogate: Surrogate,
    forget: SampleSet,
    estimate: Tensor,
    *,
    splits: int,
    seed: int,
) -> float:
    r"""Estimate ‖(H̄ − H̄_S)V‖_F / ‖V‖_F along the step, cross-fitted on the forget set.

    One half A of the forget set gives a step V_A = Ĥ⁻¹∇_A, the other half B stands for the training
    set: ‖(H̄_B − H̄_S)V_A‖/‖V_A‖, both ways, averaged over random splits. Fitted and judged by the
    same samples it would be off by their own curvature along their own step. The noise of H̄_B adds
    to the norm, so the estimate is above the truth, the more so the smaller the forget set: a
    single record says nothing. What S itself is off by, sampling noise included, is in it.

    Args:
        model: W, its loss and its ridge.
        surrogate: S.
        forget: D_f, at least 2 samples.
        estimate: Ĥ, shape (d, d) or (C, d, d), float64.
        splits: How many random halvings are averaged.
        seed: Of the random halvings.

    Returns:
        Δ̂ >= 0, in the units of the mean Hessian; 0 where no half takes a step.

    Raises:
        IllConditionedError: `estimate` has no Cholesky factor.
    """
    functions = losses.OF[model.loss]
    mean_surrogate = functions.hessian(model.weights, surrogate.features)
    mean_surrogate.div_(surrogate.features.shape[0])
    total = 0.0
    for halves in halvings(forget, splits=splits, seed=seed):
        for half, other in (halves, halves[::-1]):
            share = model.ridge.forgotten_shift(len(half))
            gradient = functions.gradient(model.weights, half, share)
            change = newton.solve(estimate, gradient)
            mean_other = functions.hessian(model.weights, other.features).div_(len(other))
            total += _along(mean_other.sub_(mean_surrogate), change)
    return total / (2 * splits)


def _along(difference: Tensor, change: Tensor) -> float:
    length = float(torch.linalg.norm(change))
    if length == 0:
        return 0.0
    return float(torch.linalg.norm(curvature.times(difference, change))) / length
