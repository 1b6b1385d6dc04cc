import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.factorisation import factorise


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 128, 200])
def test_the_factor_is_that_of_numpy_whatever_the_padding(size):
    root = np.random.default_rng(size).standard_normal((size, size))
    matrix = root @ root.T + np.eye(size)
    before = torch.from_numpy(matrix.copy())
    found = factorise(before)
    assert found.failed_minor == 0
    assert_close(found.upper.numpy(), np.linalg.cholesky(matrix).T, rtol=1e-9, atol=1e-10)
    assert torch.equal(before, torch.from_numpy(matrix))
    right_side = root[:, :1]
    wanted = np.linalg.solve(matrix, right_side)
    assert_close(found.solve(torch.from_numpy(right_side)).numpy(), wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("size", [63, 64, 65])
def test_the_first_minor_that_is_not_positive_is_named_and_never_the_padding(size):
    matrix = torch.eye(size, dtype=torch.float64)
    matrix[size - 1, size - 1] = -1.0
    assert factorise(matrix).failed_minor == size
