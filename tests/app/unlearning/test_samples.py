import hashlib
import hmac
import struct

import numpy as np
import pytest

from app.errors import InvalidInputError
from app.registry.schemas import Manifest
from app.unlearning import samples
from app.unlearning.samples import Samples

KEY = b"k" * 32


@pytest.fixture
def manifest(trained):
    return Manifest.model_validate(trained.manifest())


def test_a_digest_is_the_hmac_of_the_numbers_in_little_endian():
    one = Samples(np.array([[1.5, -2.0]]), np.array([[0.0, 1.0, 0.0]]))
    message = struct.pack("<5d", 1.5, -2.0, 0.0, 1.0, 0.0)
    assert samples.digests(one, KEY) == [hmac.new(KEY, message, hashlib.sha256).digest()]


def test_equal_samples_have_equal_digests_whatever_they_were_sent_as(manifest):
    x = [[0.5, -0.0, 0.25, 0.0]]
    ways = [
        samples.from_lists(x, [1], manifest, field="s"),
        samples.from_lists([[0.5, 0, 0.25, -0.0]], [[-0.0, 1.0, 0.0]], manifest, field="s"),
        samples.from_arrays(np.array(x, np.float32), np.array([1]), manifest, field="s"),
    ]
    assert len({samples.digests(way, KEY)[0] for way in ways}) == 1
    assert len({samples.commitment(way, KEY) for way in ways}) == 1


def test_digests_differ_by_target_by_feature_and_by_key():
    x, y = np.array([[0.5, 0.0]]), np.array([[1.0, 0.0]])
    found = {
        samples.digests(Samples(x, y), KEY)[0],
        samples.digests(Samples(x, y[:, ::-1]), KEY)[0],
        samples.digests(Samples(x[:, ::-1], y), KEY)[0],
        samples.digests(Samples(x, y), b"q" * 32)[0],
    }
    assert len(found) == 4


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
    samples.require_norms(on_it, manifest, field="s")
    above = Samples(np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.51]]), y)
    with pytest.raises(InvalidInputError, match=r"row 1 has the norm 1\.005"):
        samples.require_norms(above, manifest, field="s")


def test_norms_neither_overflow_nor_underflow():
    manifest = Manifest.model_validate(
        {
            "name": "m",
            "task": "regression",
            "num_features": 2,
            "num_outputs": 1,
            "ridge": {"convention": "total", "strength": 1},
            "n_samples": 5,
            "feature_norm_bound": 1.3e200,
        }
    )
    huge = Samples(np.array([[1e200, 1e200]]), np.zeros((1, 1)))
    with pytest.raises(InvalidInputError, match=r"1\.41421e\+200"):
        samples.require_norms(huge, manifest, field="s")
    samples.require_norms(Samples(huge.features * 0.9, huge.targets), manifest, field="s")
    tiny = manifest.model_copy(update={"feature_norm_bound": 1e-200})
    with pytest.raises(InvalidInputError, match=r"1\.41421e-180"):
        samples.require_norms(Samples(np.full((1, 2), 1e-180), huge.targets), tiny, field="s")


def test_labels_become_one_hot_rows(manifest, trained):
    made = samples.from_arrays(trained.x, trained.labels, manifest, field="s")
    np.testing.assert_array_equal(made.targets, trained.y)
