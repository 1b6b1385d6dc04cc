"""Membership inference: can a sample's loss tell whether it was trained on (METHOD §7)?

For a random forget set, a figure near ½ proves nothing: the untouched model scores the same. The
loss-threshold attack runs with every deletion; the attack with reference models (Carlini et al.
2022) needs models that were trained on parts of the data, so only benchmarks can run it.
"""

import math

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.problem import SampleSet
from core.results import MembershipInference
from core.vocabulary import Loss

_FALSE_POSITIVES = 0.01

# With fewer reference models a variance of its own for every sample does more harm than good
# (Carlini et al. 2022, section VI and figure 12).
_MODELS_FOR_OWN_VARIANCE = 64


def sample_losses(weights: Tensor, samples: SampleSet, loss: Loss) -> Tensor:
    """Return the loss of every sample, without the ridge.

    Args:
        weights: W, shape (d, C), float64.
        samples: n samples.
        loss: Per-sample loss.

    Returns:
        ½‖Wᵀx − y‖² or Σ_c softplus(z_c) − y_c z_c, shape (n,), float64.
    """
    outputs = samples.features @ weights
    if loss is Loss.SQUARED:
        return outputs.sub_(samples.targets).square_().sum(dim=1).mul_(0.5)
    entropy = torch.nn.functional.softplus(outputs, threshold=40.0)
    return entropy.sub_(outputs.mul_(samples.targets)).sum(dim=1)


def loss_threshold(
    weights: Tensor, forget: SampleSet, holdout: SampleSet, loss: Loss
) -> MembershipInference:
    """Attack with a threshold on the loss: members are taken to have small ones (Yeom et al. 2018).

    Args:
        weights: W, shape (d, C), float64, as an attacker has them.
        forget: The samples whose membership is in question.
        holdout: Samples that were never trained on.
        loss: Per-sample loss.

    Returns:
        How well the attack does.
    """
    return attack(
        -sample_losses(weights, forget, loss),
        -sample_losses(weights, holdout, loss),
    )


def attack(members: Tensor, others: Tensor) -> MembershipInference:
    """Judge an attack by its scores, the higher the surer it is of a member.

    A threshold accuses every sample whose score reaches it, all samples of a tie together; nobody
    flips coins. So the curve has one point for every value that occurs, and its area counts ties by
    half.

    Args:
        members: Scores of samples that are to be found, shape (n_f,), float64.
        others: Scores of samples that are to be left in peace, shape (n_h,), float64.

    Returns:
        Area under the curve, and the largest share of members that is found by a threshold that
        accuses at most 1 % of the others.

    Raises:
        InvalidTensorError: There are no members or no others, or a score is not a number.
    """
    for name, scores in (("members", members), ("others", others)):
        if scores.ndim != 1 or len(scores) == 0 or bool(scores.isnan().any()):
            raise InvalidTensorError(f"{name}: expected at least one score, and no NaN")
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members, side="left").to(torch.float64)
    up_to = torch.searchsorted(ordered, members, side="right").to(torch.float64)
    area = float((below + up_to).mean()) / (2 * len(others))
    # The best threshold lies at a member's score: `len(others) - below` others reach it.
    accused = len(others) - below
    allowed = accused <= _FALSE_POSITIVES * len(others)
    # Where one member's score is allowed, so is every higher one.
    found = float(allowed.to(torch.float64).mean())
    return MembershipInference(auc=area, tpr_at_1_percent_fpr=found)


def scaled_confidence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the logit-scaled confidence log(p_y / (1 − p_y)) of Carlini et al. 2022, section IV.

    With softmax probabilities it is z_y − log Σ_{c≠y} exp(z_c), free of cancellation; for one
    output, p = σ(z), it is ±z. A head trained by squared loss has no probabilities; the same
    formula is then only a score that grows with the margin.

    Args:
        outputs: Z = XW, shape (n, C), float64.
        targets: Y, shape (n, C), one-hot rows, or 0 and 1 where C = 1.

    Returns:
        Shape (n,), float64.
    """
    if outputs.shape[1] == 1:
        return outputs[:, 0] * (2.0 * targets[:, 0] - 1.0)
    right = targets.to(torch.bool)
    others = outputs.masked_fill(right, -math.inf).logsumexp(dim=1)
    return (outputs * targets).sum(dim=1) - others


def likelihood_ratio(observed: Tensor, trained_with: Tensor, trained_without: Tensor) -> Tensor:
    r"""Score samples by the likelihood-ratio attack of Carlini et al. 2022 (arXiv:2112.03570).

    For every sample, its confidences under reference models that were trained with it and without
    it are fitted by a Gaussian each; the score is log N(φ; μ_in, σ²_in) − log N(φ; μ_out, σ²_out).
    With fewer than 64 models, one variance for all samples is used, as the paper advises.

    Args:
        observed: φ of each sample under the attacked model, shape (n,), float64.
        trained_with: φ under reference models with the sample, shape (models, n), at least 2.
        trained_without: φ under reference models without it, shape (models, n), at least 2.

    Returns:
        Shape (n,), float64; the higher, the likelier a member.

    Raises:
        InvalidOptionError: Fewer than two models of a kind.
        InvalidTensorError: Shapes differ, or all reference models agree exactly.
    """
    score = torch.zeros_like(observed)
    for sign, name, reference in (
        (1.0, "trained_with", trained_with),
        (-1.0, "trained_without", trained_without),
    ):
        if reference.ndim != 2 or reference.shape[1:] != observed.shape:  # noqa: PLR2004
            raise InvalidTensorError(
                f"{name}: expected shape (models, {len(observed)}), got {tuple(reference.shape)}"
            )
        if len(reference) < 2:  # noqa: PLR2004 - a spread needs two
            raise InvalidOptionError(f"{name}: expected at least 2 reference models")
        variance = reference.var(dim=0)
        if len(reference) < _MODELS_FOR_OWN_VARIANCE:
            variance = variance.mean().expand_as(variance)
        if not bool((variance > 0).all()):
            raise InvalidTensorError(f"{name}: the reference models agree exactly on a sample")
        deviation = (observed - reference.mean(dim=0)).square() / variance
        score -= sign * 0.5 * (deviation + variance.log())
    return score
