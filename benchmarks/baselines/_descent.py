"""Stochastic gradient descent on a linear head, as all baselines use it."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BATCH = 128


def batches(count: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each batch, shuffled every epoch."""
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=generator), BATCH)


def descend(
    weights: Tensor,
    rows: Iterator[Tensor],
    gradient: Callable[[Tensor, Tensor], Tensor],
    *,
    rate: float,
    momentum: float = 0.9,
) -> Tensor:
    """Follow gradient(W, rows of a batch), with heavy-ball momentum as torch.optim.SGD has it."""
    moved, velocity = weights.clone(), torch.zeros_like(weights)
    for batch in rows:
        velocity = momentum * velocity + gradient(moved, batch)
        moved = moved - rate * velocity
    return moved
