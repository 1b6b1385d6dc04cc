import math

import dp_accounting
import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BudgetError, InvalidOptionError
from core.privacy import Budget, Privacy, covered_norm, delta_of, require_policy, sigma_for
from core.vocabulary import Mechanism

EPSILONS = st.floats(-5, 1).map(lambda power: 10.0**power)
DELTAS = st.floats(-40, -0.31).map(lambda power: 10.0**power)
AMOUNTS = st.floats(1e-9, 0.3)


def privacy(epsilon: float = 1.0, delta: float = 1e-5, sigma: float = 1.0) -> Privacy:
    return Privacy(Mechanism.OUTPUT, epsilon, delta, sigma)


def true_delta(epsilon: float, sigma: float, distance: float):
    """Balle and Wang 2018, theorem 8, with 50 digits."""
    with mpmath.workdps(50):
        half = mpmath.mpf(distance) / (2 * mpmath.mpf(sigma))
        step = mpmath.mpf(epsilon) * mpmath.mpf(sigma) / mpmath.mpf(distance)
        other = mpmath.exp(mpmath.mpf(epsilon)) * mpmath.ncdf(-half - step)
        return mpmath.ncdf(half - step) - other


# --- the Gaussian mechanism ----------------------------------------------------------------------


@given(EPSILONS, DELTAS, st.floats(1e-6, 1e6))
def test_the_covered_norm_keeps_the_closed_form_delta_and_wastes_little(epsilon, delta, sigma):
    norm = covered_norm(privacy(epsilon, delta, sigma))
    assert true_delta(epsilon, sigma, norm) <= delta
    assert true_delta(epsilon, sigma, norm * (1 + 1e-5)) > delta


@given(EPSILONS, DELTAS, st.floats(1e-6, 1e6))
def test_the_delta_of_a_distance_is_the_closed_form_without_the_library(epsilon, delta, sigma):
    norm = covered_norm(privacy(epsilon, delta, sigma))
    expected = float(true_delta(epsilon, sigma, norm))
    assert delta_of(epsilon, sigma, norm) == pytest.approx(expected, rel=1e-6)


def test_the_delta_of_an_epsilon_that_overflows_is_never_too_small():
    assert delta_of(1e3, 1.0, 40.0) >= true_delta(1e3, 1.0, 40.0)
    assert delta_of(1e308, 1e-300, 1e300) == 1.0


@given(EPSILONS, DELTAS, st.floats(1e-6, 1e6))
def test_sigma_and_covered_norm_are_inverses_and_never_promise_too_much(epsilon, delta, norm):
    sigma = sigma_for(epsilon, delta, norm)
    covered = covered_norm(privacy(epsilon, delta, sigma))
    assert norm <= covered <= norm * (1 + 1e-14)


def test_the_noise_is_that_of_the_accounting_library():
    wanted = 3.0 * dp_accounting.get_sigma_gaussian(0.5, 1e-6)
    assert sigma_for(0.5, 1e-6, 3.0) == pytest.approx(wanted, rel=2e-6)
    epsilon = dp_accounting.get_epsilon_gaussian(sigma_for(0.5, 1e-6, 3.0) / 3.0, 1e-6)
    assert epsilon == pytest.approx(0.5, rel=1e-5)
    assert epsilon <= 0.5


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5, 1e-3])
def test_the_literatures_constant_is_more_conservative_up_to_epsilon_one(epsilon, delta):
    # METHOD §5: residuals up to σε/c with c = √(2 ln(1.5/δ)) (Guo et al. 2020).
    literature = epsilon / math.sqrt(2 * math.log(1.5 / delta))
    assert literature < covered_norm(privacy(epsilon, delta, sigma=1.0)) < 5 * literature


@pytest.mark.parametrize(
    ("epsilon", "delta", "name"),
    [(1e-7, 1e-5, "epsilon"), (1.0, 1e-301, "delta")],
)
def test_what_cannot_be_calibrated_in_float64_is_refused(epsilon, delta, name):
    with pytest.raises(InvalidOptionError, match=rf"privacy\.{name}: expected at least"):
        covered_norm(privacy(epsilon, delta))


@pytest.mark.parametrize("norm", [0.0, -1.0, math.inf, math.nan])
def test_noise_is_calibrated_to_a_positive_norm(norm):
    with pytest.raises(InvalidOptionError, match="norm: expected a positive number"):
        sigma_for(1.0, 1e-5, norm)


@pytest.mark.parametrize(("epsilon", "delta"), [(math.inf, 0.1), (1.0, 1.0)])
def test_a_guarantee_of_nothing_needs_no_noise_and_is_refused(epsilon, delta):
    with pytest.raises(InvalidOptionError, match="finite ε and δ < 1"):
        sigma_for(epsilon, delta, 1.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"epsilon": 0.0}, "epsilon"), ({"sigma": math.inf}, "sigma"), ({"delta": 1.0}, "delta")],
)
def test_parameters_out_of_range_are_named(change, name):
    with pytest.raises(InvalidOptionError, match=rf"privacy\.{name}"):
        privacy(**change)


# --- policy --------------------------------------------------------------------------------------


def test_a_delta_that_publishing_one_sample_meets_is_refused_with_a_remedy():
    require_policy(privacy(delta=0.9e-3), 1000)
    with pytest.raises(InvalidOptionError, match=r"privacy\.delta.*1/n = 0\.001.*smaller δ"):
        require_policy(privacy(delta=1e-3), 1000)


def test_an_epsilon_above_ten_needs_a_policy_that_says_so():
    require_policy(privacy(epsilon=10.0), 1000)
    with pytest.raises(InvalidOptionError, match=r"privacy\.epsilon.*at most 10.*largest_epsilon"):
        require_policy(privacy(epsilon=10.1), 1000)
    require_policy(privacy(epsilon=10.1), 1000, largest_epsilon=20.0)


# --- the budget ----------------------------------------------------------------------------------


def test_a_reservation_is_spent_or_given_back():
    budget = Budget(limit=1.0).reserve(0.25).reserve(0.5)
    assert budget.left == pytest.approx(0.25)
    assert budget.release(0.5).left == pytest.approx(0.75)
    spent = budget.spend(0.125, reserved=0.25)
    assert (spent.spent, spent.reserved) == (0.125, pytest.approx(0.5))
    assert budget.spend(0.25).spent == 0.25
    assert budget.spent == 0.0


def test_a_whole_budget_can_be_spent_and_nothing_more():
    budget = Budget(limit=1.0).reserve(1.0).spend(1.0)
    assert budget.left == 0.0
    with pytest.raises(BudgetError, match=r"1e-09 asked for, 0 left of 1 .*retrain"):
        budget.reserve(1e-9)


def test_a_new_total_replaces_what_was_spent():
    budget = Budget(limit=1.0, spent=0.5).reserve(0.25)
    assert budget.settle(0.25) == Budget(1.0, 0.25, budget.reserved)
    with pytest.raises(BudgetError, match="would be spent of 1"):
        budget.settle(1.5)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda budget: budget.release(0.3), "0.3 to be given back, but 0.25 is reserved"),
        (lambda budget: budget.spend(0.3, reserved=0.25), "0.3 to be spent, but 0.25"),
        (lambda budget: budget.spend(0.3), "0.3 to be given back"),
        (lambda budget: budget.spend(-1.0), "a number >= 0, got -1"),
        (lambda budget: budget.reserve(0.0), "positive amount"),
        (lambda budget: budget.reserve(math.nan), "positive amount"),
        (lambda budget: budget.settle(math.nan), "nan would be spent"),
    ],
)
def test_what_a_budget_does_not_have_is_refused(act, message):
    with pytest.raises(BudgetError, match=message):
        act(Budget(limit=1.0).reserve(0.25))


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ((0.0, 0.0, 0.0), InvalidOptionError),
        ((1.0, -0.1, 0.0), InvalidOptionError),
        ((1.0, 0.0, math.nan), InvalidOptionError),
        ((1.0, 1.1, 0.0), BudgetError),
    ],
)
def test_impossible_budgets_cannot_be_made(values, error):
    with pytest.raises(error, match="budget"):
        Budget(*values)


@given(st.lists(AMOUNTS, max_size=30))
def test_reservations_never_add_up_to_more_than_the_limit(amounts):
    budget, held = Budget(limit=1.0), []
    for amount in amounts:
        if amount <= budget.left:
            budget = budget.reserve(amount)
            held.append(amount)
    assert math.fsum(held) <= budget.reserved <= 1.0
    for amount in held:
        budget = budget.spend(amount)
    assert math.fsum(held) <= budget.spent <= budget.limit
    assert budget.reserved <= 1e-9


def test_spending_nothing_of_no_reservation_changes_nothing():
    assert Budget(limit=1.0).spend(0.0) == Budget(limit=1.0)
