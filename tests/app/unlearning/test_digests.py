import hashlib
import hmac
import struct

import numpy as np
import pytest

from app.registry import samples
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.unlearning import digests

KEY = b"k" * 32


@pytest.fixture
def manifest(trained):
    return Manifest.model_validate(trained.manifest())


def test_a_digest_is_the_hmac_of_the_numbers_in_little_endian():
    one = Samples(np.array([[1.5, -2.0]]), np.array([[0.0, 1.0, 0.0]]))
    message = struct.pack("<5d", 1.5, -2.0, 0.0, 1.0, 0.0)
    assert digests.of_each(one, KEY) == [hmac.new(KEY, message, hashlib.sha256).digest()]


def test_equal_samples_have_equal_digests_whatever_they_were_sent_as(manifest):
    x = [[0.5, -0.0, 0.25, 0.0]]
    ways = [
        samples.from_lists(x, [1], manifest, field="s"),
        samples.from_lists([[0.5, 0, 0.25, -0.0]], [[-0.0, 1.0, 0.0]], manifest, field="s"),
        samples.from_arrays(np.array(x, np.float32), np.array([1]), manifest, field="s"),
    ]
    assert len({digests.of_each(way, KEY)[0] for way in ways}) == 1
    assert len({digests.commitment(way, KEY) for way in ways}) == 1


def test_digests_differ_by_target_by_feature_and_by_key():
    x, y = np.array([[0.5, 0.0]]), np.array([[1.0, 0.0]])
    found = {
        digests.of_each(Samples(x, y), KEY)[0],
        digests.of_each(Samples(x, y[:, ::-1]), KEY)[0],
        digests.of_each(Samples(x[:, ::-1], y), KEY)[0],
        digests.of_each(Samples(x, y), b"q" * 32)[0],
    }
    assert len(found) == 4
