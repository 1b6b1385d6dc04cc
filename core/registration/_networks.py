"""A network that is linear in its last layers: trained, and registered with what deletions need."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import safetensors.torch
from torch import Tensor

from core import serialization
from core.device import DeviceName, choose
from core.errors import InvalidOptionError
from core.linearised.architectures import NetworkSpec, head_tensors, num_parameters
from core.linearised.architectures import tensors as all_tensors
from core.linearised.linearisation import Linearisation
from core.linearised.networks import load_network
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.problem import Ridge
from core.registration._network_data import (
    SamplesName,
    TrainingSet,
    encoding_of,
    features_of,
    read_holdout,
)
from core.registration._network_statistics import Plan, StatisticsName, gradient_tolerance
from core.registration._network_training import Objective
from core.registration._record import Declaration, Members, Registered
from core.registration._watcher import Watcher
from core.vocabulary import Loss, Task

_NOBODY = Watcher()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NetworkRegistration(Registered):
    """All that the service needs of a network, so that its training data can go.

    Attributes:
        network: w_c by state-dict key, as it was given; of the last k layers alone where requests
            send features.
        linearisation: f_{w_c} and J.
    """

    network: Mapping[str, Tensor]
    linearisation: Linearisation

    @property
    def model(self) -> MixedLinearModel:
        """Return the model as `core.linearised.pipeline.unlearn` takes it."""
        return MixedLinearModel(
            self.linearisation,
            self.weights,
            self.ridge,
            self.manifest["n_samples"],
            self.manifest["feature_norm_bound"],
            gradient_norm_bound=self.manifest["training_gradient_norm"],
            privacy=self.privacy,
        )

    def features(self, inputs: Any, targets: Any) -> FeatureSamples:
        """Write samples as `core.linearised.pipeline.unlearn` takes them.

        Args:
            inputs: X, shape (n, ...), as the model's owner has it.
            targets: y, as the model's owner has it.

        Returns:
            What the last k layers see of them.

        Raises:
            InvalidTensorError: A shape, a label or a value does not fit.
        """
        return features_of(self.linearisation.network, self.samples(inputs, targets))

    def files(self) -> dict[str, bytes]:
        """Return the binary parts of a registration, each a safetensors file.

        Returns:
            `network`, `weights`, and `statistics`, `membership`, `holdout` where there are any.
        """
        return {"network": _network_file(self.network)} | Registered.files(self)


def from_network(
    spec: NetworkSpec,
    tensors: Mapping[str, Tensor],
    inputs: Any,
    targets: Any,
    *,
    name: str,
    ridge: Ridge,
    task: Task = Task.CLASSIFICATION,
    samples: SamplesName = "inputs",
    input_range: tuple[float, float] | None = None,
    tolerance: float = 1e-10,
    weights: Tensor | None = None,
    start: Tensor | None = None,
    statistics: StatisticsName | None = "gram",
    rank: int = 256,
    error_probes: int = 80,
    public_inputs: Any = None,
    seed: int | None = None,
    membership: bool | bytes = False,
    holdout: tuple[Any, Any] | None = None,
    device: DeviceName = "cpu",
    declared: Mapping[str, Any] | None = None,
    watcher: Watcher = _NOBODY,
) -> NetworkRegistration:
    """Train the linear part of a network, and turn it into all that the service needs.

    The objective is Σ ½‖f_{w_c}(x) + J(x)w − y‖² + (shift(n)/2)‖w‖² (METHOD §6). The network around
    which it is linear, w_c, is taken as it is: no deletion reaches what it was trained on.

    Args:
        spec: Which network, and k, how many of its last layers are linearised.
        tensors: w_c by state-dict key. Where requests send features, the last k layers suffice,
            and no others are kept.
        inputs: X of the training set, shape (n, *input_shape), or flattened; where requests send
            features, these, shape (n, *feature_shape).
        targets: n labels, one-hot rows, or numbers of shape (n, C).
        name: Of the model.
        ridge: The L2 term; n counts samples.
        task: `classification`, with labels or one-hot rows; or `regression`.
        samples: What requests will send.
        input_range: [lo, hi] that every number of every input lies in. None takes the training
            set's and the holdout's own, which is derived from the data: declare what is known
            beforehand, such as (0, 1).
        tolerance: ‖∇L(w)‖/‖∇L(0)‖ to train to.
        weights: w, shape (D, 1), float64, trained elsewhere to the tolerance; None trains it here.
        start: Where to begin training, shape (D, 1), e.g. where an interrupted one stopped.
        statistics: `gram`, D² numbers, D at most 8,192: deletions are exact. `sketch`: they are
            certified, with probability 1 − 1e-12 over its seed. None: they are estimates.
        rank: Directions of a sketch that its estimate is made of.
        error_probes: Directions of a sketch that measure the estimate's error.
        public_inputs: Samples that no deletion will ever concern, as `inputs`; a sketch is then
            taken along what has most curvature there, which serves as well as two to three times
            the rank.
        seed: Of a sketch, a secret below 2^53 that is kept in it alone; None draws one.
        membership: Whether to hash every sample, so that the service can check that samples to be
            forgotten are members; under a fresh secret key, or under this one of 32 bytes.
        holdout: Samples and targets that were never trained on, for the scores.
        device: Where to compute.
        declared: Further fields of the manifest, such as `backbone`.
        watcher: Told how far it has come.

    Returns:
        The registration, on `device`.

    Raises:
        InvalidOptionError: An option is out of range, or `weights` are no optimum.
        InvalidTensorError: Tensors, samples or targets do not fit the network.
        SolverError: Training does not come down to the tolerance.
    """
    _require_options(spec, ridge, task, samples)
    plan = Plan(statistics, rank, error_probes, seed)
    plan.require_possible(num_parameters(spec))
    sent = _sent_tensors(spec, tensors, samples)
    network = load_network(spec, sent, head_only=samples == "features").to(choose(device))
    linearisation, encoding = Linearisation(network), encoding_of(network, task)
    wanted = Declaration(
        name=name,
        feature_norm_bound=None,
        membership=membership,
        tolerance=tolerance,
        holdout=read_holdout(encoding, task, holdout),
        further=declared,
    )
    plan = plan.along(linearisation, encoding, public_inputs)
    seen = TrainingSet(linearisation, Members(task, wanted.digest_key()))
    seen.read(encoding.batches(inputs, targets, plan.batch_size(spec)), len(targets), watcher)
    if wanted.holdout is not None:
        seen.widen(wanted.holdout)
    limits = seen.input_range(input_range, samples)
    objective = Objective(linearisation, seen.batches, ridge, tolerance)
    trained = objective.minimise(start, watcher) if weights is None else objective.accept(weights)
    collected = plan.collect(linearisation, seen.batches, trained.weights, watcher)
    accepted = gradient_tolerance(collected, trained, ridge, spec.num_outputs, tolerance)
    manifest = {
        "name": name,
        "task": task.value,
        "loss": Loss.SQUARED.value,
        "num_features": linearisation.num_parameters,
        "num_outputs": spec.num_outputs,
        "ridge": {"convention": ridge.convention.value, "strength": ridge.strength},
        "n_samples": seen.n_samples,
        "feature_norm_bound": seen.norm_bound,
        "training_gradient_norm": trained.gradient_norm,
        "training_gradient_tolerance": accepted,
        "network": _declaration(spec, samples, limits, statistics)
        | _digests(sent, trained.weights, declared),
    }
    return NetworkRegistration(
        manifest=manifest | dict(declared or {}),
        weights=trained.weights,
        statistics=collected,
        membership=seen.members.file(),
        holdout=wanted.holdout,
        encoding=encoding,
        relative_gradient=trained.relative_gradient,
        network=sent,
        linearisation=linearisation,
    )


def _require_options(spec: NetworkSpec, ridge: Ridge, task: Task, samples: SamplesName) -> None:
    if samples not in get_args(SamplesName):
        raise InvalidOptionError(f"samples: expected `inputs` or `features`, got {samples!r}")
    if ridge.strength == 0:
        raise InvalidOptionError(
            "ridge strength: expected a positive number, got 0, which leaves what no sample "
            "touches undetermined in a network; train with a positive one"
        )
    if task is Task.CLASSIFICATION and spec.num_outputs == 1:
        raise InvalidOptionError(
            "task: `classification` takes one output a class, and this network has one in all; "
            "declare `regression`, with targets 0 and 1"
        )


def _sent_tensors(
    spec: NetworkSpec, tensors: Mapping[str, Tensor], samples: SamplesName
) -> dict[str, Tensor]:
    # Unknown keys stay, to be refused by name.
    frozen = all_tensors(spec).keys() - head_tensors(spec).keys()
    left_out = frozen if samples == "features" else frozenset[str]()
    return {name: tensors[name] for name in sorted(tensors) if name not in left_out}


def _network_file(tensors: Mapping[str, Tensor]) -> bytes:
    sent = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(sent)


def _digests(
    network: Mapping[str, Tensor], weights: Tensor, declared: Mapping[str, Any] | None
) -> dict[str, str]:
    # Of the parts, which the service holds against them. Weights that noise will hide get none:
    # whoever guesses them could tell by it that they are right.
    files = {"centre_sha256": _network_file(network)}
    if (declared or {}).get("privacy") is None:
        files["weights_sha256"] = serialization.dump_weights(weights)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _declaration(
    spec: NetworkSpec,
    samples: SamplesName,
    input_range: list[float] | None,
    statistics: StatisticsName | None,
) -> dict[str, Any]:
    return {
        "architecture": spec.architecture.value,
        "input_shape": list(spec.input_shape),
        "layers": spec.layers,
        "widths": list(spec.widths),
        "channels": list(spec.channels),
        "samples": samples,
        "input_range": input_range,
        "statistics": statistics or "gram",
    }
