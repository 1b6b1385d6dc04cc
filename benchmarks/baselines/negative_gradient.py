"""NegGrad: fine-tune on the forget samples in the direction that makes their loss grow.

The idea is that of Golatkar et al. 2020, *Eternal sunshine of the spotless net* (arXiv:1911.04933).
Adapted: ascent on squared loss, which has no bound, so ascent that goes on for longer diverges.
Chosen here, not from a paper or its code: rate 1e-3, momentum 0.9, batches of 128, 5 epochs.
"""

import torch
from torch import Tensor

from benchmarks.baselines._descent import batches, descend
from core.problem import SampleSet

RATE, EPOCHS = 1e-3, 5


def unlearn(weights: Tensor, forget: SampleSet, seed: int) -> Tensor:
    """Return the weights after gradient ascent on the mean forget loss."""
    x, y = forget.features, forget.targets

    def ascent(w: Tensor, rows: Tensor) -> Tensor:
        return -x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)

    generator = torch.Generator().manual_seed(seed)
    return descend(weights, batches(len(forget), EPOCHS, generator), ascent, rate=RATE)
