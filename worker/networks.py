"""What a deletion from a network is computed from: its layers, and samples that pass through them.

Samples are stored as they were sent. What the frozen layers make of inputs is computed here, on the
device that computes the rest.
"""

from dataclasses import dataclass
from typing import Unpack

import safetensors.torch
from sqlalchemy.orm import Session
from torch import Tensor

from app.registry import service as registry
from app.registry.models import Revision
from app.registry.samples import Samples
from app.registry.schemas import Manifest, SampleKind
from app.services import Services
from core.linearised import pipeline
from core.linearised.linearisation import Linearisation
from core.linearised.networks import load_network
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.problem import SampleSet
from core.results import AnyStatistics, Refused, Unlearned
from core.serialization import load_samples, load_statistics, load_weights
from worker.problems import Asked, ridge_of, sample_set


@dataclass(frozen=True, slots=True, eq=False)
class NetworkProblem:
    """A deletion from a network that is linear in its last layers.

    Attributes:
        model: The model before.
        forget: D_f as it was sent, each sample flattened.
        statistics: Stored ones, if any.
        holdout: Samples that were never trained on, if any; as `forget`.
    """

    model: MixedLinearModel
    forget: SampleSet
    statistics: AnyStatistics | None
    holdout: SampleSet | None

    def unlearn(self, **asked: Unpack[Asked]) -> Unlearned | Refused:
        """Compute it."""
        return pipeline.unlearn(
            self.model,
            self._through_frozen_layers(self.forget),
            statistics=self.statistics,
            holdout=None if self.holdout is None else self._through_frozen_layers(self.holdout),
            **asked,
        )

    def _through_frozen_layers(self, samples: SampleSet) -> FeatureSamples:
        network = self.model.linearisation.network
        return FeatureSamples(network.features_of(samples.features), samples.targets)


def load(
    session: Session, services: Services, revision: Revision, forget: Samples
) -> NetworkProblem:
    """Read what a network was registered with, as it is at a revision."""
    store, model = services.store, registry.get(session, revision.model_id)
    manifest = registry.manifest_of(model)
    statistics = registry.load_statistics(session, store, revision)
    holdout = registry.load_holdout(session, store, model)
    return NetworkProblem(
        model=MixedLinearModel(
            linearisation=_linearisation(
                manifest, registry.load_network(session, store, model) or b""
            ),
            weights=load_weights(registry.load_weights(session, store, revision)),
            ridge=ridge_of(manifest),
            n_samples=revision.n_samples,
            jacobian_norm_bound=manifest.feature_norm_bound,
            gradient_norm_bound=revision.gradient_norm_bound,
            privacy=None if manifest.privacy is None else manifest.privacy.to_core(),
        ),
        forget=sample_set(forget),
        statistics=None if statistics is None else load_statistics(statistics),
        holdout=None if holdout is None else load_samples(holdout, manifest.num_outputs),
    )


def _linearisation(manifest: Manifest, centre: bytes) -> Linearisation:
    declared = manifest.network
    if declared is None:
        raise ValueError("manifest.network: a linear head has none")
    tensors: dict[str, Tensor] = safetensors.torch.load(centre)
    spec = declared.to_core(manifest.num_outputs)
    head_only = declared.samples is SampleKind.FEATURES
    return Linearisation(load_network(spec, tensors, head_only=head_only))
