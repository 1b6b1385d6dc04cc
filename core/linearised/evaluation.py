"""What a deletion from a network changed, as far as there is data to measure on."""

import torch
from torch import Tensor

from core.evaluation.comparison import measure, seen_before, why_missing
from core.evaluation.membership import attack
from core.evaluation.scores import right_answers
from core.linearised.deletion import NetworkDeletion, NetworkOutcome
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.results import MembershipInference, Metrics, ReconstructionLeak, Score
from core.vocabulary import Task


def compare(deletion: NetworkDeletion, outcome: NetworkOutcome, released: Tensor) -> Metrics:
    """Measure a deletion before and after, on what an outsider can see.

    Args:
        deletion: What was asked for.
        outcome: What its tier found.
        released: The new weights as they leave the service, shape (D, 1), float64.

    Returns:
        Scores; what could not be measured is None and named in `missing`.
    """
    model = deletion.model
    before = seen_before(model, deletion.released_before)
    leak = None if before is None else _leak(model, deletion.forget, released - before)
    judged = _Judged(model, deletion.task)
    return measure(
        model.weights if before is None else before,
        released,
        deletion.forget,
        deletion.holdout,
        score=judged.score,
        infer=judged.infer,
        retain_losses=outcome.retain_losses,
        leak=leak,
        missing=why_missing(
            holdout=deletion.holdout,
            statistics=deletion.statistics,
            retain_losses=outcome.retain_losses,
            before=before,
            leak=leak,
        ),
    )


class _Judged:
    """A network's outputs on samples, computed once for each weights and set."""

    def __init__(self, model: MixedLinearModel, task: Task) -> None:
        self._model = model
        self._task = task
        self._known: dict[tuple[int, int], Tensor] = {}

    def score(self, weights: Tensor, samples: FeatureSamples) -> Score:
        losses, right = self._losses(weights, samples), None
        if self._task is Task.CLASSIFICATION:
            outputs = self._outputs(weights, samples)
            right = int(right_answers(outputs, samples.targets).sum()) / len(samples)
        return Score(float(losses.mean()), right, len(samples))

    def infer(
        self, weights: Tensor, forget: FeatureSamples, holdout: FeatureSamples
    ) -> MembershipInference:
        # Members are taken to have small losses, as `core.evaluation.membership.loss_threshold`.
        return attack(-self._losses(weights, forget), -self._losses(weights, holdout))

    def _losses(self, weights: Tensor, samples: FeatureSamples) -> Tensor:
        return (self._outputs(weights, samples) - samples.targets).square_().sum(dim=1).mul_(0.5)

    def _outputs(self, weights: Tensor, samples: FeatureSamples) -> Tensor:
        place = (id(weights), id(samples))
        if place not in self._known:
            self._known[place] = self._model.outputs(samples.features, weights)
        return self._known[place]


def _leak(
    model: MixedLinearModel, forget: FeatureSamples, change: Tensor
) -> ReconstructionLeak | None:
    # The largest |cosine| between Δw and a row of a forget sample's Jacobian, which is what the
    # sample's features are to a linear model; found without the rows.
    if not bool(change.any()):
        return None
    products = model.linearisation.jvp(forget.features, change.T)[0]
    squares = model.linearisation.blocks(forget.features).diagonal(dim1=1, dim2=2)
    lengths = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
    cosines = products.abs() / (lengths * torch.linalg.vector_norm(change))
    return ReconstructionLeak(float(cosines.max().clamp_max(1.0)), None)
