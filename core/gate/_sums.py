"""What stored statistics of either loss say about the training set beside their own purpose."""

import torch
from torch import Tensor

from core.statistics import Statistics, StoredStatistics

# Beyond this a count can no longer be told from its neighbours.
_LARGEST_COUNT_ERROR = 0.25


def gram_round_off(statistics: Statistics) -> float:
    """Return a number >= ‖Ĝ − G‖₂.

    Args:
        statistics: Of either loss.

    Returns:
        The bound that travels with them.
    """
    if isinstance(statistics, StoredStatistics):
        return statistics.round_off
    return statistics.gram_round_off


def class_counts(statistics: Statistics) -> tuple[int, ...] | None:
    """Return how many samples each class has, if the targets were one-hot rows.

    YᵀY of one-hot rows is diagonal, with the counts on it, and they add up to n.

    Args:
        statistics: Of either loss.

    Returns:
        C whole numbers >= 0 that add up to n; None for other targets.
    """
    if isinstance(statistics, StoredStatistics):
        whole = statistics.target_gram.diagonal().round()
        # Beside the diagonal: classes that meet in a sample.
        misfit = statistics.target_gram - torch.diag(whole)
        slack = statistics.round_off + 1e-9 * statistics.n_samples
    else:
        # Sums of zeros and ones are exact.
        whole = statistics.target_sums.round()
        misfit, slack = statistics.target_sums - whole, 1e-9 * statistics.n_samples
    if not (slack < _LARGEST_COUNT_ERROR and float(misfit.abs_().max()) <= slack):
        return None
    counts = tuple(int(count) for count in whole.tolist())
    return counts if min(counts) >= 0 and sum(counts) == statistics.n_samples else None


def counts_are_broken(before: Statistics, rest: Statistics) -> bool:
    """Tell whether class counts that one-hot targets have are no longer such.

    Args:
        before: Statistics of the whole training set.
        rest: `before`, downdated.

    Returns:
        True where the samples that were taken off cannot have been members.
    """
    if not isinstance(rest, StoredStatistics):
        # Targets of a logistic model need not be one-hot, and its downdate counts each class.
        return False
    return class_counts(rest) is None and class_counts(before) is not None


def feature_sums(statistics: Statistics) -> Tensor | None:
    """Return Σx over the training set, if the statistics tell it.

    Args:
        statistics: Of either loss. Those of the squared loss tell it for one-hot targets, whose
            rows add up to 1: B·1 = Σ x.

    Returns:
        Shape (d,), float64.
    """
    if not isinstance(statistics, StoredStatistics):
        return statistics.feature_sums
    return None if class_counts(statistics) is None else statistics.cross.sum(dim=1)
