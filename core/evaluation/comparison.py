"""What a deletion changed, as far as there is data to measure on."""

import torch
from torch import Tensor

from core.evaluation.membership import loss_threshold
from core.evaluation.reconstruction import reconstruction_leak
from core.evaluation.scores import score
from core.results import Metrics, ReconstructionLeak
from core.tiers._deletion import Deletion, Outcome
from core.vocabulary import Mechanism


def compare(deletion: Deletion, outcome: Outcome, released: Tensor) -> Metrics:
    """Measure a deletion before and after, on what an outsider can see.

    Args:
        deletion: What was asked for.
        outcome: What its tier found.
        released: The new weights as they leave the service, shape (d, C), float64.

    Returns:
        Scores; what could not be measured is None and named in `missing`.
    """
    model, forget, holdout = deletion.model, deletion.forget, deletion.holdout
    functions = (model.loss, deletion.task)
    before = _seen_before(deletion)
    missing = {"reference_models": "LiRA needs models trained on the data, which is not here"}
    if holdout is None:
        missing["holdout"] = "no holdout was registered"
        missing["membership"] = "no holdout was registered"
    if outcome.retain_losses is None:
        missing["retain_loss"] = "the stored statistics do not tell it"
        if deletion.remaining is None:
            missing["retain_loss"] = "no statistics are stored"
    retain_before, retain_after = outcome.retain_losses or (None, None)
    weights = model.weights if before is None else before
    return Metrics(
        forget_before=score(weights, forget, *functions),
        forget_after=score(released, forget, *functions),
        holdout_before=None if holdout is None else score(weights, holdout, *functions),
        holdout_after=None if holdout is None else score(released, holdout, *functions),
        retain_loss_before=retain_before,
        retain_loss_after=retain_after,
        weight_change=float(torch.linalg.norm(released - weights)),
        membership_before=None
        if holdout is None
        else loss_threshold(weights, forget, holdout, model.loss),
        membership_after=None
        if holdout is None
        else loss_threshold(released, forget, holdout, model.loss),
        reconstruction=_reconstruction(deletion, outcome, before, released, missing),
        missing=missing,
    )


def _seen_before(deletion: Deletion) -> Tensor | None:
    # With output perturbation the model's own weights never left the service.
    if deletion.released_before is not None:
        return deletion.released_before
    privacy = deletion.model.privacy
    if privacy is not None and privacy.mechanism is Mechanism.OUTPUT:
        return None
    return deletion.model.weights


def _reconstruction(
    deletion: Deletion,
    outcome: Outcome,
    before: Tensor | None,
    released: Tensor,
    missing: dict[str, str],
) -> ReconstructionLeak | None:
    if before is None:
        missing["reconstruction"] = "what was released before is not at hand"
        return None
    # What the tier knows of H_rΔW is about weights without noise.
    plain = released is outcome.weights and before is deletion.model.weights
    leak = reconstruction_leak(
        released - before,
        deletion.forget,
        outcome.remaining,
        deletion.model.ridge,
        outcome.hessian_change if plain else None,
    )
    if leak is None:
        missing["reconstruction"] = "the weights did not change, so that they reveal nothing"
    return leak
