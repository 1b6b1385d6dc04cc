"""The published bounds (3) and (4): reported, never a certificate."""

import math

from core.results import Bound
from core.vocabulary import Loss

_NO_CERTIFICATE = "published bound, not a certificate"


def lemma_1(largest_difference: float, num_features: int) -> float:
    """Return the published bound (3) on ‖Ĥ_r − H_r‖_F. It is false (METHOD §2).

    Args:
        largest_difference: ε = max_i |δL_r(δ_i) − δL_f(δ_i)|, which needs the retain data.
        num_features: d.

    Returns:
        2ε√d / (2 + d).

    >>> lemma_1(1.0, 2)
    0.7071067811865476
    """
    return 2.0 * largest_difference * math.sqrt(num_features) / (2.0 + num_features)


def theorem_1(
    *,
    curvature_lipschitz: float,
    gradient_bound: float,
    n_forget: int,
    n_samples: int,
    ridge_strength: float,
    largest_difference: float,
    num_features: int,
) -> float:
    """Return the published bound (4) on ‖∇L(W_u; D_r)‖₂. It is false (METHOD §2).

    Args:
        curvature_lipschitz: γ, Lipschitz constant of ℓ''; 0 for squared loss.
        gradient_bound: C with ‖∇ℓ‖ ≤ C for every sample.
        n_forget: n_f.
        n_samples: n.
        ridge_strength: λ, per sample.
        largest_difference: ε of (3).
        num_features: d.

    Returns:
        4γC²n_f²(n−n_f) / [λ(n−n_f) − 2ε/(2+d)]²; infinity where the bracket is 0.
    """
    n_remaining = n_samples - n_forget
    top = 4.0 * curvature_lipschitz * gradient_bound**2 * n_forget**2 * n_remaining
    bottom = ridge_strength * n_remaining - 2.0 * largest_difference / (2.0 + num_features)
    if bottom == 0:
        return math.inf
    return top / bottom**2


def published_bounds(loss: Loss = Loss.SQUARED) -> tuple[Bound, Bound]:
    """Return (3) and (4) as the service can report them.

    Args:
        loss: Per-sample loss.

    Returns:
        (3) without a value, since ε cannot be observed; (4), which for squared loss is 0 whatever
        Ĥ is, and for logistic loss needs ε as well.
    """
    lemma = Bound(
        "published_lemma_1",
        "METHOD (3)",
        None,
        certifies=False,
        note=f"{_NO_CERTIFICATE}: ε compares losses on the retain set, which is not here, and "
        "the lemma is false",
    )
    if loss is Loss.SQUARED:
        value: float | None = 0.0
        note = (
            "it is 0 for squared loss whatever the estimate is, since it leaves out the "
            "first-order term of (5)"
        )
    else:
        value = None
        note = (
            "its ε compares losses on the retain set, which is not here; it leaves out the "
            "first-order term of (5)"
        )
    theorem = Bound(
        "published_theorem_1",
        "METHOD (4)",
        value,
        certifies=False,
        note=f"{_NO_CERTIFICATE}: {note}",
    )
    return lemma, theorem
