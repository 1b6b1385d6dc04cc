from fractions import Fraction

import numpy as np
import pytest

from core.rounding import UNIT_ROUND_OFF, gamma, upward


def test_the_unit_round_off_is_that_of_float64():
    assert np.finfo(np.float64).eps / 2 == UNIT_ROUND_OFF


@pytest.mark.parametrize("roundings", [1, 10, 10**6])
def test_gamma_with_its_margin_is_above_the_exact_quotient(roundings):
    exact = Fraction(roundings, 2**53 - roundings)
    assert Fraction(gamma(roundings)) >= exact * (1 - Fraction(1, 2**50))
    assert Fraction(upward(gamma(roundings))) > exact


def test_gamma_covers_the_round_off_of_a_sum():
    terms = np.random.default_rng(0).standard_normal(1000)
    exact = sum((Fraction(term) for term in terms), Fraction(0))
    total = np.float64(0)
    for term in terms:
        total += term
    error = abs(Fraction(float(total)) - exact)
    assert 0 < error <= gamma(999) * np.abs(terms).sum()
