"""The baselines of the paper's tables, on a linear head, from the forget samples alone.

Each is its own paper's method with squared loss, with which the head was trained, in the place of
cross-entropy, and with features in the place of images: the head is all that is unlearned. The
paper of METHOD §2 prints no settings for them, so these are those of the baselines' own papers or
code, as each module names them; none was tuned to the data here, in either direction.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

from benchmarks.baselines import adversarial, jit, negative_gradient, random_labels
from core.problem import SampleSet

ALL: Mapping[str, Callable[[Tensor, SampleSet, int], Tensor]] = {
    "NegGrad": negative_gradient.unlearn,
    "Random Labels": random_labels.unlearn,
    "JiT": jit.unlearn,
    "Adversarial": adversarial.unlearn,
}
