"""Which statistics of a network are stored, and how they are collected."""

import dataclasses
import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from core.errors import InvalidOptionError
from core.linearised.architectures import NetworkSpec, layers_of
from core.linearised.linearisation import Linearisation
from core.linearised.problem import FeatureSamples
from core.linearised.rows import MOST_PARAMETERS, collect_gram, row_ridge
from core.linearised.sketch import (
    SketchStatistics,
    collect_sketch,
    public_basis,
    require_error_probes,
)
from core.problem import Ridge
from core.registration._encoding import Encoding
from core.registration._network_data import named
from core.registration._network_training import Trained
from core.registration._record import relative_size
from core.registration._watcher import Watcher
from core.results import AnyStatistics
from core.statistics import StoredStatistics

StatisticsName = Literal["gram", "sketch"]

# What a batch of samples may hold between two layers, or along all directions of a sketch: 64 MiB.
_BATCH_FLOATS = 2**23
# The service computes the gradient anew from what is stored, with other round-off.
_GRADIENT_SLACK = 2.0
_SEED_BITS = 53


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What to collect.

    Attributes:
        kind: `gram`, `sketch` or None.
        rank: Of a sketch, ℓ.
        error_probes: Of a sketch.
        seed: Of a sketch; None until it is drawn.
        basis: Of a sketch along public samples.
    """

    kind: StatisticsName | None
    rank: int
    error_probes: int
    seed: int | None
    basis: Tensor | None = None

    def require_possible(self, width: int) -> None:
        """Check the options before the training, which may take hours.

        Args:
            width: D.

        Raises:
            InvalidOptionError: They are out of range.
        """
        if self.kind not in (*get_args(StatisticsName), None):
            raise InvalidOptionError(
                f"statistics: expected `gram`, `sketch` or none, got {self.kind!r}"
            )
        if self.kind == "gram" and width > MOST_PARAMETERS:
            raise InvalidOptionError(
                f"statistics: a Gram matrix takes at most D = {MOST_PARAMETERS} parameters, and "
                f"{width} are linearised; collect a sketch, or linearise fewer layers"
            )
        if self.kind != "sketch":
            return
        if not 1 <= self.rank <= width:
            raise InvalidOptionError(
                f"rank: expected 1 to D = {width}, got {self.rank}; a few hundred serve most "
                "networks"
            )
        require_error_probes(self.error_probes, self.rank + self.error_probes)
        if self.seed is not None and not 0 <= self.seed < 2**_SEED_BITS:
            raise InvalidOptionError(
                f"seed: expected a number in [0, 2^{_SEED_BITS}), got {self.seed}; leave it out "
                "to have one drawn"
            )

    def along(self, linearisation: Linearisation, encoding: Encoding, public: Any) -> "Plan":
        """Settle the directions of a sketch.

        Args:
            linearisation: f_{w_c} and J.
            encoding: Of the training set.
            public: Samples that no deletion will concern; None takes random directions.

        Returns:
            The plan with a seed, and with a basis where there are public samples.

        Raises:
            InvalidOptionError: There is no sketch to take along them, or they are too few.
            InvalidTensorError: They do not fit the network.
        """
        if self.kind != "sketch":
            if public is None:
                return self
            raise InvalidOptionError(
                "public_inputs: a sketch alone is taken along them; leave them out, or collect a "
                "sketch"
            )
        seed = secrets.randbits(_SEED_BITS) if self.seed is None else self.seed
        basis = None
        if public is not None:
            with named("public_inputs"):
                features = linearisation.network.features_of(encoding.rows(public))
            basis = public_basis(linearisation, features, rank=self.rank, seed=seed)
        return dataclasses.replace(self, seed=seed, basis=basis)

    def batch_size(self, spec: NetworkSpec) -> int:
        """Return how many samples fit into memory at a time, between all layers.

        Args:
            spec: The network.

        Returns:
            At least 1.
        """
        directions = self.rank + self.error_probes if self.kind == "sketch" else 1
        layers = [math.prod(layer.input_shape) for layer in layers_of(spec)]
        # Through the linearised layers every output has a slope of its own.
        linearised = spec.num_outputs * max(*layers[-spec.layers :], spec.num_outputs, directions)
        return max(1, _BATCH_FLOATS // max(*layers, linearised))

    def collect(
        self,
        linearisation: Linearisation,
        batches: Sequence[FeatureSamples],
        weights: Tensor,
        watcher: Watcher,
    ) -> AnyStatistics | None:
        """Collect them in one pass over the training set.

        Args:
            linearisation: f_{w_c} and J.
            batches: The training set.
            weights: w, shape (D, 1), float64.
            watcher: Told which share is done, 0 and 1 included.

        Returns:
            Statistics of the planned kind.
        """
        done = 0

        def told() -> Iterator[FeatureSamples]:
            nonlocal done
            for done, batch in enumerate(batches):
                watcher.statistics(done / len(batches))
                yield batch

        watcher.statistics(0.0)
        collected: AnyStatistics | None = None
        if self.kind == "gram":
            collected = collect_gram(linearisation, told())
        elif self.kind == "sketch" and self.seed is not None:
            collected = collect_sketch(
                linearisation,
                told(),
                weights=weights,
                rank=self.rank,
                seed=self.seed,
                error_probes=self.error_probes,
                basis=self.basis,
                progress=lambda share: watcher.statistics((done + share) / len(batches)),
            )
        watcher.statistics(1.0)
        return collected


def gradient_tolerance(
    collected: AnyStatistics | None,
    trained: Trained,
    ridge: Ridge,
    num_outputs: int,
    tolerance: float,
) -> float:
    """Return what the manifest declares as the largest relative gradient.

    Args:
        collected: What is sent of the training set.
        trained: The optimum.
        ridge: The L2 term.
        num_outputs: C.
        tolerance: That was trained to.

    Returns:
        A tolerance that the service's own look at the statistics passes, and little more.
    """
    return max(tolerance, _GRADIENT_SLACK * _seen_gradient(collected, trained, ridge, num_outputs))


def _seen_gradient(
    collected: AnyStatistics | None, trained: Trained, ridge: Ridge, num_outputs: int
) -> float:
    # As the service computes it from what is stored, relative to what it holds it against.
    if isinstance(collected, StoredStatistics):
        gradient = collected.training_gradient(trained.weights, row_ridge(ridge, num_outputs))
        return relative_size(gradient, float(torch.linalg.norm(collected.cross)))
    if isinstance(collected, SketchStatistics):
        scale = math.sqrt(collected.n_samples * collected.trace)
        return relative_size(collected.gradient(ridge), scale)
    return trained.relative_gradient
