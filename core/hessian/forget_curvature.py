"""Method `forget-curvature`: the forget set's mean Hessian for the retain set's (METHOD §4)."""

from core import curvature, losses
from core.hessian._estimate import HessianEstimate
from core.problem import LinearModel, SampleSet
from core.results import SolverReport


def forget_curvature(model: LinearModel, forget: SampleSet, n_remaining: int) -> HessianEstimate:
    """Return n_r·H̄_f, what (2) converges to with ever more perturbations.

    (n_r/n_f)·X_fᵀX_f + shift(n_r)·I for squared loss, and with σ(1−σ) as weights of the samples for
    each output of logistic loss: the ridge of the retain set is known and not estimated, so both
    ridge conventions have the same formula.

    Args:
        model: W, its loss and its ridge.
        forget: D_f, n_f samples.
        n_remaining: n_r.

    Returns:
        An estimate that is good when the forget set is large and drawn like the retain set. It
        has rank min(n_f, d) beside the ridge: with one sample it says next to nothing.
    """
    scale = n_remaining / len(forget)
    matrix = losses.OF[model.loss].hessian(model.weights, forget.features).mul_(scale)
    curvature.shift(matrix, model.ridge.shift(n_remaining))
    report = SolverReport(
        name="forget-curvature",
        status="closed-form",
        figures={"rank_at_most": float(min(forget.features.shape)), "scale": scale},
    )
    return HessianEstimate(matrix, report)
