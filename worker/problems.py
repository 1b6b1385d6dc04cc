"""What a deletion from a linear head is computed from; `worker.networks` has that of a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypedDict, Unpack

import safetensors.torch
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.registry import service as registry
from app.registry.models import Revision
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.services import Services
from core import pipeline
from core.linearised.sketch import SketchStatistics
from core.options import UnlearningOptions
from core.problem import LinearModel, Ridge, SampleSet, Surrogate
from core.results import Refused, Unlearned
from core.serialization import load_samples, load_statistics, load_weights
from core.statistics import Statistics
from core.vocabulary import Standing, Task

Progress = Callable[[str, float], None]


class Asked(TypedDict):
    """What a deletion is asked with, whatever the model: `core.pipeline.unlearn` describes each."""

    task: Task
    options: UnlearningOptions
    membership: Standing
    noise_key: bytes | None
    progress: Progress


class Problem(Protocol):
    """A model, what is stored of its training set, and the samples that it shall forget.

    Records of the core, so that all of it can be brought to a device.
    """

    def unlearn(self, **asked: Unpack[Asked]) -> Unlearned | Refused:
        """Compute the deletion, as `core.pipeline.unlearn` describes it."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearProblem:
    """A deletion from a linear head.

    Attributes:
        model: The model before.
        forget: D_f.
        statistics: Stored ones, if any.
        surrogate: Stand-in for the training features, if any.
        holdout: Samples that were never trained on, if any.
    """

    model: LinearModel
    forget: SampleSet
    statistics: Statistics | None
    surrogate: Surrogate | None
    holdout: SampleSet | None

    def unlearn(self, **asked: Unpack[Asked]) -> Unlearned | Refused:
        """Compute it."""
        return pipeline.unlearn(
            self.model,
            self.forget,
            statistics=self.statistics,
            surrogate=self.surrogate,
            holdout=self.holdout,
            **asked,
        )


def load(
    session: Session, services: Services, revision: Revision, forget: Samples
) -> LinearProblem:
    """Read what a linear head was registered with, as it is at a revision."""
    store, model = services.store, registry.get(session, revision.model_id)
    manifest = registry.manifest_of(model)
    statistics = registry.load_statistics(session, store, revision)
    surrogate = registry.load_surrogate(session, store, model)
    holdout = registry.load_holdout(session, store, model)
    return LinearProblem(
        model=LinearModel(
            weights=load_weights(registry.load_weights(session, store, revision)),
            ridge=ridge_of(manifest),
            n_samples=revision.n_samples,
            feature_norm_bound=manifest.feature_norm_bound,
            gradient_norm_bound=revision.gradient_norm_bound,
            loss=manifest.loss,
            privacy=None if manifest.privacy is None else manifest.privacy.to_core(),
        ),
        forget=sample_set(forget),
        statistics=None if statistics is None else _statistics(statistics),
        surrogate=None
        if surrogate is None
        else Surrogate(_features(surrogate), registry.declared_distance(manifest, revision)),
        holdout=None if holdout is None else load_samples(holdout, manifest.num_outputs),
    )


def ridge_of(manifest: Manifest) -> Ridge:
    """Return the declared L2 term in the core's words."""
    return Ridge(manifest.ridge.convention, manifest.ridge.strength)


def sample_set(samples: Samples) -> SampleSet:
    """Return samples as tensors."""
    return SampleSet(torch.from_numpy(samples.features), torch.from_numpy(samples.targets))


def _statistics(content: bytes) -> Statistics:
    found = load_statistics(content)
    if isinstance(found, SketchStatistics):
        # The registry takes none for a linear head.
        raise TypeError("statistics: a sketch, but the model is a linear head")
    return found


def _features(surrogate: bytes) -> Tensor:
    # Checked and written in this form by the registry.
    return safetensors.torch.load(surrogate)["x"].to(torch.float64)
