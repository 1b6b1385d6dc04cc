"""Tier `exact` for networks: the Gram matrix of the Jacobian's rows is stored (METHOD §6)."""

from core import bounds, gate
from core.errors import InvalidOptionError
from core.linearised.bounds import of_network
from core.linearised.deletion import NetworkDeletion, NetworkOutcome
from core.linearised.rows import row_model, rows_of
from core.statistics import StoredStatistics
from core.tiers import exact
from core.tiers._deletion import Deletion
from core.vocabulary import Task


def run(deletion: NetworkDeletion) -> NetworkOutcome:
    """Move the weights to the optimum of the retained statistics.

    Args:
        deletion: An admitted deletion.

    Returns:
        Weights that equal retraining of the linear part to round-off, with computed bounds.

    Raises:
        InvalidOptionError: No Gram matrix is stored.
        GateFailedError: The forget set cannot have been in the training set.
        StatisticsMismatchError: Likewise.
        IllConditionedError: The retain Hessian has no Cholesky factor, or something overflows.
    """
    found = exact.run(admitted_rows(deletion))
    return NetworkOutcome(
        weights=found.weights,
        remaining=found.remaining,
        bounds=of_network(found.bounds),
        solvers=found.solvers,
        gradient_norm_bound=bounds.carried_gradient_norm(found.bounds),
        retain_losses=found.retain_losses,
    )


def admitted_rows(deletion: NetworkDeletion) -> Deletion:
    """Return the deletion of the rows, downdated, once they can have been trained on.

    Args:
        deletion: From a network with a stored Gram matrix.

    Returns:
        A deletion from the linear model of the rows.

    Raises:
        InvalidOptionError: No Gram matrix is stored.
        GateFailedError: The forget set cannot have been in the training set.
        StatisticsMismatchError: Likewise.
    """
    statistics = deletion.statistics
    if not isinstance(statistics, StoredStatistics):
        raise InvalidOptionError("method: `stored` needs a Gram matrix, and none is stored")
    rows = Deletion(
        row_model(deletion.model),
        rows_of(deletion.model.linearisation, deletion.forget),
        statistics,
        surrogate=None,
        holdout=None,
        task=Task.REGRESSION,
        options=deletion.options,
        membership=deletion.membership,
        progress=deletion.progress,
        gates=deletion.gates,
        seeds=deletion.seeds,
    )
    rows.gates.append(gate.require_precise(statistics.relative_round_off))
    rows.remaining = statistics.downdate(rows.forget)
    rows.gates.append(gate.downdate_passed())
    rows.gates.append(
        gate.require_possible_rest(
            statistics,
            rows.remaining,
            feature_norm_bound=deletion.jacobian_norm_bound,
            task=Task.REGRESSION,
        )
    )
    return rows
