"""JiT: smooth the outputs around each forget sample (Foster et al. 2024, arXiv:2402.01401).

Their algorithm 1: for every forget sample in turn, draw N copies with Gaussian noise, and take one
step down on the mean of ‖f(x) − f(x′)‖₂ / ‖x − x′‖₂, an estimate of the local Lipschitz constant.
One pass, N = 25, rate 3e-4, noise 0.8 of the size of the inputs: theirs have unit variance, here it
is the root mean square of the features.
"""

import torch
from torch import Tensor

from core.problem import SampleSet

RATE, COPIES, NOISE = 3e-4, 25, 0.8


def unlearn(weights: Tensor, forget: SampleSet, seed: int) -> Tensor:
    """Return the weights after one pass over the forget samples."""
    generator = torch.Generator().manual_seed(seed)
    moved = weights.clone()
    size = NOISE * float(forget.features.square().mean().sqrt())
    for row in torch.randperm(len(forget), generator=generator):
        x = forget.features[row]
        shape = (COPIES, len(x))
        noise = size * torch.randn(shape, generator=generator, dtype=x.dtype)
        # A linear head: f(x) − f(x′) is −noise·W whatever x is.
        change = noise @ moved
        lengths = torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        outputs = torch.linalg.vector_norm(change, dim=1, keepdim=True)
        slope = noise.T @ (change / (outputs.clamp(min=1e-12) * lengths)) / COPIES
        moved -= RATE * slope
    return moved
