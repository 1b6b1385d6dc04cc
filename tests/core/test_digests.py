import hashlib
import hmac
import struct

import numpy as np
import pytest
import torch

from core.digests import of_each
from core.errors import InvalidTensorError

KEY = bytes(range(32))


def test_a_digest_is_the_hmac_of_the_numbers_in_little_endian():
    message = struct.pack("<5d", 1.5, -2.0, 0.0, 1.0, 0.0)
    expected = hmac.new(KEY, message, hashlib.sha256).digest()
    assert of_each([[1.5, -2.0]], [[0.0, 1.0, 0.0]], KEY) == [expected]


@pytest.mark.parametrize("kind", ["float32", "big endian", "tensor", "transposed", "minus zero"])
def test_equal_samples_have_equal_digests_whatever_they_are_stored_as(kind):
    x, y = np.array([[0.5, 0.0], [0.25, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    others = {
        "float32": (x.astype(np.float32), y.astype(np.int64)),
        "big endian": (x.astype(">f8"), y.astype(">f4")),
        "tensor": (torch.from_numpy(x), torch.from_numpy(y)),
        "transposed": (np.asfortranarray(x), np.asfortranarray(y)),
        "minus zero": (np.where(x == 0, -0.0, x), np.where(y == 0, -0.0, y)),
    }
    assert of_each(*others[kind], KEY) == of_each(x, y, KEY)


def test_blocks_change_nothing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9000, 2)), rng.normal(size=(9000, 1))
    whole = of_each(x, y, KEY)
    assert whole == [
        digest
        for i in range(0, 9000, 100)
        for digest in of_each(x[i : i + 100], y[i : i + 100], KEY)
    ]
    assert len(set(whole)) == 9000


def test_inputs_are_unchanged():
    x, y = np.array([[-0.0, 1.0]]), np.array([[1.0]])
    of_each(x, y, KEY)
    assert np.signbit(x[0, 0])


@pytest.mark.parametrize(
    ("x", "y", "key", "message"),
    [
        ([[1.0]], [[1.0]], b"short", "32 bytes"),
        ([1.0], [[1.0]], KEY, r"\(1,\)"),
        ([[1.0]], [1.0], KEY, r"\(n, C\)"),
        ([[1.0]], [[1.0], [2.0]], KEY, r"\(2, 1\)"),
        ([[np.nan]], [[1.0]], KEY, "NaN"),
        ([[1.0]], [[np.inf]], KEY, "infinite"),
    ],
)
def test_what_has_no_canonical_form_is_refused(x, y, key, message):
    with pytest.raises(InvalidTensorError, match=message):
        of_each(x, y, key)
