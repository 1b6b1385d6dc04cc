"""Real data for the demo, as features of norm at most 1 with their labels."""

import gzip
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURE_NORM_BOUND = 1.0
_DEFAULT_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_FROZEN_FEATURES = 511  # and a constant: d = 512
_FEATURE_SEED = 20260
_SPLIT_SEED = 7


class DatasetName(StrEnum):
    """What `lethe demo --dataset` takes."""

    DIGITS = "digits"
    FASHION_MNIST = "fashion-mnist"


class DataNotFoundError(Exception):
    """The files of a dataset are not where they were looked for."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Training and test samples.

    Attributes:
        name: What the demo calls it.
        train_features: Shape (n, d), float64, rows of norm at most `FEATURE_NORM_BOUND`.
        train_labels: Shape (n,), int64.
        test_features: Shape (n_test, d), as above.
        test_labels: Shape (n_test,), int64.
        num_classes: C.
    """

    name: str
    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    num_classes: int = 10


def load(name: DatasetName, data_dir: Path | None = None) -> Dataset:
    """Load a dataset by name.

    Raises:
        DataNotFoundError: Its files are missing; the message says what to install.
    """
    if name is DatasetName.DIGITS:
        return _digits()
    return _fashion_mnist(data_dir or _DEFAULT_FASHION_MNIST)


@dataclass(frozen=True, slots=True)
class Images:
    """Pictures with their labels, for networks.

    Attributes:
        name: What reports call it.
        train: Shape (n, 1, height, width), float64, in [0, 1].
        train_labels: Shape (n,), int64.
        test: Shape (n_test, 1, height, width), as above.
        test_labels: Shape (n_test,), int64.
        num_classes: C.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int = 10


def load_images(data_dir: Path | None = None) -> Images:
    """Load Fashion-MNIST's pictures.

    Raises:
        DataNotFoundError: Its files are missing; the message says what to install.
    """
    folder = data_dir or _DEFAULT_FASHION_MNIST

    def pixels(prefix: str) -> Tensor:
        found = torch.from_numpy(_read_idx(folder, f"{prefix}-images-idx3-ubyte.gz", header=16))
        return found.reshape(-1, 1, 28, 28).to(torch.float64) / 255

    return Images(
        "Fashion-MNIST",
        pixels("train"),
        _fashion_mnist_labels(folder, "train"),
        pixels("t10k"),
        _fashion_mnist_labels(folder, "t10k"),
    )


def reduce_by_pca(dataset: Dataset, dimension: int) -> Dataset:
    """Project the features onto their leading principal components, beside a constant.

    The paper's program estimates d(d+1)/2 unknowns from as many perturbations, so it needs few
    features. The projection is the backbone's here: it is public, not part of what is unlearned.
    """
    mean = dataset.train_features.mean(dim=0)
    _, _, components = torch.linalg.svd(dataset.train_features - mean, full_matrices=False)
    basis = components[: dimension - 1].T
    train = _with_constant((dataset.train_features - mean) @ basis)
    test = _with_constant((dataset.test_features - mean) @ basis)
    norm = train.norm(dim=1).max()
    return Dataset(
        name=f"{dataset.name}, {dimension} principal components",
        train_features=train / norm,
        train_labels=dataset.train_labels,
        test_features=test / norm,
        test_labels=dataset.test_labels,
        num_classes=dataset.num_classes,
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - 1.6 s, only when asked for

    digits = load_digits()
    pixels = torch.from_numpy(digits.data) / 16  # 8x8 grey values, 0 to 16
    # Pixels lie in [0, 1], so the square root of d bounds every norm: known without the data.
    features = _with_constant(pixels)
    features /= features.shape[1] ** 0.5
    labels = torch.from_numpy(digits.target).to(torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    features, labels = features[order], labels[order]
    n_train = int(0.8 * len(labels))
    return Dataset(
        "digits", features[:n_train], labels[:n_train], features[n_train:], labels[n_train:]
    )


def _fashion_mnist(folder: Path) -> Dataset:
    frozen = torch.randn(
        (28 * 28, _FROZEN_FEATURES),
        generator=torch.Generator().manual_seed(_FEATURE_SEED),
        dtype=torch.float64,
    )

    def features(prefix: str) -> Tensor:
        pixels = torch.from_numpy(_read_idx(folder, f"{prefix}-images-idx3-ubyte.gz", header=16))
        pixels = pixels.reshape(-1, 28 * 28).to(torch.float64) / 255
        hidden = _with_constant(torch.relu(pixels @ frozen) / 28)
        return hidden.div(torch.linalg.vector_norm(hidden, dim=1, keepdim=True))

    return Dataset(
        "Fashion-MNIST, 512 frozen random ReLU features",
        features("train"),
        _fashion_mnist_labels(folder, "train"),
        features("t10k"),
        _fashion_mnist_labels(folder, "t10k"),
    )


def _fashion_mnist_labels(folder: Path, prefix: str) -> Tensor:
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte.gz", header=8)
    return torch.from_numpy(labels).to(torch.int64)


def _read_idx(
    folder: Path, name: str, *, header: int
) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    path = folder / name
    if not path.exists():
        raise DataNotFoundError(
            f"no {path}: install Debian's package dataset-fashion-mnist, or name the folder of "
            "the four original files with --data-dir"
        )
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), dtype=np.uint8, offset=header).copy()


def _with_constant(features: Tensor) -> Tensor:
    return torch.hstack([features, features.new_ones(len(features), 1)])
