"""Holds the service's weights against true retraining: the demo has the data, the service not."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core import losses
from core.problem import SampleSet
from demo.scenarios import Scenario
from demo.training import TrainedModel, fit, one_hot


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of correct answers on the three sets that matter."""

    test: float
    retain: float
    forget: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the unlearned weights are worth (METHOD §3: doing nothing scores 1, retraining 0)."""

    rho_w: float
    rho_g: float
    before: Accuracies
    after: Accuracies
    retrained: Accuracies


def compare(scenario: Scenario, unlearned: Tensor) -> Comparison:
    """Retrain without the forget set and measure how far the unlearned weights are from that."""
    trained = scenario.registration.trained
    features = trained.dataset.train_features
    targets = one_hot(trained.dataset.train_labels, trained.dataset.num_classes)
    kept = torch.ones(len(features), dtype=torch.bool)
    kept[scenario.forget] = False
    retrained = fit(features[kept], targets[kept], trained.ridge, trained.loss)

    def gradient(rows: Tensor, weights: Tensor) -> Tensor:
        # `per_sample` ridge: each sample carries its share of the L2 term.
        share = trained.ridge.shift(int(rows.sum()))
        samples = SampleSet(features[rows], targets[rows])
        return losses.OF[trained.loss].gradient(weights, samples, share)

    return Comparison(
        rho_w=_ratio(unlearned - retrained, trained.weights - retrained),
        rho_g=_ratio(gradient(kept, unlearned), gradient(~kept, trained.weights)),
        before=_accuracies(trained, kept, trained.weights),
        after=_accuracies(trained, kept, unlearned),
        retrained=_accuracies(trained, kept, retrained),
    )


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    return float(numerator.norm() / denominator.norm())


def _accuracies(trained: TrainedModel, kept: Tensor, weights: Tensor) -> Accuracies:
    dataset = trained.dataset

    def accuracy(features: Tensor, labels: Tensor) -> float:
        return float(((features @ weights).argmax(dim=1) == labels).double().mean())

    return Accuracies(
        test=accuracy(dataset.test_features, dataset.test_labels),
        retain=accuracy(dataset.train_features[kept], dataset.train_labels[kept]),
        forget=accuracy(dataset.train_features[~kept], dataset.train_labels[~kept]),
    )
