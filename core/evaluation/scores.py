"""Loss and accuracy on one set of samples."""

from torch import Tensor

from core import losses
from core.problem import SampleSet
from core.results import Score
from core.vocabulary import Loss, Task


def score(weights: Tensor, samples: SampleSet, loss: Loss, task: Task) -> Score:
    """Measure weights on samples.

    Args:
        weights: W, shape (d, C), float64.
        samples: n samples; one-hot targets for classification.
        loss: Per-sample loss.
        task: What the outputs mean.

    Returns:
        Mean loss without the ridge and, for classification, the share of right answers.

    >>> import torch
    >>> two = torch.eye(2, dtype=torch.float64)
    >>> score(two, SampleSet(two, two), Loss.SQUARED, Task.CLASSIFICATION)
    Score(mean_loss=0.0, accuracy=1.0, n_samples=2)
    """
    count = len(samples)
    accuracy = None
    if task is Task.CLASSIFICATION:
        accuracy = int(right_answers(samples.features @ weights, samples.targets).sum()) / count
    return Score(losses.OF[loss].loss(weights, samples) / count, accuracy, count)


def right_answers(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return which samples' largest output is their class.

    Args:
        outputs: Shape (n, C), float64.
        targets: One-hot rows, shape (n, C), or 0 and 1 where C = 1.

    Returns:
        Shape (n,), bool.
    """
    if targets.shape[1] == 1:
        # One output stands for two classes: logistic, its sign decides.
        return (outputs[:, 0] > 0) == (targets[:, 0] > 0.5)  # noqa: PLR2004
    return outputs.argmax(dim=1) == targets.argmax(dim=1)
