"""One training as it was asked for, its files read."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from torch import Tensor

from core.device import DeviceName
from core.linearised.architectures import NetworkSpec
from core.problem import Ridge
from core.registration import NetworkRegistration, Watcher, from_network
from core.vocabulary import Task
from training.checkpoint import inputs_digest


class StatisticsKind(StrEnum):
    """What is stored of the training set; it decides what deletions guarantee."""

    GRAM = "gram"
    SKETCH = "sketch"
    NONE = "none"


class SampleKind(StrEnum):
    """What x is, and what requests will send."""

    INPUTS = "inputs"
    FEATURES = "features"


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


_STATISTICS: Mapping[StatisticsKind, Literal["gram", "sketch"] | None] = {
    StatisticsKind.GRAM: "gram",
    StatisticsKind.SKETCH: "sketch",
    StatisticsKind.NONE: None,
}
_SAMPLES: Mapping[SampleKind, Literal["inputs", "features"]] = {
    SampleKind.INPUTS: "inputs",
    SampleKind.FEATURES: "features",
}
_DEVICES: Mapping[Device, DeviceName] = {
    Device.AUTO: "auto",
    Device.CPU: "cpu",
    Device.CUDA: "cuda",
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """What is trained on what; files are given as their tensors.

    Attributes:
        spec: Which network, and how much of it is linearised.
        network: Its weights.
        data: The training set, x and y.
        holdout: As `data`, but not trained on.
        public: x of public samples, along which a sketch is taken.
        name: Of the model.
        task: What y means.
        ridge: The L2 term.
        tolerance: Relative gradient to train to.
        statistics: What to store of the training set.
        rank: Of a sketch.
        samples: What x is.
        input_range: That every number of x lies in; None takes the data's.
        membership: Whether to hash every sample.
        device: Where to compute.
    """

    spec: NetworkSpec
    network: Mapping[str, Tensor]
    data: Mapping[str, Tensor]
    holdout: Mapping[str, Tensor] | None
    public: Mapping[str, Tensor] | None
    name: str
    task: Task
    ridge: Ridge
    tolerance: float
    statistics: StatisticsKind
    rank: int
    samples: SampleKind
    input_range: tuple[float, float] | None
    membership: bool
    device: Device

    def inputs_digest(self) -> bytes:
        """Return SHA-256 of all that the optimum depends on."""
        settings = [repr(self.spec), repr(self.ridge), self.task.value, self.samples.value]
        return inputs_digest(settings, network=self.network, data=self.data)

    def run(self, start: Tensor | None, watcher: Watcher) -> NetworkRegistration:
        """Train, and collect what is stored."""
        held = self.holdout
        return from_network(
            self.spec,
            self.network,
            self.data["x"],
            self.data["y"],
            name=self.name,
            ridge=self.ridge,
            task=self.task,
            samples=_SAMPLES[self.samples],
            input_range=self.input_range,
            tolerance=self.tolerance,
            start=start,
            statistics=_STATISTICS[self.statistics],
            rank=self.rank,
            public_inputs=None if self.public is None else self.public["x"],
            membership=self.membership,
            holdout=None if held is None else (held["x"], held["y"]),
            device=_DEVICES[self.device],
            watcher=watcher,
        )
