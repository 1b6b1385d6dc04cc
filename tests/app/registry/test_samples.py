import numpy as np
import pytest

from app.errors import InvalidInputError
from app.registry import samples
from app.registry.samples import Samples
from app.registry.schemas import Manifest


@pytest.fixture
def manifest(trained):
    return Manifest.model_validate(trained.manifest())


def test_the_canonical_file_is_read_back_bit_for_bit(trained):
    one = Samples(trained.x, trained.y)
    content = samples.to_bytes(one)
    again = samples.from_bytes(content)
    np.testing.assert_array_equal(again.features, one.features)
    np.testing.assert_array_equal(again.targets, one.targets)
    assert samples.to_bytes(again) == content


def test_a_sample_on_the_bound_passes_and_one_above_names_its_row(manifest):
    y = np.eye(3)[:2]
    on_it = Samples(np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]]), y)
    samples.require_norms(on_it.features, manifest, field="s")
    above = Samples(np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.51]]), y)
    with pytest.raises(InvalidInputError, match=r"row 1 has the norm 1\.005"):
        samples.require_norms(above.features, manifest, field="s")


def test_norms_neither_overflow_nor_underflow():
    manifest = Manifest.model_validate(
        {
            "name": "m",
            "task": "regression",
            "num_features": 2,
            "num_outputs": 1,
            "ridge": {"convention": "total", "strength": 1},
            "n_samples": 5,
            "feature_norm_bound": 1,
        }
    ).model_copy(update={"feature_norm_bound": 1.3e200})  # larger than any that is taken
    huge = Samples(np.array([[1e200, 1e200]]), np.zeros((1, 1)))
    with pytest.raises(InvalidInputError, match=r"1\.41421e\+200"):
        samples.require_norms(huge.features, manifest, field="s")
    samples.require_norms(huge.features * 0.9, manifest, field="s")
    tiny = manifest.model_copy(update={"feature_norm_bound": 1e-200})
    with pytest.raises(InvalidInputError, match=r"1\.41421e-180"):
        samples.require_norms(np.full((1, 2), 1e-180), tiny, field="s")


def test_labels_become_one_hot_rows(manifest, trained):
    made = samples.from_arrays(trained.x, trained.labels, manifest, field="s")
    np.testing.assert_array_equal(made.targets, trained.y)
