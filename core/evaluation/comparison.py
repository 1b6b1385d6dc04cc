"""What a deletion changed, as far as there is data to measure on."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from core.evaluation.membership import loss_threshold
from core.evaluation.reconstruction import reconstruction_leak
from core.evaluation.scores import score
from core.privacy import Privacy
from core.results import MembershipInference, Metrics, ReconstructionLeak, Score
from core.tiers._deletion import Deletion, Outcome
from core.vocabulary import Mechanism

_Samples = TypeVar("_Samples")


def compare(deletion: Deletion, outcome: Outcome, released: Tensor) -> Metrics:
    """Measure a deletion before and after, on what an outsider can see.

    Args:
        deletion: What was asked for.
        outcome: What its tier found.
        released: The new weights as they leave the service, shape (d, C), float64.

    Returns:
        Scores; what could not be measured is None and named in `missing`.
    """
    model, task = deletion.model, deletion.task
    before = seen_before(model, deletion.released_before)
    # What the tier knows of H_rΔW is about weights without noise.
    plain = released is outcome.weights and before is model.weights
    leak = None
    if before is not None:
        leak = reconstruction_leak(
            released - before,
            deletion.forget,
            outcome.remaining,
            model.ridge,
            outcome.hessian_change if plain else None,
        )
    missing = why_missing(
        holdout=deletion.holdout,
        statistics=deletion.remaining,
        retain_losses=outcome.retain_losses,
        before=before,
        leak=leak,
    )
    return measure(
        model.weights if before is None else before,
        released,
        deletion.forget,
        deletion.holdout,
        score=lambda weights, samples: score(weights, samples, model.loss, task),
        infer=lambda weights, forget, holdout: loss_threshold(weights, forget, holdout, model.loss),
        retain_losses=outcome.retain_losses,
        leak=leak,
        missing=missing,
    )


def measure(
    weights: Tensor,
    released: Tensor,
    forget: _Samples,
    holdout: _Samples | None,
    *,
    score: Callable[[Tensor, _Samples], Score],
    infer: Callable[[Tensor, _Samples, _Samples], MembershipInference],
    retain_losses: tuple[float, float] | None,
    leak: ReconstructionLeak | None,
    missing: Mapping[str, str],
) -> Metrics:
    """Score old and new weights, whatever kind of model they are of.

    Args:
        weights: What was seen of the model before, any shape, float64.
        released: What leaves the service now, likewise.
        forget: D_f.
        holdout: Samples that were never trained on, if any.
        score: Measures weights on samples.
        infer: Attacks weights, told the forget samples and the holdout.
        retain_losses: L(W; D_r) before and after, if they are known.
        leak: What both weights together reveal, if it is known.
        missing: Why figures are missing.

    Returns:
        The figures.
    """
    retain_before, retain_after = retain_losses or (None, None)
    return Metrics(
        forget_before=score(weights, forget),
        forget_after=score(released, forget),
        holdout_before=None if holdout is None else score(weights, holdout),
        holdout_after=None if holdout is None else score(released, holdout),
        retain_loss_before=retain_before,
        retain_loss_after=retain_after,
        weight_change=float(torch.linalg.norm(released - weights)),
        membership_before=None if holdout is None else infer(weights, forget, holdout),
        membership_after=None if holdout is None else infer(released, forget, holdout),
        reconstruction=leak,
        missing=missing,
    )


def why_missing(
    *,
    holdout: object | None,
    statistics: object | None,
    retain_losses: object | None,
    before: Tensor | None,
    leak: ReconstructionLeak | None,
) -> dict[str, str]:
    """Say why figures are missing.

    Args:
        holdout: Samples that were never trained on, if any.
        statistics: Stored ones, if any.
        retain_losses: What they tell of the loss, if anything.
        before: What was seen of the model before, if it is at hand.
        leak: What old and new weights together reveal, if it was measured.

    Returns:
        Reasons by the names of `core.results.Metrics.missing`.
    """
    missing = {"reference_models": "LiRA needs models trained on the data, which is not here"}
    if holdout is None:
        missing["holdout"] = "no holdout was registered"
        missing["membership"] = "no holdout was registered"
    if retain_losses is None:
        missing["retain_loss"] = "the stored statistics do not tell it"
        if statistics is None:
            missing["retain_loss"] = "no statistics are stored"
    if before is None:
        missing["reconstruction"] = "what was released before is not at hand"
    elif leak is None:
        missing["reconstruction"] = "the weights did not change, so that they reveal nothing"
    return missing


class _Released(Protocol):
    """A model of any kind, as far as its releases go."""

    @property
    def weights(self) -> Tensor:
        """Return its weights."""

    @property
    def privacy(self) -> Privacy | None:
        """Return how residuals of deletions are hidden."""


def seen_before(model: _Released, released_before: Tensor | None) -> Tensor | None:
    """Return what was seen of a model before a deletion.

    Args:
        model: The model.
        released_before: What was released of it, if it is at hand.

    Returns:
        That, or the model's own weights; None where these never left the service, as with output
        perturbation, and what did is not at hand.
    """
    if released_before is not None:
        return released_before
    privacy = model.privacy
    if privacy is not None and privacy.mechanism is Mechanism.OUTPUT:
        return None
    return model.weights
