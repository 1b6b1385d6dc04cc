"""A small network, linearised in its last layers, with everything that its owner can register."""

import dataclasses
import secrets
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from core import digests
from core.linearised.architectures import NetworkSpec, head_tensors, num_parameters, trainable
from core.linearised.linearisation import Linearisation
from core.linearised.networks import initialise, load_network
from core.linearised.probes import gaussian_rows, sign_rows
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.linearised.rows import collect_gram
from core.linearised.sketch import SketchStatistics, collect_sketch
from core.linearised.training import fit
from core.problem import Ridge
from core.results import Unlearned
from core.serialization import dump_statistics, dump_weights
from core.statistics import StoredStatistics
from core.vocabulary import RidgeConvention


@dataclass(frozen=True)
class NetworkProblem:
    """A convolution and two dense layers on digits of 8×8 points; the dense ones are linearised.

    What `train` and `train_without` return rests on Jacobians by plain reverse differentiation of a
    forward pass that is written out here, and on numpy's solver.
    """

    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    strength: float = 0.3
    statistics: str = "gram"
    samples: str = "inputs"
    rank: int = 150
    error_probes: int = 60
    privacy: dict[str, object] | None = None
    policy: dict[str, object] = field(default_factory=dict)
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @classmethod
    def digits(cls, n: int = 200) -> "NetworkProblem":
        """Take the first of scikit-learn's digits, scaled to [0, 1]."""
        found = load_digits()
        images = found.images[:n].reshape(n, 1, 8, 8) / 16.0
        return cls(images, found.target[:n].astype(np.int64))

    def but(self, **changes: object) -> "NetworkProblem":
        """Return the same data, declared differently."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def spec(self) -> NetworkSpec:
        """The network, and k."""
        return NetworkSpec("small-cnn", (1, 8, 8), 10, 2, widths=(8,), channels=(4,))

    @property
    def num_parameters(self) -> int:
        """D."""
        return num_parameters(self.spec)

    @cached_property
    def centre(self) -> dict[str, torch.Tensor]:
        """w_c, drawn without any data."""
        return initialise(self.spec, 3)

    @cached_property
    def linearisation(self) -> Linearisation:
        """f and J, as the core has them."""
        return Linearisation(load_network(self.spec, self.centre))

    @property
    def targets(self) -> NDArray[np.float64]:
        """One-hot rows."""
        return np.eye(10)[self.labels]

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """What the convolution makes of the images."""
        return self._frozen(torch.from_numpy(self.images)).numpy()

    @property
    def everything(self) -> FeatureSamples:
        """The training set as tensors."""
        return FeatureSamples(torch.from_numpy(self.features), torch.from_numpy(self.targets))

    @property
    def ridge(self) -> Ridge:
        """The L2 term."""
        return Ridge(RidgeConvention.PER_SAMPLE, self.strength)

    @cached_property
    def weights(self) -> torch.Tensor:
        """The trained optimum, by the core's own training."""
        return fit(self.linearisation, [self.everything], self.ridge, tolerance=1e-12).weights

    @cached_property
    def jacobians(self) -> NDArray[np.float64]:
        """J(x) of every sample, shape (n, C, D)."""
        return np.stack([self._jacobian(sample) for sample in torch.from_numpy(self.features)])

    def train(self) -> NDArray[np.float64]:
        """The trained optimum, by the normal equations."""
        return self._solve(np.arange(len(self.labels)))

    def train_without(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Retrain on the rest: what unlearning is compared with."""
        return self._solve(np.setdiff1d(np.arange(len(self.labels)), rows))

    def gradient_without(
        self, rows: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """∇L of the rest at some weights, in sum form."""
        rest = np.setdiff1d(np.arange(len(self.labels)), rows)
        jacobians, residuals = self._rows(rest)
        return jacobians.T @ (jacobians @ weights - residuals) + self.strength * len(rest) * weights

    def manifest(self, name: str, **changes: object) -> dict[str, object]:
        """What its owner declares."""
        declared = {
            "name": name,
            "task": "classification",
            "num_features": self.num_parameters,
            "num_outputs": 10,
            "ridge": {"convention": "per_sample", "strength": self.strength},
            "n_samples": len(self.labels),
            "feature_norm_bound": float(np.linalg.norm(self.jacobians, 2, axis=(1, 2)).max()),
            "policy": self.policy,
            "privacy": self.privacy,
            "backbone": {"provenance": "public"},
            "network": self.network(),
        }
        return declared | changes

    def network(self, **changes: object) -> dict[str, object]:
        """The manifest's `network`."""
        declared = {
            "architecture": "small-cnn",
            "input_shape": [1, 8, 8],
            "layers": 2,
            "widths": [8],
            "channels": [4],
            "samples": self.samples,
            "input_range": [0.0, 1.0] if self.samples == "inputs" else None,
            "statistics": self.statistics,
            "centre_sha256": None,
            "weights_sha256": None,
        }
        return declared | changes

    def network_file(self) -> bytes:
        """w_c as a client uploads it."""
        names = head_tensors(self.spec) if self.samples == "features" else self.centre
        return safetensors.torch.save({name: self.centre[name] for name in names})

    def weights_file(self) -> bytes:
        """The trained weights as a client uploads them."""
        return dump_weights(self.weights)

    def statistics_file(self) -> bytes:
        """The stored statistics as a client uploads them."""
        if self.statistics == "gram":
            return dump_statistics(collect_gram(self.linearisation, [self.everything]))
        sketch = collect_sketch(
            self.linearisation,
            [self.everything],
            weights=self.weights,
            rank=self.rank,
            error_probes=self.error_probes,
            seed=11,
        )
        return dump_statistics(sketch)

    def samples_file(self, rows: NDArray[np.int64]) -> bytes:
        """Some of its training samples as a client sends them."""
        return safetensors.numpy.save({"x": self._sent[rows], "y": self.labels[rows]})

    def membership_file(self) -> bytes:
        """The keyed digests of all training rows."""
        flat = np.ascontiguousarray(self._sent.reshape(len(self.labels), -1))
        found = sorted(digests.of_each(flat, self.targets, self.key))
        rows = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)
        return safetensors.numpy.save(
            {"digests": rows.copy(), "key": np.frombuffer(self.key, np.uint8).copy()}
        )

    @property
    def _sent(self) -> NDArray[np.float64]:
        return self.images if self.samples == "inputs" else self.features

    def _solve(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        jacobians, residuals = self._rows(rows)
        hessian = jacobians.T @ jacobians
        hessian[np.diag_indices(len(hessian))] += self.strength * len(rows)
        return np.linalg.solve(hessian, jacobians.T @ residuals)

    def _rows(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        jacobians = self.jacobians[rows].reshape(-1, self.num_parameters)
        centre = self._head(*self._parameters, torch.from_numpy(self.features[rows]))
        return jacobians, self.targets[rows].reshape(-1, 1) - centre.numpy().reshape(-1, 1)

    @property
    def _parameters(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.centre[name] for name in trainable(self.spec))

    def _frozen(self, images: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.centre[f"convolutions.0.{name}"] for name in ("weight", "bias"))
        convolved = torch.nn.functional.conv2d(images, weight, bias, padding=1)
        return torch.nn.functional.max_pool2d(convolved.relu(), 2).flatten(1)

    @staticmethod
    def _head(
        weight_1: torch.Tensor,
        bias_1: torch.Tensor,
        weight_2: torch.Tensor,
        bias_2: torch.Tensor,
        features: torch.Tensor,
    ) -> torch.Tensor:
        return (features @ weight_1.T + bias_1).relu() @ weight_2.T + bias_2

    def _jacobian(self, features: torch.Tensor) -> NDArray[np.float64]:
        parts = torch.autograd.functional.jacobian(
            lambda *parameters: self._head(*parameters, features), self._parameters
        )
        return torch.cat([part.reshape(10, -1) for part in parts], dim=1).numpy()


# --- Tiny networks of every architecture, for the tests of `core.linearised` ----------------------

SPECS = {
    "linear": NetworkSpec("linear", (4,), 3, 1),
    "mlp-1": NetworkSpec("mlp", (4,), 3, 1, widths=(5, 6)),
    "mlp-2": NetworkSpec("mlp", (4,), 3, 2, widths=(5, 6)),
    "mlp-3": NetworkSpec("mlp", (4,), 3, 3, widths=(5, 6)),
    "cnn-1": NetworkSpec("small-cnn", (2, 4, 5), 2, 1, widths=(4,), channels=(3, 2)),
    "cnn-2": NetworkSpec("small-cnn", (2, 4, 5), 2, 2, widths=(4,), channels=(3, 2)),
    "cnn-3": NetworkSpec("small-cnn", (2, 4, 5), 2, 3, widths=(4,), channels=(3, 2)),
    "cnn-4": NetworkSpec("small-cnn", (2, 4, 5), 2, 4, widths=(4,), channels=(3, 2)),
    "resnet-1": NetworkSpec("resnet18", (3, 32, 32), 2, 1),
}


def tiny_linearisation(spec: NetworkSpec, seed: int = 0) -> Linearisation:
    """Draw a network that has nothing special: biases and normalisations are moved as well."""
    rng = torch.Generator().manual_seed(seed)
    tensors = initialise(spec, seed)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float64:
            noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
            tensors[name] = tensor + 0.1 * (noise.abs() if name.endswith("running_var") else noise)
    return Linearisation(load_network(spec, tensors))


def explicit_jacobian(linearisation: Linearisation, inputs: torch.Tensor) -> NDArray[np.float64]:
    """Differentiate the whole network, one sample and one output after the other: (n, C, D)."""
    network = linearisation.network
    module, names = network._module, trainable(network.spec)
    parameters = {name: network.state[name].clone().requires_grad_() for name in names}
    jacobians = []
    for sample in torch.split(inputs, 1):
        outputs = torch.func.functional_call(module, parameters, (sample,))[0]
        for output in outputs:
            found = torch.autograd.grad(output, list(parameters.values()), retain_graph=True)
            jacobians.append(torch.cat([part.reshape(-1) for part in found]))
    return torch.stack(jacobians).reshape(len(inputs), len(outputs), -1).numpy()


@dataclass(frozen=True)
class TinyProblem:
    """A training set for a tiny network, with everything that its Jacobian's rows make plain.

    Optima are by Cholesky's method on explicit rows; nothing of the core's solvers is used.
    """

    linearisation: Linearisation
    inputs: torch.Tensor
    targets: torch.Tensor
    ridge: Ridge

    @classmethod
    def draw(
        cls,
        spec: NetworkSpec,
        n: int,
        *,
        ridge: Ridge | None = None,
        seed: int = 0,
    ) -> "TinyProblem":
        """Draw inputs, and classes that depend on them."""
        rng = torch.Generator().manual_seed(seed + 1)
        inputs = torch.randn(n, *spec.input_shape, generator=rng, dtype=torch.float64)
        teacher = torch.randn(
            inputs[0].numel(), spec.num_outputs, generator=rng, dtype=torch.float64
        )
        noise = torch.randn(n, spec.num_outputs, generator=rng, dtype=torch.float64)
        labels = (inputs.flatten(1) @ teacher + noise).argmax(dim=1)
        targets = torch.eye(spec.num_outputs, dtype=torch.float64)[labels]
        default = Ridge(RidgeConvention.PER_SAMPLE, 1e-2)
        return cls(tiny_linearisation(spec, seed), inputs, targets, ridge or default)

    def __len__(self) -> int:
        return len(self.inputs)

    def but(self, **changes: object) -> "TinyProblem":
        """Return the same, changed in something; what it costs most to find is kept."""
        found = dataclasses.replace(self, **changes)
        if changes.keys() <= {"ridge", "targets"}:
            found.__dict__["jacobians"] = self.jacobians
        return found

    @cached_property
    def features(self) -> torch.Tensor:
        """What the frozen layers make of the inputs."""
        return self.linearisation.network.frozen(self.inputs)

    @property
    def data(self) -> FeatureSamples:
        """The training set."""
        return FeatureSamples(self.features, self.targets)

    def take(self, rows: object) -> FeatureSamples:
        """Some of its samples."""
        chosen = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return FeatureSamples(self.features[chosen], self.targets[chosen])

    @cached_property
    def jacobians(self) -> NDArray[np.float64]:
        """J(x) of every sample, shape (n, C, D)."""
        return explicit_jacobian(self.linearisation, self.inputs)

    @cached_property
    def misfit(self) -> NDArray[np.float64]:
        """y − f(x) at the centre, shape (n, C)."""
        network = self.linearisation.network
        with torch.no_grad():
            outputs = torch.func.functional_call(network._module, network.state, (self.inputs,))
        return (self.targets - outputs).numpy()

    def rest(self, rows: object) -> NDArray[np.int64]:
        """All other samples' numbers."""
        everyone = np.arange(len(self))
        return np.setdiff1d(everyone, everyone[rows])

    def rows(self, samples: object) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The rows of some samples' Jacobians, and what the linear part has to fit by them."""
        jacobians = self.jacobians[samples]
        return jacobians.reshape(-1, jacobians.shape[2]), self.misfit[samples].reshape(-1, 1)

    def gauss_newton(self, samples: object) -> NDArray[np.float64]:
        """Σ JᵀJ, shape (D, D)."""
        jacobians, _ = self.rows(samples)
        return jacobians.T @ jacobians

    def trained(self, samples: object = slice(None)) -> torch.Tensor:
        """The optimum on some of the samples, by Cholesky's method."""
        jacobians, misfit = self.rows(samples)
        hessian = jacobians.T @ jacobians
        hessian[np.diag_indices(len(hessian))] += self.ridge.shift(len(self.jacobians[samples]))
        factor = np.linalg.cholesky(hessian)
        solution = np.linalg.solve(factor.T, np.linalg.solve(factor, jacobians.T @ misfit))
        return torch.from_numpy(solution)

    @cached_property
    def weights(self) -> torch.Tensor:
        """The optimum on all of them."""
        return self.trained()

    @cached_property
    def model(self) -> MixedLinearModel:
        """The trained network; its norm bound is the longest Jacobian's norm."""
        longest = float(np.linalg.norm(self.jacobians, 2, axis=(1, 2)).max())
        return MixedLinearModel(self.linearisation, self.weights, self.ridge, len(self), longest)

    def gradient(self, weights: torch.Tensor, samples: object) -> NDArray[np.longdouble]:
        """∇L of some samples at some weights, in 64 bits of mantissa, sum form."""
        jacobians, misfit = (part.astype(np.longdouble) for part in self.rows(samples))
        found = weights.numpy().astype(np.longdouble)
        shift = self.ridge.shift(len(self.jacobians[samples]))
        return jacobians.T @ (jacobians @ found - misfit) + np.longdouble(shift) * found

    def gradient_norm(self, weights: torch.Tensor, samples: object) -> float:
        """‖∇L‖ of some samples at some weights."""
        return float(np.sqrt(np.square(self.gradient(weights, samples)).sum()))

    def sketch(self, **changes: object) -> SketchStatistics:
        """Collect a sketch at the optimum."""
        options = {"weights": self.weights, "rank": 8, "seed": 5, "error_probes": 80} | changes
        return collect_sketch(self.linearisation, [self.data], **options)

    def gram(self) -> StoredStatistics:
        """Collect the Gram matrix of the rows."""
        return collect_gram(self.linearisation, [self.data])


def follow(model: MixedLinearModel, result: Unlearned) -> MixedLinearModel:
    """Return what the next deletion starts from, as the service does."""
    return dataclasses.replace(
        model,
        weights=result.weights,
        n_samples=result.n_samples,
        gradient_norm_bound=result.gradient_norm_bound,
    )


def explicit_sketch(
    jacobians: NDArray[np.float64],
    misfit: NDArray[np.float64],
    anchor: NDArray[np.float64],
    *,
    rank: int,
    error_probes: int,
    seed: int,
) -> SketchStatistics:
    """Sketch explicit rows (n, C, D), which need not be a network's, by plain products."""
    rows = torch.from_numpy(jacobians.reshape(-1, jacobians.shape[2]))
    width = rows.shape[1]
    directions = torch.cat(
        [
            torch.from_numpy(sign_rows(seed, 0, rank, width)),
            torch.from_numpy(gaussian_rows(seed, 0, error_probes, width)),
        ]
    )
    images, start = directions @ rows.T, torch.from_numpy(anchor)
    errors = rows @ start - torch.from_numpy(misfit.reshape(-1, 1))
    return SketchStatistics(
        sketch=images @ rows,
        core=images @ images.T,
        anchor=start,
        data_gradient=rows.T @ errors,
        # What the core allows for the rounding of that sum.
        gradient_uncertainty=2.0**-30
        * float(
            np.linalg.norm(jacobians, axis=(1, 2))
            @ errors.reshape(len(misfit), -1).norm(dim=1).numpy()
        ),
        trace=float(rows.square().sum()),
        seed=seed,
        error_probes=error_probes,
        n_samples=len(jacobians),
    )
