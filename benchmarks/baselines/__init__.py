"""The baselines of the paper's tables, adapted to a linear head, from the forget samples alone.

None is a reproduction of its own paper's experiment. For all of them:

* squared loss, with which the head was trained, stands in the place of cross-entropy;
* frozen features stand in the place of images, and the head is all that is unlearned, so nothing
  here says how a method does on a deep network;
* no data augmentation, no batch normalisation, no weight decay;
* iterations are fixed or capped.

METHOD §2's paper prints no settings for them. Each module says which of its settings come from the
method's own paper, which from its authors' code, and which were chosen here. Those chosen here were
not searched over the data, in either direction: better ones may exist.
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
