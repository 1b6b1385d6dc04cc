"""Hessians of all outputs at once: one (d, d) matrix that they share, or (C, d, d), one each."""

import torch
from torch import Tensor

_SHARED = 2


def shift(matrix: Tensor, amount: float) -> None:
    """Add amount·I to every Hessian, in place.

    Args:
        matrix: Shape (d, d) or (C, d, d), float64.
        amount: What is added to every eigenvalue.
    """
    matrix.diagonal(dim1=-2, dim2=-1).add_(amount)


def times(matrix: Tensor, change: Tensor) -> Tensor:
    """Return the columns H_c v_c.

    Args:
        matrix: H, shape (d, d) for all outputs or (C, d, d), float64, symmetric.
        change: V, shape (d, C), float64.

    Returns:
        Shape (d, C), float64.
    """
    if matrix.ndim == _SHARED:
        # VᵀH takes half the time of HV: V has few columns.
        return (change.T @ matrix).T
    # One by one: batched products with one column each take three times as long.
    return torch.stack([torch.mv(*pair) for pair in zip(matrix, change.T, strict=True)], dim=1)


def of_output(matrix: Tensor, output: int) -> Tensor:
    """Return the Hessian of one output.

    Args:
        matrix: H, shape (d, d) for all outputs or (C, d, d), float64.
        output: c.

    Returns:
        Shape (d, d), a view.
    """
    return matrix if matrix.ndim == _SHARED else matrix[output]


def traces(matrices: Tensor) -> Tensor:
    """Return the trace of every Hessian.

    Args:
        matrices: Shape (C, d, d), float64.

    Returns:
        Shape (C,), float64.
    """
    return matrices.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
