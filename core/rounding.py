"""Rigorous bounds on floating-point round-off, so that no bound rests on "about 1e-12".

Standard model of IEEE-754 double precision with conventional matrix products (any order of
summation, with or without fused multiply-add, no Strassen), barring underflow: Higham, *Accuracy
and Stability of Numerical Algorithms*, 2nd ed., chapter 3.
"""

UNIT_ROUND_OFF = 2.0**-53
# What stored statistics may carry, relative to their trace: sums in float64 start at about 1e-13,
# and what is left of them after large deletions is coarser.
LARGEST_RELATIVE_ROUND_OFF = 1e-6

# What a product with a network's Jacobian may be off by, relative to its size: float64 keeps a
# million times more, but automatic differentiation has no proof of it.
PRODUCT_ROUND_OFF = 2.0**-30

# Evaluating a bound rounds as well: at most 2^32 operations a scalar, of relative error 2^-53 each.
_MARGIN = 1.0 + 2.0**-20


def gamma(roundings: int) -> float:
    """Return γ_k = k·u / (1 − k·u): the relative error that k roundings can add up to.

    Args:
        roundings: k, how many rounded operations a term goes through.

    Returns:
        γ_k; dimensionless.

    >>> 1.1e-16 < gamma(1) < 1.2e-16
    True
    """
    share = roundings * UNIT_ROUND_OFF
    return share / (1.0 - share)


def upward(value: float) -> float:
    """Return a bound a little above `value`: its own computation was rounded too.

    Args:
        value: Non-negative sum, norm or product of norms in float64, from at most 2^32 operations
            without cancellation.

    Returns:
        (1 + 2^-20)·value.
    """
    return value * _MARGIN
