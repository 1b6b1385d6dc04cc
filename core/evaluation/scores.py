"""Loss and accuracy before and after a deletion."""

import torch
from torch import Tensor

from core.losses import loss
from core.problem import LinearModel, SampleSet
from core.results import Metrics, Score
from core.statistics import StoredStatistics
from core.vocabulary import Task


def score(weights: Tensor, samples: SampleSet, task: Task) -> Score:
    """Measure weights on samples.

    Args:
        weights: W, shape (d, C), float64.
        samples: n samples; one-hot targets for classification.
        task: What the outputs mean.

    Returns:
        Mean loss without the ridge and, for classification, the share of right answers.

    >>> two = torch.eye(2, dtype=torch.float64)
    >>> score(two, SampleSet(two, two), Task.CLASSIFICATION)
    Score(mean_loss=0.0, accuracy=1.0, n_samples=2)
    """
    accuracy = None
    if task is Task.CLASSIFICATION:
        answers = (samples.features @ weights).argmax(dim=1)
        right = answers == samples.targets.argmax(dim=1)
        accuracy = float(right.to(torch.float64).mean())
    return Score(loss(weights, samples) / len(samples), accuracy, len(samples))


def compare(
    model: LinearModel,
    weights: Tensor,
    *,
    forget: SampleSet,
    holdout: SampleSet | None,
    remaining: StoredStatistics | None,
    task: Task,
) -> Metrics:
    """Measure a deletion before and after, as far as there is data to measure on.

    Args:
        model: The model before.
        weights: W_u, shape (d, C), float64.
        forget: D_f.
        holdout: Samples that were never trained on, if any are registered.
        remaining: Statistics of the retain set, if any are stored.
        task: What the outputs mean.

    Returns:
        Scores; what could not be measured is None and named in `missing`.
    """
    missing = {}
    if holdout is None:
        missing["holdout"] = "no holdout was registered"
    if remaining is None:
        missing["retain_loss"] = "no statistics are stored"
    return Metrics(
        forget_before=score(model.weights, forget, task),
        forget_after=score(weights, forget, task),
        holdout_before=None if holdout is None else score(model.weights, holdout, task),
        holdout_after=None if holdout is None else score(weights, holdout, task),
        retain_loss_before=_retain_loss(remaining, model.weights, model),
        retain_loss_after=_retain_loss(remaining, weights, model),
        weight_change=float(torch.linalg.norm(weights - model.weights)),
        missing=missing,
    )


def _retain_loss(
    remaining: StoredStatistics | None, weights: Tensor, model: LinearModel
) -> float | None:
    return None if remaining is None else remaining.retain_loss(weights, model.ridge)
