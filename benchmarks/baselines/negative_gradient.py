"""NegGrad: fine-tune on the forget samples in the direction that makes their loss grow.

Golatkar et al. 2020, *Eternal sunshine of the spotless net* (arXiv:1911.04933), section 5. Rate
1e-3, momentum 0.9, batches of 128, 5 epochs: the usual length in the benchmarks that followed.
Squared loss has no bound, so ascent that goes on for longer diverges.
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
