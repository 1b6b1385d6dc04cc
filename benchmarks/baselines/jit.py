"""JiT: smooth the outputs around each forget sample (Foster et al. 2024, arXiv:2402.01401).

For every forget sample in turn, draw N copies with Gaussian noise, and take one step down on the
mean of ‖f(x) − f(x′)‖₂ / ‖x − x′‖₂, an estimate of the local Lipschitz constant; one pass.

The gradient is that of the paper's formula, through f(x) and f(x′). The authors' code takes f(x′)
without a gradient. For a linear head f(x) − f(x′) is −noise·W, whose sign flips with the noise:
with f(x′) held fixed the mean gradient over the noise is 0, and the method would be a random walk.

Adapted: one sample a step, where their code takes the sum over a batch of 128, and noise that is
not clipped to the range of the inputs, as theirs is. Rate 3e-4 is that of their code for random
samples and VGG16 (0.1 for ViT); N = 25 as in code derived from theirs. Chosen here: noise of 0.8
times the root mean square of the features (theirs: 0.01 for VGG16 and 0.5 for ViT, on images).
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
