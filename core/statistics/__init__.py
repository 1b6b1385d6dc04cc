"""Stored statistics: what stays of the training data, collected in one pass (METHOD §4)."""

from core.statistics.logistic import LogisticStatistics, collect_logistic, merge_logistic
from core.statistics.squared import StoredStatistics, collect, merge

Statistics = StoredStatistics | LogisticStatistics

__all__ = [
    "LogisticStatistics",
    "Statistics",
    "StoredStatistics",
    "collect",
    "collect_logistic",
    "merge",
    "merge_logistic",
]
