"""Products of a few rows with a large matrix: what a deletion in O(d²) spends its time on."""

from torch import Tensor

# Kernels of BLAS libraries take rows in blocks and the rest one by one: at d = 512 one product with
# 12 rows takes less time than with 10. Few rows, and many, gain nothing.
_BLOCK_ROWS = 4
_FEWEST = 6
_MOST = 64


def rows_times(matrix: Tensor, *parts: Tensor) -> Tensor:
    """Return U·A for a symmetric A, where the rows of U come in parts; A is read once.

    Args:
        matrix: A, shape (k, k), float64, symmetric: its rows are read, which lie together in
            memory, so that matrices that no cache holds cost fewer pages.
        parts: Blocks of U, one upon the other, each of shape (any, k), float64.

    Returns:
        Shape (rows, k), float64, without zeros that were added on the way.

    >>> import torch
    >>> rows_times(2.0 * torch.eye(2), torch.ones(1, 2), torch.zeros(1, 2)).tolist()
    [[2.0, 2.0], [0.0, 0.0]]
    """
    count = sum(len(part) for part in parts)
    padding = -count % _BLOCK_ROWS if _FEWEST <= count <= _MOST else 0
    if padding == 0 and len(parts) == 1:
        return parts[0] @ matrix.mT if count > 1 else parts[0] @ matrix
    rows = matrix.new_zeros(count + padding, matrix.shape[0])
    begin = 0
    for part in parts:
        rows[begin : begin + len(part)] = part
        begin += len(part)
    product: Tensor = rows @ matrix.mT
    return product[:count]
