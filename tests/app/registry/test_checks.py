import numpy as np
import pytest

from app.errors import InvalidInputError
from app.registry import checks, tensors
from app.registry.schemas import Manifest


def manifest(d, num_outputs, n, **changes):
    return Manifest.model_validate(
        {
            "name": "m",
            "task": "regression",
            "num_features": d,
            "num_outputs": num_outputs,
            "ridge": {"convention": "per_sample", "strength": 1e-3},
            "n_samples": n,
            "feature_norm_bound": 1e6,
        }
        | changes
    )


def statistics_of(x, y):
    n = np.array([len(x)])
    stored = {"gram": x.T @ x, "cross": x.T @ y, "target_gram": y.T @ y, "n_samples": n}
    return tensors.write(stored)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["tall", "wide", "repeated", "badly scaled", "zero"])
def test_statistics_of_real_data_always_pass(seed, shape):
    rng = np.random.default_rng(seed)
    n, d = (5, 30) if shape == "wide" else (500, 30)
    x = rng.normal(size=(n, d))
    if shape == "repeated":
        x[:, 10:] = x[:, :1]
    if shape == "badly scaled":
        x *= np.logspace(-8, 2, d)
    if shape == "zero":
        x[:] = 0
    y = x @ rng.normal(size=(d, 2))  # an exact fit: the augmented Gram is singular
    found = checks.read_statistics(statistics_of(x, y), manifest(d, 2, n))
    np.testing.assert_array_equal(found.gram, x.T @ x)


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_that_was_never_in_the_set_makes_them_indefinite(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 2))
    x[:, 7] = 0.0
    forged, target = rng.normal(size=(1, 8)), rng.normal(size=(1, 2))
    stored = {
        "gram": x.T @ x - forged.T @ forged,
        "cross": x.T @ y - forged.T @ target,
        "target_gram": y.T @ y - target.T @ target,
        "n_samples": np.array([49]),
    }
    with pytest.raises(InvalidInputError, match="negative eigenvalue"):
        checks.read_statistics(tensors.write(stored), manifest(8, 2, 49))


def test_the_canonical_file_has_the_same_bytes_for_the_same_numbers():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    content = statistics_of(x, y)
    found = checks.read_statistics(content, manifest(3, 1, 20))
    assert found.to_bytes() == content


def test_the_training_gradient_is_that_of_the_loss_on_the_data():
    rng = np.random.default_rng(3)
    x, y, w = rng.normal(size=(30, 4)), rng.normal(size=(30, 2)), rng.normal(size=(4, 2))
    stored = checks.read_statistics(statistics_of(x, y), manifest(4, 2, 30))
    gradient = sum(np.outer(row, row @ w - target) for row, target in zip(x, y, strict=True))
    gradient += 1e-3 * 30 * w
    lenient = manifest(4, 2, 30, training_gradient_tolerance=1e6)
    norm = stored.training_gradient_norm(w, lenient)
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
