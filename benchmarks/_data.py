"""The data of the benchmarks, retraining by a route of its own, and the choosers of forget sets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from core.problem import Ridge, SampleSet
from core.vocabulary import RidgeConvention
from demo.data import DataNotFoundError, Dataset, DatasetName, load
from demo.training import one_hot

# Rows copied at a time: a retain set of 60,000×512 need not lie in memory twice.
_BLOCK = 8192
_REFINEMENTS = 2


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give torch some threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=2)
def features(name: DatasetName = DatasetName.FASHION_MNIST) -> Dataset:
    """Load a dataset; the digits of scikit-learn where the files of Fashion-MNIST are missing.

    Rows of a report name the dataset that was found, so a fallback cannot pass for the real one.
    """
    try:
        return load(name)
    except DataNotFoundError as error:
        print(f"{error}; the digits stand in")
        return load(DatasetName.DIGITS)


def narrow(dataset: Dataset, num_features: int) -> Dataset:
    """Keep the first features and the constant, each row brought back to norm 1.

    For random ReLU features this is the dataset with fewer of them.
    """
    if num_features >= dataset.train_features.shape[1]:
        return dataset

    def kept(rows: Tensor) -> Tensor:
        some = torch.hstack([rows[:, : num_features - 1], rows[:, -1:]])
        return some.div_(torch.linalg.vector_norm(some, dim=1, keepdim=True))

    return Dataset(
        f"{dataset.name}, the first {num_features - 1} and a constant",
        kept(dataset.train_features),
        dataset.train_labels,
        kept(dataset.test_features),
        dataset.test_labels,
        dataset.num_classes,
    )


def shorten(dataset: Dataset, count: int) -> Dataset:
    """Keep the first training samples, for a quick run."""
    if count >= len(dataset.train_labels):
        return dataset
    return Dataset(
        f"{dataset.name}, the first {count} samples",
        dataset.train_features[:count],
        dataset.train_labels[:count],
        dataset.test_features,
        dataset.test_labels,
        dataset.num_classes,
    )


def samples(dataset: Dataset) -> SampleSet:
    """Return the training set with one-hot targets."""
    return SampleSet(dataset.train_features, one_hot(dataset.train_labels, dataset.num_classes))


def test_samples(dataset: Dataset) -> SampleSet:
    """Return the test set with one-hot targets."""
    return SampleSet(dataset.test_features, one_hot(dataset.test_labels, dataset.num_classes))


def rows_of(whole: SampleSet, rows: Tensor) -> SampleSet:
    """Return some samples, by index."""
    return SampleSet(whole.features[rows], whole.targets[rows])


# --- forget sets ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class ForgetSet:
    """Which training samples are to be forgotten.

    Attributes:
        name: What tables call it.
        rows: Their indices, shape (n_f,), int64.
        seed: That chose them.
    """

    name: str
    rows: Tensor
    seed: int


def one_record(dataset: Dataset, seed: int) -> ForgetSet:
    """Pick one sample."""
    return ForgetSet("one record", _shuffled(dataset, seed)[:1], seed)


def random_count(dataset: Dataset, count: int, seed: int) -> ForgetSet:
    """Pick a number of samples."""
    return ForgetSet(f"{count} random", _shuffled(dataset, seed)[:count], seed)


def random_share(dataset: Dataset, percent: float, seed: int) -> ForgetSet:
    """Pick a share of the samples."""
    count = max(round(percent / 100 * len(dataset.train_labels)), 1)
    return ForgetSet(f"{percent:g} %", _shuffled(dataset, seed)[:count], seed)


def one_class(dataset: Dataset, seed: int) -> ForgetSet:
    """Pick all samples of one class, which the seed names."""
    label = seed % dataset.num_classes
    rows = (dataset.train_labels == label).nonzero()[:, 0]
    return ForgetSet("one class", rows, seed)


def highest_residual(
    dataset: Dataset, weights: Tensor, seed: int, *, percent: float = 1.0
) -> ForgetSet:
    """Pick, of a random half of the samples, those that the weights fit worst.

    Of a half, so that seeds differ.
    """
    half = _shuffled(dataset, seed)[: len(dataset.train_labels) // 2]
    some = rows_of(samples(dataset), half)
    errors = (some.features @ weights - some.targets).square().sum(dim=1)
    count = max(round(percent / 100 * len(dataset.train_labels)), 1)
    return ForgetSet("highest residual, 1 %", half[errors.topk(count).indices], seed)


def _shuffled(dataset: Dataset, seed: int) -> Tensor:
    return torch.randperm(len(dataset.train_labels), generator=torch.Generator().manual_seed(seed))


# --- retraining ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """The normal equations of some samples, summed from the samples themselves.

    Attributes:
        gram: XᵀX, shape (d, d), float64.
        cross: XᵀY, shape (d, C), float64.
        count: How many samples.
    """

    gram: Tensor
    cross: Tensor
    count: int

    def solve(self, ridge: Ridge) -> Tensor:
        """Train on the samples, as exactly as the normal equations tell."""
        return torch.cholesky_solve(self.cross, self._factor(ridge))

    def _factor(self, ridge: Ridge) -> Tensor:
        matrix = self.gram + ridge.shift(self.count) * torch.eye(
            len(self.gram), dtype=torch.float64
        )
        return torch.linalg.cholesky(matrix)

    def refined(self, ridge: Ridge, whole: SampleSet, kept: Tensor) -> Tensor:
        """Train on the samples, with errors measured on the data and corrected twice.

        The gradient is that of the data and not of their sums, so the result is as good as that of
        a QR factorisation (`demo.training.fit_ridge`), for a tenth of its time.
        """
        factor = self._factor(ridge)
        weights = torch.cholesky_solve(self.cross, factor)
        for _ in range(_REFINEMENTS):
            gradient = retain_gradient(whole, kept, weights, ridge.shift(self.count))
            weights = weights - torch.cholesky_solve(gradient, factor)
        return weights


def retain_gradient(whole: SampleSet, kept: Tensor, weights: Tensor, shift: float) -> Tensor:
    """Return the gradient at the samples in `kept`, from the samples, with the ridge's shift."""
    errors = torch.addmm(whole.targets, whole.features, weights, beta=-1)
    errors[~kept] = 0.0
    return torch.addmm(weights, whole.features.T, errors, beta=shift)


def normal_equations(whole: SampleSet, kept: Tensor) -> Normal:
    """Sum the normal equations of the samples in `kept` (bool, shape (n,)) from the data."""
    width, outputs = whole.features.shape[1], whole.targets.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, outputs, dtype=torch.float64)
    for x, y in _kept_blocks(whole, kept):
        gram.addmm_(x.T, x)
        cross.addmm_(x.T, y)
    return Normal(gram, cross, int(kept.sum()))


def keep_all_but(rows: Tensor, count: int) -> Tensor:
    """Return the mask of the retain set."""
    kept = torch.ones(count, dtype=torch.bool)
    kept[rows] = False
    return kept


def per_sample(strength: float) -> Ridge:
    """Return METHOD's ridge."""
    return Ridge(RidgeConvention.PER_SAMPLE, strength)


def _kept_blocks(whole: SampleSet, kept: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(whole), _BLOCK):
        rows = slice(start, start + _BLOCK)
        chosen = kept[rows]
        yield whole.features[rows][chosen], whole.targets[rows][chosen]
