import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import bounds
from core.errors import IllConditionedError
from core.losses import squared as losses
from core.problem import Ridge
from core.results import Bound
from core.vocabulary import RidgeConvention, Standing
from tests.reference import ridge as reference
from tests.reference.problems import Problem, make, problems

STARTS = ["trained", "anywhere"]


def exact_optimum(problem: Problem):
    ridge = problem.ridge
    added = reference.exact_shift(ridge.convention, ridge.strength, problem.n_remaining)
    return reference.exact_retrain(
        problem.x[problem.n_forget :], problem.y[problem.n_forget :], added
    )


@given(problems(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-12, 1.0]))
def test_the_residual_from_statistics_is_never_below_that_of_the_data(
    problem: Problem, seed: int, noise: float
):
    # At the optimum all is round-off; away from it the gradient itself is bounded.
    remaining = problem.statistics.downdate(problem.forget)
    moved = noise * np.random.default_rng(seed).standard_normal(problem.model.weights.shape)
    weights = torch.from_numpy(problem.retrained() + moved)
    bound = bounds.residual_from_statistics(remaining, weights, problem.ridge)
    assert problem.retain_gradient_norm(weights) <= bound


@given(problems())
def test_the_exact_distance_bound_is_never_below_the_distance(problem: Problem):
    remaining = problem.statistics.downdate(problem.forget)
    weights = torch.from_numpy(problem.retrained())
    _, distance = bounds.exact_bounds(remaining, weights, problem.ridge)
    assert distance.certifies
    assert distance.value is not None
    assert reference.exact_distance(weights.numpy(), exact_optimum(problem)) <= distance.value


def test_the_residual_bound_is_round_off_at_the_optimum_of_well_scaled_data():
    problem = make(0, 3000, 20, 5, 10)
    remaining = problem.statistics.downdate(problem.forget)
    at_optimum = bounds.residual_from_statistics(
        remaining, torch.from_numpy(problem.retrained()), problem.ridge
    )
    forget_gradient = losses.gradient(problem.model.weights, problem.forget)
    assert 0 < at_optimum < 1e-9 * float(torch.linalg.norm(forget_gradient))


@given(problems(), st.integers(0, 2**32 - 1), st.floats(0.0, 10.0), st.sampled_from(STARTS))
def test_the_worst_case_is_never_below_the_residual(
    problem: Problem, seed: int, length: float, start_from: str
):
    # Whatever step is taken, from whatever weights, as long as their gradient is bounded.
    rng = np.random.default_rng(seed)
    start = problem.model.weights.numpy()
    if start_from == "anywhere":
        start = rng.standard_normal(start.shape)
    moved = torch.from_numpy(start + length * rng.standard_normal(start.shape))
    ridge, n_forget = problem.ridge, problem.n_forget
    share = ridge.forgotten_shift(n_forget)
    weights = torch.from_numpy(start)
    added = reference.exact_shift(ridge.convention, ridge.strength, len(problem.x))
    bound = bounds.worst_case_residual(
        change=moved - weights,
        forget_gradient=losses.gradient(weights, problem.forget, share),
        forget_gradient_round_off=losses.gradient_round_off(weights, problem.forget, share),
        n_remaining=problem.n_remaining,
        ridge=ridge,
        feature_norm_bound=problem.model.feature_norm_bound,
        training_gradient_bound=reference.exact_gradient_norm(start, problem.x, problem.y, added),
    )
    assert problem.retain_gradient_norm(moved) <= bound


def test_the_worst_case_is_attained_up_to_a_factor_by_an_adversary():
    # All retain samples at R_x along one axis, or all at 0: the bound is within 1.5 of the worse.
    ridge = Ridge(RidgeConvention.TOTAL, 1e-3)
    change = torch.tensor([[0.1], [0.0]], dtype=torch.float64)
    gradient = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    bound = bounds.worst_case_residual(
        change=change,
        forget_gradient=gradient,
        forget_gradient_round_off=0.0,
        n_remaining=50,
        ridge=ridge,
        feature_norm_bound=1.0,
        training_gradient_bound=0.0,
    )
    worst = max(abs((count + 1e-3) * 0.1 - 1.0) for count in (0, 50))
    assert worst <= bound <= 1.5 * worst


@given(problems())
def test_the_distance_is_below_the_residual_over_the_shift(problem: Problem):
    weights = torch.ones_like(problem.model.weights)
    bound = bounds.distance_to_retraining(
        problem.retain_gradient_norm(weights), problem.n_remaining, problem.ridge
    )
    assert reference.exact_distance(weights.numpy(), exact_optimum(problem)) <= bound


def test_lemma_1_is_the_published_formula_and_false():
    # Its own counterexample of METHOD §2: a trace-free difference at d = 512.
    width = 512
    signs = torch.ones(width, dtype=torch.float64)
    signs[1::2] = -1.0
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(500, width, generator=generator, dtype=torch.float64)
    epsilon = float((0.5 * directions.square() @ signs).abs().max())
    assert bounds.lemma_1(epsilon, width) == pytest.approx(
        2 * epsilon * math.sqrt(512) / 514, rel=1e-15
    )
    assert float(torch.linalg.norm(torch.diag(signs))) > bounds.lemma_1(epsilon, width)


def test_theorem_1_is_the_published_formula():
    value = bounds.theorem_1(
        curvature_lipschitz=0.25,
        gradient_bound=2.0,
        n_forget=3,
        n_samples=10,
        ridge_strength=0.5,
        largest_difference=1.2,
        num_features=4,
    )
    assert value == pytest.approx(4 * 0.25 * 4 * 9 * 7 / (0.5 * 7 - 2.4 / 6) ** 2)


def test_theorem_1_gives_squared_loss_the_zero_that_is_reported_and_false():
    problem = make(1, 20, 3, 2, 4)
    _, reported = bounds.published_bounds()
    for epsilon in (0.0, 0.1, 10.0):
        value = bounds.theorem_1(
            curvature_lipschitz=0.0,  # of a quadratic
            gradient_bound=1.0,
            n_forget=4,
            n_samples=20,
            ridge_strength=0.5,
            largest_difference=epsilon,
            num_features=3,
        )
        assert value == reported.value
    # It speaks of any estimate, so also of one that moves the weights not at all.
    assert problem.retain_gradient_norm(problem.model.weights) > reported.value


def test_theorem_1_is_infinite_where_its_bracket_vanishes():
    value = bounds.theorem_1(
        curvature_lipschitz=0.25,
        gradient_bound=1.0,
        n_forget=1,
        n_samples=2,
        ridge_strength=1.0,
        largest_difference=2.0,
        num_features=2,
    )
    assert value == math.inf


def test_published_bounds_certify_nothing_and_say_so():
    for bound in bounds.published_bounds():
        assert not bound.certifies
        assert bound.note.startswith("published bound, not a certificate")
    lemma, theorem = bounds.published_bounds()
    assert lemma.value is None
    assert theorem.value == 0.0


def test_only_the_exact_tiers_bounds_certify():
    problem = make(1, 20, 3, 2, 4)
    remaining = problem.statistics.downdate(problem.forget)
    weights = problem.model.weights
    assert all(b.certifies for b in bounds.exact_bounds(remaining, weights, problem.ridge))
    assert not any(b.certifies for b in bounds.worst_case_bounds(1.0, 16, problem.ridge))
    assert not bounds.measured_bound(remaining, weights, problem.ridge).certifies
    assert not bounds.cross_fitted_estimate(0.5).certifies


def test_certifying_bounds_say_what_is_only_attested():
    problem = make(1, 20, 3, 2, 4)
    remaining = problem.statistics.downdate(problem.forget)
    for bound in bounds.exact_bounds(remaining, problem.model.weights, problem.ridge):
        attested = [a.text for a in bound.assumptions if a.standing is Standing.ATTESTED]
        assert any("statistics" in text for text in attested)
        assert any("member" in text for text in attested)


def test_the_next_deletion_starts_from_the_smallest_true_bound():
    found = (
        *bounds.worst_case_bounds(5.0, 10, Ridge(RidgeConvention.TOTAL, 1.0)),
        bounds.cross_fitted_estimate(0.1),
        *bounds.published_bounds(),
    )
    assert bounds.carried_gradient_norm(found) == 5.0
    seen = Bound("residual_gradient_norm", "", 3.0, certifies=False, note="")
    assert bounds.carried_gradient_norm((*found, seen)) == 3.0


def test_a_distance_that_overflows_certifies_nothing():
    problem = make(2, 20, 3, 2, 4, ridge=Ridge(RidgeConvention.TOTAL, 1e-308))
    remaining = problem.statistics.downdate(problem.forget)
    _, distance = bounds.exact_bounds(remaining, 1e9 * problem.model.weights, problem.ridge)
    assert distance.value is None
    assert not distance.certifies


def test_a_residual_that_overflows_is_an_error_and_no_bound():
    with pytest.raises(IllConditionedError, match="overflows"):
        bounds.worst_case_bounds(math.inf, 10, Ridge(RidgeConvention.TOTAL, 1.0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_the_worst_case_covers_its_own_round_off_where_nothing_else_is_left(seed: int, width: int):
    # Features so small that the ridge is the whole Hessian, and the step that then is exact.
    problem = make(seed, 8, width, 2, 3, ridge=Ridge(RidgeConvention.TOTAL, 0.7), scale=2.0**-40)
    start = np.random.default_rng(seed).standard_normal(problem.model.weights.shape)
    weights = torch.from_numpy(start)
    share = problem.ridge.forgotten_shift(problem.n_forget)
    gradient = losses.gradient(weights, problem.forget, share)
    change = gradient / problem.ridge.shift(problem.n_remaining)
    exact = reference.exact_step_residual(
        change.numpy(),
        start,
        (problem.x[:3], problem.y[:3]),
        problem.x[3:],
        reference.exact_shift("total", 0.7, 5),
    )

    def bound(round_off: float) -> float:
        return bounds.worst_case_residual(
            change=change,
            forget_gradient=gradient,
            forget_gradient_round_off=round_off,
            n_remaining=5,
            ridge=problem.ridge,
            feature_norm_bound=2.0**-60,
            training_gradient_bound=0.0,
        )

    left_by_step = reference.exact_gradient_error(
        gradient.numpy(),
        change.numpy(),
        problem.x[3:],
        np.zeros((5, 2)),
        reference.exact_shift("total", 0.7, 5),
    )
    # A declared R_x below the features takes their own share out of the bound: 2^-80 relative.
    assert exact <= bound(losses.gradient_round_off(weights, problem.forget, share))
    assert left_by_step <= bound(0.0)
