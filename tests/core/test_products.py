import pytest
import torch
from torch.testing import assert_close

from core.products import rows_times


@pytest.mark.parametrize("sizes", [(1,), (2,), (4, 1), (10, 1), (10,), (63, 2), (70,), (8, 0)])
def test_parts_are_multiplied_as_one_matrix_and_stay_unchanged(sizes):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 9, dtype=torch.float64, generator=generator) for n in sizes]
    matrix = torch.randn(9, 9, dtype=torch.float64, generator=generator)
    matrix = matrix + matrix.T
    before = [part.clone() for part in (*parts, matrix)]
    assert_close(rows_times(matrix, *parts), torch.cat(parts) @ matrix)
    assert all(torch.equal(*pair) for pair in zip(before, (*parts, matrix), strict=True))
