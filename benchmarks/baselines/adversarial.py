"""Instance-wise unlearning with adversarial examples (Cha et al. 2024, arXiv:2301.11578, AAAI).

Their method with both parts, by their code: (i) raise the loss of the forget samples; (ii) for each
of them make adversarial examples by targeted PGD in an L2 ball towards other classes, and train on
these with their targets, a stand-in for the retain set near the decision boundary; (iii) penalise
the change of each weight by 1 minus its MAS importance for the forget samples, scaled to [0, 1].
(i) and (ii) weigh as the samples in a batch.

From their code's defaults: rate 0.01, momentum 0.9, penalty 10, radius 2 for CIFAR-10. (Their run
script has rate 0.001, penalty 1 and radius 4.) Adapted: squared loss; the radius as 0.07 of a
sample's norm, as 2 is of an image's of about 30; weight decay 1e-4 left out; each batch of 128
forget samples comes with its own examples, where theirs pairs 256 examples with 32 samples; and the
test for the end, every forget sample misclassified, is made once an epoch instead of once a step.
Chosen here: at most 10 epochs (theirs: 1000, for 1 to 256 samples; here up to 6,000), 2 examples
a sample (their script: 20), 10 steps of PGD of 2/10 of the radius from the sample itself (theirs:
100 of 0.1 from a random start). The slope of a linear head changes little over the ball, but fewer
examples do weaken (ii), and 10 epochs may end before every forget sample is misclassified.
"""

import torch
from torch import Tensor

from benchmarks.baselines._descent import BATCH, batches, descend
from benchmarks.baselines.random_labels import wrong_targets
from core.problem import SampleSet

RATE, EPOCHS = 0.01, 10
EXAMPLES, RADIUS, STEPS = 2, 0.07, 10
PENALTY = 10.0


def unlearn(weights: Tensor, forget: SampleSet, seed: int) -> Tensor:
    """Return the weights once all forget samples are misclassified, or after the last epoch."""
    generator = torch.Generator().manual_seed(seed)
    x, y = forget.features, forget.targets
    made = [_examples(weights, forget, generator) for _ in range(EXAMPLES)]
    adversarial = torch.stack([examples for examples, _ in made], dim=1)
    targets = torch.stack([goals for _, goals in made], dim=1)
    kept = _kept_importance(weights, x)

    def gradient(w: Tensor, rows: Tensor) -> Tensor:
        count = len(rows) * (1 + EXAMPLES)
        raised = -x[rows].T @ (x[rows] @ w - y[rows]) / count
        near, goal = adversarial[rows].flatten(0, 1), targets[rows].flatten(0, 1)
        proxy = near.T @ (near @ w - goal) / count
        return raised + proxy + PENALTY * kept * (w - weights)

    moved = weights
    for _ in range(EPOCHS):
        moved = descend(moved, batches(len(forget), 1, generator), gradient, rate=RATE)
        if not bool(((x @ moved).argmax(dim=1) == y.argmax(dim=1)).any()):
            break
    return moved


def _examples(
    weights: Tensor, forget: SampleSet, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    # Targeted PGD: down on the loss towards a wrong class, inside the ball.
    goals = wrong_targets(forget.targets, generator)
    radius = RADIUS * torch.linalg.vector_norm(forget.features, dim=1, keepdim=True)
    shift = torch.zeros_like(forget.features)
    for _ in range(STEPS):
        slope = ((forget.features + shift) @ weights - goals) @ weights.T
        length = torch.linalg.vector_norm(slope, dim=1, keepdim=True).clamp(min=1e-12)
        shift = shift - (2.0 * radius / STEPS) * slope / length
        size = torch.linalg.vector_norm(shift, dim=1, keepdim=True).clamp(min=1e-12)
        shift = shift * (radius / size).clamp(max=1.0)
    return forget.features + shift, goals


def _kept_importance(weights: Tensor, x: Tensor) -> Tensor:
    # MAS: |∂/∂W of the mean of ‖Wᵀx‖₂| over the forget samples, added up over batches.
    importance = torch.zeros_like(weights)
    for rows in torch.split(x, BATCH):
        outputs = rows @ weights
        lengths = torch.linalg.vector_norm(outputs, dim=1, keepdim=True).clamp(min=1e-12)
        importance += (rows.T @ (outputs / lengths)).abs()
    lowest, highest = importance.min(), importance.max()
    return 1.0 - (importance - lowest) / (highest - lowest).clamp(min=1e-12)
