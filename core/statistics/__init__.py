"""Stored statistics: what stays of the training data, collected in one pass (METHOD §4)."""

from core.errors import InvalidOptionError, InvalidTensorError
from core.problem import LinearModel
from core.statistics.logistic import LogisticStatistics, collect_logistic, merge_logistic
from core.statistics.squared import StoredStatistics, collect, merge
from core.vocabulary import Loss

Statistics = StoredStatistics | LogisticStatistics

__all__ = [
    "LogisticStatistics",
    "Statistics",
    "StoredStatistics",
    "collect",
    "collect_logistic",
    "merge",
    "merge_logistic",
    "require_fit",
]


def require_fit(statistics: Statistics, model: LinearModel) -> None:
    """Check that statistics can be those of a model's training set.

    Args:
        statistics: Of either loss.
        model: The model.

    Raises:
        InvalidTensorError: The dimensions differ.
        InvalidOptionError: The loss or n differs.
    """
    loss = Loss.SQUARED if isinstance(statistics, StoredStatistics) else Loss.LOGISTIC
    if model.loss is not loss:
        raise InvalidOptionError(f"statistics: of {loss} loss, and the model has {model.loss}")
    found = (statistics.num_features, statistics.num_outputs)
    if found != (wanted := tuple(model.weights.shape)):
        raise InvalidTensorError(f"statistics: expected (d, C) = {wanted}, got {found}")
    if statistics.n_samples != model.n_samples:
        raise InvalidOptionError(
            f"statistics.n_samples: expected the model's {model.n_samples}, "
            f"got {statistics.n_samples}"
        )
