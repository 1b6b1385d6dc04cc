"""A trained logistic head with everything that its owner can register of it."""

import dataclasses
import secrets
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from core import digests
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.privacy import sigma_for
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Unlearned
from core.serialization import dump_statistics, dump_weights
from core.statistics import collect_logistic
from core.training import fit_logistic
from core.vocabulary import Loss, Method, RidgeConvention, Task

EPSILON, DELTA = 1.0, 1e-6


@dataclass(frozen=True)
class LogisticProblem:
    """One-vs-rest logistic regression with three classes, and its training data."""

    features: NDArray[np.float64]
    labels: NDArray[np.int64]
    strength: float
    privacy: dict[str, object] | None = None
    policy: dict[str, object] = field(default_factory=dict)
    distance: float | None = None
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @classmethod
    def draw(cls, *, n: int = 300, d: int = 6, seed: int = 0) -> "LogisticProblem":
        """Draw one whose rows have a norm of 1 at most."""
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, n)
        features = random.normal(size=(n, d)) + 0.7 * random.normal(size=(3, d))[labels]
        features /= np.maximum(1.0, np.linalg.norm(features, axis=1, keepdims=True))
        return cls(features, labels, strength=0.01)

    def but(self, **changes: object) -> "LogisticProblem":
        """Return the same data, declared differently."""
        return dataclasses.replace(self, **changes)

    def with_output_noise(self, rows: NDArray[np.int64], *, deletions: float) -> "LogisticProblem":
        """Return it with noise that hides so many times what forgetting the rows leaves."""
        norm = deletions * self.left_by(rows)
        return self.but(
            privacy={
                "mechanism": "output-perturbation",
                "epsilon": EPSILON,
                "delta": DELTA,
                "sigma": sigma_for(EPSILON, DELTA, norm),
            }
        )

    def left_by(self, rows: NDArray[np.int64]) -> float:
        """Return the core's bound on the distance to retraining after forgetting some rows."""
        found = unlearn(
            self.model,
            self.samples(rows),
            statistics=self.statistics,
            task=Task.CLASSIFICATION,
            options=UnlearningOptions(Method.STORED),
        )
        assert isinstance(found, Unlearned)
        (bound,) = [item for item in found.bounds if item.name == "distance_to_retraining"]
        assert bound.value is not None
        return bound.value

    @property
    def ridge(self) -> Ridge:
        """The L2 term."""
        return Ridge(RidgeConvention.PER_SAMPLE, self.strength)

    @property
    def targets(self) -> NDArray[np.float64]:
        """One-hot rows."""
        return np.eye(3)[self.labels]

    def samples(self, rows: NDArray[np.int64]) -> SampleSet:
        """Some of the training samples as tensors."""
        return SampleSet(
            torch.from_numpy(self.features[rows]), torch.from_numpy(self.targets[rows])
        )

    @cached_property
    def everything(self) -> SampleSet:
        """The training set as tensors."""
        return self.samples(np.arange(len(self.labels)))

    @cached_property
    def weights(self) -> torch.Tensor:
        """The trained optimum."""
        return fit_logistic(self.everything, self.ridge).weights

    @cached_property
    def statistics(self):
        """The stored statistics."""
        return collect_logistic([self.everything], self.weights)

    @property
    def model(self) -> LinearModel:
        """The model as the core has it, without noise."""
        return LinearModel(
            self.weights, self.ridge, len(self.labels), 1.0, loss=Loss.LOGISTIC, privacy=None
        )

    def train(self) -> NDArray[np.float64]:
        """The trained optimum, in numpy."""
        return self.weights.numpy()

    def train_without(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Retrain on the rest: what unlearning is compared with."""
        rest = np.setdiff1d(np.arange(len(self.labels)), rows)
        return fit_logistic(self.samples(rest), self.ridge).weights.numpy()

    def manifest(self, name: str) -> dict[str, object]:
        """What its owner declares."""
        declared = {
            "name": name,
            "task": "classification",
            "loss": "logistic",
            "num_features": self.features.shape[1],
            "num_outputs": 3,
            "ridge": {"convention": "per_sample", "strength": self.strength},
            "n_samples": len(self.labels),
            "feature_norm_bound": 1.0,
            "policy": self.policy,
        }
        optional = {"privacy": self.privacy, "surrogate_distance": self.distance}
        return declared | {key: value for key, value in optional.items() if value is not None}

    def weights_file(self) -> bytes:
        """The trained weights as a client uploads them."""
        return dump_weights(self.weights)

    def statistics_file(self) -> bytes:
        """The stored statistics as a client uploads them."""
        return dump_statistics(self.statistics)

    def samples_file(self, rows: NDArray[np.int64]) -> bytes:
        """Some of its training samples as a client sends them."""
        return safetensors.numpy.save({"x": self.features[rows], "y": self.labels[rows]})

    def membership_file(self) -> bytes:
        """The keyed digests of all training rows."""
        found = sorted(digests.of_each(self.features, self.targets, self.key))
        rows = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)
        return safetensors.numpy.save(
            {"digests": rows.copy(), "key": np.frombuffer(self.key, np.uint8).copy()}
        )

    def surrogate_file(self) -> bytes:
        """Features that stand in for the training set's: here the same, for a distance of 0."""
        return safetensors.numpy.save({"x": self.features})
