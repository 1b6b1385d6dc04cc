"""The training set of a network on its one pass through the frozen layers."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.architectures import feature_shape
from core.linearised.linearisation import Linearisation
from core.linearised.networks import Network
from core.linearised.problem import FeatureSamples
from core.linearised.training import largest_jacobian_norm
from core.problem import SampleSet
from core.registration._encoding import Encoding, labels_of
from core.registration._record import Members
from core.registration._watcher import Watcher
from core.vocabulary import Task

SamplesName = Literal["inputs", "features"]

# Of ‖J(x)‖, which another machine computes with other round-off.
_NORM_ROUND_OFF = 1e-9


@dataclass(slots=True, eq=False)
class TrainingSet:
    """What there is to know of a training set, its samples as the last layers see them.

    Attributes:
        linearisation: f_{w_c} and J.
        members: Digests of all samples as they are sent.
        batches: All samples.
        lowest: The least number that a sample or the holdout holds.
        highest: The largest.
        largest_norm: The largest ‖J(x)‖₂.
    """

    linearisation: Linearisation
    members: Members
    batches: list[FeatureSamples] = field(default_factory=list)
    lowest: float = math.inf
    highest: float = -math.inf
    largest_norm: float = 0.0

    @property
    def n_samples(self) -> int:
        """Return n, as far as it was read."""
        return sum(len(batch) for batch in self.batches)

    @property
    def norm_bound(self) -> float:
        """Return R_J, which no ‖J(x)‖₂ exceeds wherever it is computed."""
        return self.largest_norm * (1.0 + _NORM_ROUND_OFF)

    def read(self, batches: Iterable[SampleSet], n_samples: int, watcher: Watcher) -> None:
        """Pass samples through the frozen layers.

        Args:
            batches: The training set, each sample once.
            n_samples: How many there are.
            watcher: Told how many are done.

        Raises:
            InvalidTensorError: Targets do not fit the task, or features overflow.
        """
        done = 0
        for samples in batches:
            self.members.add(samples)
            self.widen(samples)
            batch = features_of(self.linearisation.network, samples)
            longest = largest_jacobian_norm(self.linearisation, [batch])
            if not longest < math.inf:
                raise InvalidTensorError(
                    "X: the Jacobian of a sample overflows float64; scale the inputs as the "
                    "network was trained on them"
                )
            self.largest_norm = max(self.largest_norm, longest)
            self.batches.append(batch)
            done += len(batch)
            watcher.features(done / n_samples)

    def widen(self, samples: SampleSet) -> None:
        """Let the range of numbers cover those of samples.

        Args:
            samples: As they are sent.
        """
        self.lowest = min(self.lowest, float(samples.features.min()))
        self.highest = max(self.highest, float(samples.features.max()))

    def input_range(
        self, declared: tuple[float, float] | None, samples: SamplesName
    ) -> list[float] | None:
        """Return the range that inputs lie in.

        Args:
            declared: By the owner; None takes that of the data.
            samples: What requests send.

        Returns:
            [lo, hi]; None where requests send features.

        Raises:
            InvalidOptionError: It is no range, or an input is outside.
        """
        if samples == "features":
            if declared is None:
                return None
            raise InvalidOptionError(
                f"input_range: {declared} is about inputs, but requests send features; leave it out"
            )
        low, high = (self.lowest, self.highest) if declared is None else declared
        if not low < high:
            raise InvalidOptionError(
                f"input_range: ({low:g}, {high:g}) is no range; declare the least and the largest "
                "number that an input may hold, e.g. (0, 1)"
            )
        if self.lowest < low or self.highest > high:
            worst = self.lowest if self.lowest < low else self.highest
            raise InvalidOptionError(
                f"input_range: an input holds {worst:.6g}, outside the declared ({low:g}, "
                f"{high:g}); declare a wider one, or scale the inputs as the network was trained "
                "on them"
            )
        return [float(low), float(high)]


def encoding_of(network: Network, task: Task) -> Encoding:
    """Return how samples of a network are written.

    Args:
        network: It takes features where its frozen layers are unknown.
        task: Labels belong to `classification` alone.

    Returns:
        The encoding.
    """
    shape, num_outputs = _sample_shape(network), network.spec.num_outputs
    classes = labels_of(num_outputs) if task is Task.CLASSIFICATION else None
    return Encoding(math.prod(shape), num_outputs, classes=classes, shape=shape)


def read_holdout(
    encoding: Encoding, task: Task, holdout: tuple[Any, Any] | None
) -> SampleSet | None:
    """Return the holdout as samples.

    Args:
        encoding: As of the training set.
        task: What the targets mean.
        holdout: X and y, if there are any.

    Returns:
        Samples, or None.

    Raises:
        InvalidTensorError: They do not fit; the message begins with `holdout`.
    """
    if holdout is None:
        return None
    with named("holdout"):
        held = encoding.samples(*holdout)
        Members(task, None).add(held)
    return held


def features_of(network: Network, samples: SampleSet) -> FeatureSamples:
    """Return what the last k layers see of samples.

    Args:
        network: The network.
        samples: As they are sent, each flattened.

    Returns:
        Features and targets, where the network is.

    Raises:
        InvalidTensorError: Features overflow.
    """
    features = network.features_of(samples.features)
    return FeatureSamples(features, samples.targets.to(features.device))


@contextmanager
def named(name: str) -> Iterator[None]:
    """Let messages about tensors begin with a name.

    Args:
        name: Of what is looked at.

    Raises:
        InvalidTensorError: As it was raised, with the name in front.
    """
    try:
        yield
    except InvalidTensorError as error:
        raise InvalidTensorError(f"{name}: {error}") from error


def _sample_shape(network: Network) -> tuple[int, ...]:
    return feature_shape(network.spec) if network.head_only else network.spec.input_shape
