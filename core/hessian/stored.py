"""Method `stored`: the retain Hessian itself, from downdated statistics (METHOD §4)."""

from core.hessian._estimate import HessianEstimate
from core.problem import Ridge
from core.results import SolverReport
from core.statistics import StoredStatistics


def stored(remaining: StoredStatistics, ridge: Ridge) -> HessianEstimate:
    """Return H_r = G − X_fᵀX_f + shift(n_r)·I.

    Args:
        remaining: Statistics of the retain set, that is, after the downdate.
        ridge: The L2 term.

    Returns:
        The retain Hessian; it differs from the exact one by at most `round_off` of the statistics.
    """
    return HessianEstimate(remaining.hessian(ridge), statistics_report(remaining))


def statistics_report(remaining: StoredStatistics) -> SolverReport:
    """Say that the retain Hessian is known, and how precisely.

    Args:
        remaining: Statistics of the retain set.

    Returns:
        A report with `statistics_round_off`.
    """
    return SolverReport(
        name="stored-statistics",
        status="direct",
        figures={"statistics_round_off": remaining.round_off},
    )
