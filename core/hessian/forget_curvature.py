"""Method `forget-curvature`: the forget set's mean Hessian for the retain set's (METHOD §4)."""

from core.hessian._estimate import HessianEstimate
from core.losses import hessian
from core.problem import Ridge, SampleSet
from core.results import SolverReport


def forget_curvature(forget: SampleSet, n_remaining: int, ridge: Ridge) -> HessianEstimate:
    """Return n_r·H̄_f, what (2) converges to with ever more perturbations.

    (n_r/n_f)·X_fᵀX_f + shift(n_r)·I: the ridge of the retain set is known and not estimated, so
    both ridge conventions have the same formula.

    Args:
        forget: D_f, n_f samples.
        n_remaining: n_r.
        ridge: The L2 term.

    Returns:
        An estimate that is good when the forget set is large and drawn like the retain set. It
        has rank min(n_f, d) beside the ridge: with one sample it says next to nothing.
    """
    scale = n_remaining / len(forget)
    matrix = hessian(forget).mul_(scale)
    matrix.diagonal().add_(ridge.shift(n_remaining))
    report = SolverReport(
        name="forget-curvature",
        status="closed-form",
        figures={"rank_at_most": float(min(forget.features.shape)), "scale": scale},
    )
    return HessianEstimate(matrix, report)
