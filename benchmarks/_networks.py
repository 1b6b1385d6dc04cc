"""Networks of the benchmarks: trained on one split of the data, linearised on another."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks._data import per_sample
from core.linearised.architectures import NetworkSpec, layers_of
from core.linearised.linearisation import Linearisation
from core.linearised.networks import initialise, load_network
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.linearised.training import fit
from core.problem import Ridge
from demo.data import Images
from demo.training import one_hot

LEARNING_RATE = 1e-3
BATCH = 64
# What training stops at, and what the reference is brought to.
TOLERANCE = 1e-8
REFERENCE_TOLERANCE = 1e-10
_FROZEN_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """One network, and how much data it gets.

    Attributes:
        name: What tables call it.
        spec: The network, and k.
        core: Samples that train the network: public here.
        user: Samples that train its linear part: what is forgotten from.
        test: Samples that accuracy is measured on.
        epochs: Of the network's training.
    """

    name: str
    spec: NetworkSpec
    core: int
    user: int
    test: int
    epochs: int = 3


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A linearised network with the data of its linear part, which the service does not have.

    Attributes:
        size: Which network.
        linearisation: Around the weights that the core split gave.
        data: The user split.
        public: Features of the core split.
        test: Held-out samples.
        row_square: Mean squared length of a row of J over the user split.
        jacobian_norm: Largest ‖J(x)‖₂ of the user split.
        seed: Of initial weights, splits and order.
    """

    size: Size
    linearisation: Linearisation
    data: FeatureSamples
    public: Tensor
    test: FeatureSamples
    row_square: float
    jacobian_norm: float
    seed: int

    def ridge(self, relative: float) -> Ridge:
        """Return METHOD's ridge as it would be with rows of length 1 on average."""
        return per_sample(relative * self.row_square)

    def model(self, weights: Tensor, ridge: Ridge) -> MixedLinearModel:
        """Return the model that is trained on the whole user split."""
        return MixedLinearModel(
            self.linearisation, weights, ridge, len(self.data), self.jacobian_norm
        )

    def accuracy(self, weights: Tensor) -> float:
        """Return the share of right answers on the test split, in percent."""
        outputs = self.linearisation.jvp(self.test.features, weights.T)[0]
        outputs += self.linearisation.centre_outputs(self.test.features)
        right = outputs.argmax(dim=1) == self.test.targets.argmax(dim=1)
        return 100.0 * float(right.to(torch.float64).mean())

    def retain_gradient(self, weights: Tensor, kept: FeatureSamples, ridge: Ridge) -> Tensor:
        """Return ∇L(w; D_r) from the data."""
        model = replace(self.model(weights, ridge), n_samples=len(kept))
        return model.data_gradient(kept).add_(weights, alpha=ridge.shift(len(kept)))


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The optimum, and what it took from zero to `TOLERANCE`."""

    weights: Tensor
    seconds: float
    iterations: int
    gradient_norm: float


def build(size: Size, images: Images, seed: int) -> Case:
    """Train a network on the core split, and linearise it for the user split."""
    order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(seed))
    core, user = order[: size.core], order[size.core : size.core + size.user]
    tensors = _train(size, images.train[core], images.train_labels[core], seed)
    network = load_network(size.spec, tensors)
    linearisation = Linearisation(network)

    def split(inputs: Tensor, labels: Tensor) -> FeatureSamples:
        parts = [network.frozen(part) for part in torch.split(inputs, _FROZEN_BATCH)]
        return FeatureSamples(torch.cat(parts), one_hot(labels, images.num_classes))

    data = split(images.train[user], images.train_labels[user])
    blocks = linearisation.blocks(data.features)
    return Case(
        size,
        linearisation,
        data,
        split(images.train[core], images.train_labels[core]).features,
        split(images.test[: size.test], images.test_labels[: size.test]),
        float(blocks.diagonal(dim1=1, dim2=2).mean()),
        float(torch.linalg.eigvalsh(blocks)[:, -1].max()) ** 0.5,
        seed,
    )


def train(case: Case, kept: FeatureSamples, ridge: Ridge) -> Trained:
    """Train the linear part from zero; timed to `TOLERANCE`, then brought on to the reference's."""
    started = time.perf_counter()
    first = fit(case.linearisation, [kept], ridge, tolerance=TOLERANCE)
    seconds = time.perf_counter() - started
    exact = fit(
        case.linearisation,
        [kept],
        ridge,
        tolerance=REFERENCE_TOLERANCE,
        start=first.weights,
    )
    return Trained(
        exact.weights,
        seconds,
        int(first.report.figures["iterations"]),
        first.report.figures["gradient_norm"],
    )


def _train(size: Size, inputs: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    # All layers of the network at once: its head is then the whole network.
    whole = replace(size.spec, layers=len(layers_of(size.spec)))
    network = load_network(whole, initialise(whole, seed))
    parameters = {name: value.clone() for name, value in network.parameters.items()}
    for value in parameters.values():
        value.requires_grad_()
    optimiser = torch.optim.Adam(parameters.values(), LEARNING_RATE)
    targets = one_hot(labels, size.spec.num_outputs)
    features = network.frozen(inputs)
    for batch in _batches(len(inputs), size.epochs, seed):
        outputs = network.head(parameters, features[batch])
        loss = 0.5 * (outputs - targets[batch]).square().sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach() for name, value in parameters.items()}


def _batches(count: int, epochs: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=generator), BATCH)
