"""What may leave the service: the weights, or the weights with noise, within the budget (§5)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core import noise
from core.errors import InvalidOptionError
from core.gate import GateFailedError
from core.privacy import Privacy, covered_norm
from core.results import Assumption, Bound, GateResult, PrivacyStatement
from core.vocabulary import Mechanism, RefusalCause, Standing, Tier

# Of the bounds that certify, the one that each mechanism hides.
_MEASURE: Mapping[Mechanism, str] = {
    Mechanism.OBJECTIVE: "residual_gradient_norm",
    Mechanism.OUTPUT: "distance_to_retraining",
}
_BOUNDED = frozenset({Tier.EXACT, Tier.CERTIFIED})

_FLOAT_GAUSSIAN = Assumption(
    "the noise is a Gaussian on real numbers, which float64 only approximates (53-bit uniforms, "
    "rounded sums; Mironov 2012)",
    Standing.ASSUMED,
)
_PER_RELEASE = Assumption(
    "the guarantee is about this release alone: whoever also holds another release of the model "
    "sees more, and what a release before the deletion revealed stays revealed; figures that are "
    "told beside it (bounds, scores, the budget, or that a deletion was refused) are computed "
    "without noise, and it does not cover them",
    Standing.ASSUMED,
)
_OUTPUT_ASSUMPTIONS = (
    Assumption(
        "the noise is derived from a secret key and the new weights together, so that a release of "
        "other weights has other noise",
        Standing.COMPUTED,
    ),
    Assumption(
        "the key of the noise and the weights without noise are and stay secret", Standing.ATTESTED
    ),
    Assumption(
        "retraining would be released with noise of the same strength, as the first release of the "
        "model was",
        Standing.ATTESTED,
    ),
    _PER_RELEASE,
    _FLOAT_GAUSSIAN,
)
_OBJECTIVE_ASSUMPTIONS = (
    Assumption(
        "the model was trained with a term bᵀw for each output, b drawn once from N(0, σ²I), and "
        "the stored gradient contains b",
        Standing.ATTESTED,
    ),
    Assumption(
        "b and the statistics are and stay secret: with them the noise can be taken off",
        Standing.ATTESTED,
    ),
    Assumption(
        "the (ε, δ) of Guo et al. 2020, theorem 3, holds although the residual depends on b: the "
        "theorem takes it as a vector that does not, so it does not cover this deletion as it is "
        "stated, nothing here proves that it does, and of other removals it is false",
        Standing.ASSUMED,
    ),
    Assumption(
        "which samples are deleted does not depend on what was released: releases depend on b, and "
        "a request that was chosen by looking at one says something of b (Gupta et al. 2021, "
        "arXiv:2106.04378)",
        Standing.ASSUMED,
    ),
    _PER_RELEASE,
    _FLOAT_GAUSSIAN,
)


@dataclass(frozen=True, slots=True, eq=False)
class Released:
    """What may leave the service, and what hides what is left of the forget set.

    Attributes:
        weights: Shape (d, C), float64.
        privacy: The guarantee; None where no noise was declared.
    """

    weights: Tensor
    privacy: PrivacyStatement | None


def require_true_bound(
    privacy: Privacy | None, tier: Tier, noise_key: bytes | None
) -> tuple[GateResult, ...]:
    """Check, before anything is computed, that noise of the declared kind can hide this deletion.

    Args:
        privacy: What was declared; None where nothing is to be hidden.
        tier: Of the deletion.
        noise_key: Secret that the noise is derived from.

    Returns:
        The passed gates; none without `privacy`.

    Raises:
        GateFailedError: The tier has no bound that noise could be held against.
        InvalidOptionError: Objective perturbation was declared for squared loss, or output
            perturbation has no key.
    """
    if privacy is None:
        return ()
    result = GateResult(
        "tier_has_true_bound",
        tier in _BOUNDED,
        value=None,
        threshold=None,
        detail=f"({privacy.epsilon:g}, {privacy.delta:.3g}) needs a bound that holds; tier "
        f"`{tier}` has {'one' if tier in _BOUNDED else 'none'}",
    )
    if not result.passed:
        raise GateFailedError(
            result,
            RefusalCause.ESTIMATE_UNRELIABLE,
            "store statistics (method `stored`), or retrain; or register the model without "
            "`privacy`, when nothing is promised about it",
        )
    if privacy.mechanism is Mechanism.OBJECTIVE and tier is Tier.EXACT:
        # The exact step solves for the optimum of G and B; b is not in B, so it would be gone.
        raise InvalidOptionError(
            "privacy.mechanism: the statistics of squared loss do not hold b, so an exact deletion "
            "would lose the noise; declare output perturbation"
        )
    if privacy.mechanism is Mechanism.OUTPUT:
        _require_key(noise_key)
    return (result,)


def require_budget(
    privacy: Privacy | None, tier: Tier, bounds: tuple[Bound, ...]
) -> tuple[GateResult, ...]:
    """Check that the noise hides what the deletion leaves, all earlier ones included.

    Args:
        privacy: What was declared; None where nothing is to be hidden.
        tier: Of the deletion; `exact` or `certified` where noise was declared.
        bounds: Of the deletion.

    Returns:
        The passed gates; none without `privacy`.

    Raises:
        GateFailedError: The noise hides less than what the bound allows to be left, or there is
            no bound that certifies.
    """
    if privacy is None:
        return ()
    measure, spent = _measured(privacy, bounds) if tier in _BOUNDED else ("none", None)
    limit = covered_norm(privacy)
    passed = spent is not None and spent <= limit
    result = GateResult(
        "privacy_budget",
        passed,
        spent,
        limit,
        f"{measure} is at most {'unknown' if spent is None else f'{spent:.6g}'}, and the declared "
        f"noise of {privacy.sigma:.6g} hides {limit:.6g} at ({privacy.epsilon:g}, "
        f"{privacy.delta:.3g})",
    )
    if not passed:
        raise GateFailedError(
            result,
            RefusalCause.BUDGET_SPENT,
            "retrain without the samples of this and all earlier deletions, and register the new "
            "model: that sets the budget back",
        )
    return (result,)


def release(
    privacy: Privacy | None,
    weights: Tensor,
    bounds: tuple[Bound, ...],
    noise_key: bytes | None,
) -> Released:
    """Return what may leave the service.

    Args:
        privacy: What was declared.
        weights: W_u, shape (d, C), float64.
        bounds: Of the deletion; they passed `require_budget`.
        noise_key: Secret that the noise is derived from.

    Returns:
        The weights, with noise if the mechanism is output perturbation.

    Raises:
        InvalidOptionError: Output perturbation has no key, or no bound certifies.
    """
    if privacy is None:
        return Released(weights, None)
    measure, spent = _measured(privacy, bounds)
    if spent is None:
        raise InvalidOptionError(f"bounds: expected {measure} with a value that certifies")
    output = privacy.mechanism is Mechanism.OUTPUT
    statement = PrivacyStatement(
        mechanism=privacy.mechanism,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sigma=privacy.sigma,
        measure=measure,
        limit=covered_norm(privacy),
        spent=spent,
        assumptions=_OUTPUT_ASSUMPTIONS if output else _OBJECTIVE_ASSUMPTIONS,
    )
    if not output:
        # Its noise is in the weights already, by training.
        return Released(weights, statement)
    noisy = noise.perturbed(weights.cpu().numpy(), privacy.sigma, _require_key(noise_key))
    return Released(torch.from_numpy(noisy).to(weights.device), statement)


def _measured(privacy: Privacy, bounds: tuple[Bound, ...]) -> tuple[str, float | None]:
    measure = _MEASURE[privacy.mechanism]
    values = [each.value for each in bounds if each.name == measure and each.certifies]
    return measure, values[0] if values else None


def _require_key(noise_key: bytes | None) -> bytes:
    if noise_key is None:
        raise InvalidOptionError(
            f"noise_key: output perturbation needs {noise.KEY_BYTES} secret bytes, fresh for "
            "every release, and there are none"
        )
    return noise_key
