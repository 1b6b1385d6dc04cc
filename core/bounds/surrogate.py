r"""A surrogate's Hessian: METHOD (5) on the condition that it is as near as somebody says.

With q = ∇_f, Ĥ = nH̄_S − H_f + shift(n_r)I and V the step that was taken, for each output

    ∇L(W+V; D_r) = g* + (ĤV − q) + n(H̄ − H̄_S)V + R(V),      H̄ = H(W; D)/n without the ridge,

where g* is attested to be small, the second term is computed, the third is at most nΔ‖v‖ for a
distance Δ ≥ ‖H̄ − H̄_S‖₂, and R is the second-order remainder of logistic loss. G_r is not here, so
(5) is used with the smaller of two bounds on Σ_r|R_i|, t_i = x_i·v, |t_i| ≤ u = R_x‖v‖:

    (γ/2) Σt² ≤ (γ/2) n_r u²,
    Σσ'(z_i)(e^{|t_i|} − 1 − |t_i|) ≤ ((e^u − 1 − u)/u²)·vᵀH_rv,
    vᵀH_rv ≤ vᵀ(Ĥ − shift·I)v + nΔ‖v‖²  (no ridge in H_r here)

(|σ''| ≤ σ', so σ' grows at most like e^s along the way; Bach 2010). All of it is true if Δ is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core import curvature
from core.bounds._assumptions import (
    ATTESTED_LOGISTIC_OBJECTIVE,
    ATTESTED_MEMBERSHIP,
    ATTESTED_OBJECTIVE,
    ATTESTED_OPTIMUM,
    ATTESTED_SIZE,
    ROUND_OFF_MODEL,
)
from core.bounds._parts import distance_bound, finite
from core.losses.logistic import CURVATURE_LIPSCHITZ
from core.problem import Ridge
from core.results import Assumption, Bound
from core.rounding import gamma, upward
from core.vocabulary import Loss, Standing

# e^u overflows long after the other bound is the smaller one.
_FARTHEST = 30.0
_SMALL = 0.01


@dataclass(frozen=True, slots=True)
class SurrogateDistance:
    """How far a surrogate is taken to be from the training set.

    Attributes:
        value: Δ >= ‖H̄ − H̄_S‖₂, or an estimate of it along the step.
        standing: `attested` where the owner declared it, `assumed` where it was estimated.
    """

    value: float
    standing: Standing

    def assumption(self) -> Assumption:
        """Return what the bounds rest on, with the figure."""
        if self.standing is Standing.ATTESTED:
            text = (
                "the mean Hessians of the training set and of the surrogate features, without the "
                f"ridge and at the weights before the deletion, differ by at most {self.value:.6g} "
                "in the spectral norm for every output, as declared; it was declared of the "
                "training set and the weights at registration, and is taken to hold still after "
                "any deletion since"
            )
        else:
            text = (
                "the mean Hessians of the training set and of the surrogate features differ by at "
                f"most {self.value:.6g} along the step of every output; estimated by halves of the "
                "forget set, for all outputs together, which takes it to be drawn like the "
                "training set, and not proved"
            )
        return Assumption(text, self.standing)


def conditional_residual(
    *,
    loss: Loss,
    estimate: Tensor,
    estimate_round_off: float,
    change: Tensor,
    forget_gradient: Tensor,
    forget_gradient_round_off: float,
    distance: float,
    n_samples: int,
    n_remaining: int,
    ridge: Ridge,
    feature_norm_bound: float,
) -> float:
    """Bound ‖∇L(W+V; D_r) − g*‖_F, what this deletion leaves, if the distance is true.

    Args:
        loss: Of the model.
        estimate: Ĥ, shape (d, d) or (C, d, d), float64.
        estimate_round_off: Bound on ‖Ĥ − exact Ĥ‖₂.
        change: V, shape (d, C), float64: released minus old weights.
        forget_gradient: ∇_f, shape (d, C), float64, with the forget set's share of the ridge.
        forget_gradient_round_off: Bound on its round-off, Frobenius norm.
        distance: Δ.
        n_samples: n.
        n_remaining: n_r.
        ridge: The L2 term.
        feature_norm_bound: R_x.

    Returns:
        A number >= the norm, sum form, outputs in quadrature; infinite where it overflows.
    """
    lengths = torch.linalg.vector_norm(change, dim=0)
    applied = curvature.times(estimate, change)
    sizes = curvature.times(estimate.abs(), change.abs()).add_(forget_gradient.abs())
    # Sums of d products, the subtraction and V itself, which is rounded once.
    evaluation = gamma(change.shape[0] + 4) * torch.linalg.vector_norm(sizes, dim=0)
    misfit = torch.linalg.vector_norm(applied - forget_gradient, dim=0) + evaluation
    total = misfit + (n_samples * distance + estimate_round_off) * lengths
    if loss is Loss.LOGISTIC:
        seen = (change * applied).sum(dim=0) - ridge.shift(n_remaining) * lengths.square()
        slack = (n_samples * distance + estimate_round_off) * lengths.square()
        # Once for Ĥv, once more for the product with v and for the ridge that is taken off.
        shifted = gamma(change.shape[0] + 8) * ridge.shift(n_remaining) * lengths.square()
        slack = slack + 2.0 * evaluation * lengths + shifted
        weighted = (seen + slack).clamp(min=0.0)
        total = total + _remainder(weighted, lengths, n_remaining, feature_norm_bound)
    return upward(float(torch.linalg.norm(total)) + forget_gradient_round_off)


def surrogate_bounds(
    residual: float,
    distance: SurrogateDistance,
    *,
    loss: Loss,
    training_gradient_bound: float,
    n_remaining: int,
    ridge: Ridge,
) -> tuple[Bound, Bound]:
    """Return (5) and (6) of tier `surrogate`. They hold on a condition, and certify nothing.

    Args:
        residual: From `conditional_residual`.
        distance: Δ and on whose word.
        loss: Of the model.
        training_gradient_bound: Bound on ‖g*‖_F.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        `residual_gradient_norm_conditional` and `distance_to_retraining_conditional`.

    Raises:
        IllConditionedError: The residual overflows float64.
    """
    logistic = loss is Loss.LOGISTIC
    assumptions = (
        distance.assumption(),
        ATTESTED_MEMBERSHIP,
        ATTESTED_LOGISTIC_OBJECTIVE if logistic else ATTESTED_OBJECTIVE,
        ATTESTED_SIZE,
        ATTESTED_OPTIMUM,
        ROUND_OFF_MODEL,
    )
    total = finite(upward(residual + training_gradient_bound))
    return (
        Bound(
            "residual_gradient_norm_conditional",
            "METHOD (5), with n·Δ‖V‖ for the first-order term",
            total,
            certifies=False,
            note="holds on the condition that the surrogate is as near as its first assumption "
            "says, which nothing here proves",
            assumptions=assumptions,
        ),
        distance_bound(
            "distance_to_retraining_conditional",
            total,
            n_remaining,
            ridge,
            assumptions,
            certifies=False,
        ),
    )


def _remainder(
    weighted: Tensor, lengths: Tensor, n_remaining: int, feature_norm_bound: float
) -> Tensor:
    reach = feature_norm_bound * lengths
    crude = 0.5 * CURVATURE_LIPSCHITZ * n_remaining * reach.square()
    near = reach.clamp(max=_FARTHEST)
    # (e^u−1−u)/u² = ½ + u/6 + …, below ½ + u/4 for u ≤ 1; computed, it would cancel there.
    growth = torch.where(
        near < _SMALL,
        0.5 + 0.25 * near,
        (torch.expm1(near) - near) / near.clamp(min=_SMALL).square(),
    )
    exponential = torch.where(reach > _FARTHEST, math.inf, growth * weighted)
    return feature_norm_bound * torch.minimum(crude, exponential)
