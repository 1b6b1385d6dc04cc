"""The owner's side: train while the data is there, keep statistics, and let the data go."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.problem import Ridge, SampleSet
from core.statistics import Statistics, collect, collect_logistic
from core.training import fit_logistic
from core.vocabulary import Loss, RidgeConvention
from demo.data import FEATURE_NORM_BOUND, Dataset

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A linear classifier on one-hot targets with what its owner keeps of the training set."""

    dataset: Dataset
    ridge: Ridge
    weights: Tensor
    statistics: Statistics
    loss: Loss = Loss.SQUARED

    def manifest(self, name: str) -> dict[str, object]:
        """Return what the owner declares of the model at registration."""
        d, num_classes = self.weights.shape
        return {
            "name": name,
            "task": "classification",
            "loss": self.loss.value,
            "num_features": d,
            "num_outputs": num_classes,
            "ridge": {
                "convention": self.ridge.convention.value,
                "strength": self.ridge.strength,
            },
            "n_samples": len(self.dataset.train_labels),
            "feature_norm_bound": FEATURE_NORM_BOUND,
            "backbone": {"provenance": "public", "description": self.dataset.name},
        }


def train(dataset: Dataset, strength: float, loss: Loss = Loss.SQUARED) -> TrainedModel:
    """Fit a classifier, and collect its statistics in one pass over batches."""
    ridge = Ridge(RidgeConvention.PER_SAMPLE, strength)
    targets = one_hot(dataset.train_labels, dataset.num_classes)
    weights = fit(dataset.train_features, targets, ridge, loss)
    batches = _batches(dataset)
    statistics: Statistics = (
        collect_logistic(batches, weights) if loss is Loss.LOGISTIC else collect(batches)
    )
    return TrainedModel(dataset, ridge, weights, statistics, loss)


def fit(features: Tensor, targets: Tensor, ridge: Ridge, loss: Loss) -> Tensor:
    """Train to the optimum from the data itself."""
    if loss is Loss.LOGISTIC:
        return fit_logistic(SampleSet(features, targets), ridge).weights
    return fit_ridge(features, targets, ridge)


def fit_ridge(features: Tensor, targets: Tensor, ridge: Ridge) -> Tensor:
    """Train from the data itself: least squares on the features, stacked over √shift · I.

    By QR, on purpose: it shares nothing with the normal equations that the service solves, so
    agreement between the two means something.
    """
    d = features.shape[1]
    root = ridge.shift(len(features)) ** 0.5
    stacked = torch.vstack([features, root * torch.eye(d, dtype=torch.float64)])
    right = torch.vstack([targets, targets.new_zeros(d, targets.shape[1])])
    weights: Tensor = torch.linalg.lstsq(stacked, right, driver="gels").solution
    return weights


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return the rows of the identity that the labels name, float64."""
    return torch.nn.functional.one_hot(labels, num_classes).to(torch.float64)


def _batches(dataset: Dataset) -> Iterator[SampleSet]:
    for start in range(0, len(dataset.train_labels), _BATCH):
        rows = slice(start, start + _BATCH)
        yield SampleSet(
            dataset.train_features[rows],
            one_hot(dataset.train_labels[rows], dataset.num_classes),
        )
