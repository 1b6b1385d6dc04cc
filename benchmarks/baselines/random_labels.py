"""Random Labels: fine-tune on the forget samples with labels drawn from the other classes.

The idea is that of Golatkar et al. 2020 (arXiv:1911.04933) and of Graves et al. 2021, *Amnesiac
machine learning* (arXiv:2010.10981), who mix in retain samples; there are none here. Adapted:
squared loss to one-hot wrong labels. Chosen here, not from a paper or its code: labels from the
wrong classes only and drawn once, rate 0.1, momentum 0.9, batches of 128, 10 epochs.
"""

import torch
from torch import Tensor

from benchmarks.baselines._descent import batches, descend
from core.problem import SampleSet

RATE, EPOCHS = 0.1, 10


def unlearn(weights: Tensor, forget: SampleSet, seed: int) -> Tensor:
    """Return the weights after fine-tuning on wrong labels."""
    generator = torch.Generator().manual_seed(seed)
    x, wrong = forget.features, wrong_targets(forget.targets, generator)

    def descent(w: Tensor, rows: Tensor) -> Tensor:
        return x[rows].T @ (x[rows] @ w - wrong[rows]) / len(rows)

    return descend(weights, batches(len(forget), EPOCHS, generator), descent, rate=RATE)


def wrong_targets(targets: Tensor, generator: torch.Generator) -> Tensor:
    """Return one-hot rows, each of a class other than the right one, all equally likely."""
    count, classes = targets.shape
    steps = torch.randint(1, classes, (count,), generator=generator)
    labels = (targets.argmax(dim=1) + steps) % classes
    return torch.nn.functional.one_hot(labels, classes).to(targets.dtype)
