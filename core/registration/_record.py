"""What a model's owner registers, and how it comes out of a stream of samples."""

import dataclasses
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from core import digests, losses, serialization
from core.errors import InvalidOptionError, InvalidTensorError
from core.privacy import Privacy
from core.problem import LinearModel, Ridge, SampleSet
from core.registration._encoding import Encoding
from core.results import AnyStatistics
from core.statistics import LogisticStatistics, Statistics, collect, collect_logistic
from core.vocabulary import Loss, Mechanism, RidgeConvention, Task

# What the service takes for "these statistics are those of these weights" unless told otherwise.
DEFAULT_TOLERANCE = 1e-6

_BINARY = "application/octet-stream"


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Registered:
    """What is registered of any model, so that its training data can go.

    Attributes:
        manifest: What `POST /v1/models` takes as the part `manifest`.
        weights: W, shape (d, C), float64; of a network w, shape (D, 1).
        statistics: Of the whole training set; None where they were not asked for.
        membership: The file of the part `membership`; None where it was not asked for.
        holdout: Samples that were never trained on, for the scores; None where there are none.
        encoding: How features and targets are written as samples.
        relative_gradient: ‖∇L(W; D)‖_F / ‖∇L(0; D)‖_F, how far training stopped from the optimum;
            with logistic loss relative to n·R_x where that is less.
    """

    manifest: Mapping[str, Any]
    weights: Tensor
    statistics: AnyStatistics | None
    membership: bytes | None
    holdout: SampleSet | None
    encoding: Encoding
    relative_gradient: float

    @property
    def ridge(self) -> Ridge:
        """Return the L2 term of the training objective."""
        ridge = self.manifest["ridge"]
        return Ridge(RidgeConvention(ridge["convention"]), ridge["strength"])

    @property
    def privacy(self) -> Privacy | None:
        """Return how residuals of deletions are hidden, as the manifest declares it."""
        privacy = self.manifest.get("privacy")
        if privacy is None:
            return None
        return Privacy(**privacy | {"mechanism": Mechanism(privacy["mechanism"])})

    def samples(self, features: Any, targets: Any) -> SampleSet:
        """Write rows as they were written at training, for instance those to be forgotten.

        Args:
            features: X, shape (n, d), as the model's owner has it.
            targets: y, as the model's owner has it.

        Returns:
            Samples that a deletion takes, and that have the digests of the registration.

        Raises:
            InvalidTensorError: A shape, a label or a value does not fit.
        """
        return self.encoding.samples(features, targets)

    def files(self) -> dict[str, bytes]:
        """Return the binary parts of a registration, each a safetensors file.

        Returns:
            `weights`, and `statistics`, `membership` and `holdout` where there are any.
        """
        files = {"weights": serialization.dump_weights(self.weights)}
        if self.statistics is not None:
            files["statistics"] = serialization.dump_statistics(self.statistics)
        if self.membership is not None:
            files["membership"] = self.membership
        if self.holdout is not None:
            files["holdout"] = serialization.dump_samples(self.holdout)
        return files

    def multipart(self) -> dict[str, tuple[str, bytes, str]]:
        """Return the body of `POST /v1/models`.

        Returns:
            What httpx and requests take as `files=`.
        """
        manifest = json.dumps(self.manifest, allow_nan=False, ensure_ascii=False).encode()
        parts = {"manifest": ("manifest.json", manifest, "application/json")}
        for name, content in self.files().items():
            parts[name] = (f"{name}.safetensors", content, _BINARY)
        return parts


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Registration(Registered):
    """All that the service needs of a linear model, so that its training data can go.

    Attributes:
        statistics: Of the whole training set; at W where the loss is logistic.
    """

    statistics: Statistics

    @property
    def model(self) -> LinearModel:
        """Return the model as `core.pipeline.unlearn` takes it."""
        return LinearModel(
            self.weights,
            self.ridge,
            self.statistics.n_samples,
            self.manifest["feature_norm_bound"],
            loss=Loss(self.manifest["loss"]),
            privacy=self.privacy,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A model as its training left it, and what it claims to be the optimum of.

    Attributes:
        weights: W, shape (d, C), float64.
        task: What the outputs mean.
        loss: Per-sample loss.
        ridge: The L2 term.
        encoding: How features and targets are written as samples.
        remedy: What brings such a model to its optimum, for the message that refuses it.
        objective_noise: b of objective perturbation, shape (d, C), float64; None without it.
    """

    weights: Tensor
    task: Task
    loss: Loss
    ridge: Ridge
    encoding: Encoding
    remedy: str
    objective_noise: Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the owner says beside the model.

    Attributes:
        name: Of the model.
        feature_norm_bound: R_x; None takes it from the data.
        membership: Whether to hash every sample, so that the service can check memberships, under
            a fresh key; or the key, 32 secret bytes.
        tolerance: Largest relative gradient at the weights that still counts as trained.
        holdout: Samples that were never trained on.
        further: Other fields of the manifest, as they are.
    """

    name: str
    feature_norm_bound: float | None
    membership: bool | bytes
    tolerance: float
    holdout: SampleSet | None
    further: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < float("inf"):
            raise InvalidOptionError(f"tolerance: expected a positive number, got {self.tolerance}")

    def digest_key(self) -> bytes | None:
        """Return the key of the samples' digests; None where nothing is hashed."""
        if self.membership is True:
            # Not from a seed: whoever knows a recorded seed could recognise samples.
            return secrets.token_bytes(digests.KEY_BYTES)
        return None if self.membership is False else self.membership


def register(trained: Trained, batches: Iterable[SampleSet], declared: Declaration) -> Registration:
    """Collect what is registered of a model in one pass over its training set.

    Args:
        trained: The model.
        batches: The training set in pieces of any size, each sample once.
        declared: What the owner says beside.

    Returns:
        The registration.

    Raises:
        InvalidOptionError: The weights are no optimum of their objective on these samples, or the
            declared norm bound is too small.
        InvalidTensorError: A batch does not fit the model, or targets do not fit the task.
    """
    seen = _Observer(trained, declared.digest_key())
    statistics = _collect(trained, seen.watch(batches))
    gradient = _training_gradient(trained, statistics)
    bound = _norm_bound(declared.feature_norm_bound, seen.longest)
    scale = float(torch.linalg.norm(seen.gradient_at_zero))
    if trained.loss is Loss.LOGISTIC:
        # Held against it once more by the service, which cannot know the gradient at zero.
        scale = min(scale, statistics.n_samples * bound)
    relative = relative_size(gradient, scale)
    if not relative <= declared.tolerance:
        raise InvalidOptionError(
            f"weights: no optimum of the {trained.loss} loss with ridge {trained.ridge.convention} "
            f"{trained.ridge.strength:.6g} on these samples: the gradient is {relative:.3g} of "
            f"that at zero weights, above the tolerance {declared.tolerance:.3g}; {trained.remedy}"
        )
    manifest = {
        "name": declared.name,
        "task": trained.task.value,
        "loss": trained.loss.value,
        "num_features": trained.weights.shape[0],
        "num_outputs": trained.weights.shape[1],
        "ridge": {
            "convention": trained.ridge.convention.value,
            "strength": trained.ridge.strength,
        },
        "n_samples": statistics.n_samples,
        "feature_norm_bound": bound,
        "training_gradient_norm": float(torch.linalg.norm(gradient)),
        "training_gradient_tolerance": declared.tolerance,
    }
    return Registration(
        manifest=manifest | dict(declared.further or {}),
        weights=trained.weights,
        statistics=statistics,
        membership=seen.membership_file(),
        holdout=declared.holdout,
        encoding=trained.encoding,
        relative_gradient=relative,
    )


class _Observer:
    """Looks at each batch on its way to the statistics, so that one pass is enough."""

    def __init__(self, trained: Trained, key: bytes | None) -> None:
        self._trained = trained
        self._zeros = torch.zeros_like(trained.weights)
        self._members = Members(trained.task, key)
        self.gradient_at_zero = torch.zeros_like(trained.weights)
        self.longest = 0.0

    def watch(self, batches: Iterable[SampleSet]) -> Iterator[SampleSet]:
        functions = losses.OF[self._trained.loss]
        for batch in batches:
            self._members.add(batch)
            norms = torch.linalg.vector_norm(batch.features, dim=1)
            self.longest = max(self.longest, float(norms.max()))
            self.gradient_at_zero += functions.gradient(self._zeros, batch)
            yield batch

    def membership_file(self) -> bytes | None:
        return self._members.file()


class Members:
    """Checks the targets of a training set that passes by, and keeps digests of its samples."""

    def __init__(self, task: Task, key: bytes | None) -> None:
        """Keep digests under a key, or none where it is None."""
        self._task = task
        self._key = key
        self._digests: list[bytes] = []

    def add(self, samples: SampleSet) -> None:
        """Look at some of the samples.

        Args:
            samples: As they will be sent, each once in all calls together.

        Raises:
            InvalidTensorError: Their targets do not fit the task.
        """
        if self._task is Task.CLASSIFICATION:
            _require_classes(samples.targets)
        if self._key is not None:
            arrays = (samples.features.cpu().numpy(), samples.targets.cpu().numpy())
            self._digests += digests.of_each(*arrays, self._key)

    def file(self) -> bytes | None:
        """Return the file of the part `membership`; None without a key."""
        if self._key is None:
            return None
        # Sorted: the order of the training set is nobody's business.
        return safetensors.torch.save(
            {
                "key": _bytes([self._key])[0],
                "digests": _bytes(sorted(self._digests)),
            }
        )


def _bytes(rows: list[bytes]) -> Tensor:
    flat = np.frombuffer(b"".join(rows), dtype=np.uint8)
    return torch.tensor(flat.reshape(len(rows), -1), device="cpu")


def _require_classes(targets: Tensor) -> None:
    binary = bool(((targets == 0) | (targets == 1)).all())
    if not binary or (targets.shape[1] > 1 and not bool((targets.sum(dim=1) == 1).all())):
        raise InvalidTensorError(
            "y: the task `classification` takes one-hot rows, or 0 and 1 with one output; encode "
            "the labels so, or declare the task `regression`"
        )


def _collect(trained: Trained, batches: Iterable[SampleSet]) -> Statistics:
    if trained.loss is Loss.SQUARED:
        return collect(batches)
    return collect_logistic(batches, trained.weights, objective_noise=trained.objective_noise)


def _training_gradient(trained: Trained, statistics: Statistics) -> Tensor:
    if isinstance(statistics, LogisticStatistics):
        return statistics.training_gradient(trained.ridge)
    return statistics.training_gradient(trained.weights, trained.ridge)


def relative_size(gradient: Tensor, scale: float) -> float:
    """Return ‖gradient‖_F / scale; 0 for no gradient, whatever the scale.

    Args:
        gradient: Of any shape.
        scale: At least 0.

    Returns:
        A number, or infinity.
    """
    size = float(torch.linalg.norm(gradient))
    if size == 0:
        return 0.0
    return size / scale if scale > 0 else float("inf")


def _norm_bound(declared: float | None, longest: float) -> float:
    if declared is None:
        if longest == 0:
            raise InvalidOptionError(
                "feature_norm_bound: every training row is zero, so no bound follows from the "
                "data; declare a positive one"
            )
        return longest
    if longest > declared:
        raise InvalidOptionError(
            f"feature_norm_bound: a training row has norm {longest:.6g}, above the declared "
            f"{declared:.6g}; declare a larger bound, or scale the features before training"
        )
    return declared
