import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core import bounds
from core.errors import IllConditionedError
from core.losses import logistic as losses
from core.problem import Ridge
from core.vocabulary import Anchor, Loss, RidgeConvention, Standing
from tests.reference.logistic_problems import LogisticProblem, bound_of, delete, make, problems

ANCHORS = st.sampled_from(list(Anchor))


@given(problems(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 0.1, 1.0, 100.0]))
def test_the_bound_is_never_below_the_residual_at_any_weights(
    problem: LogisticProblem, seed: int, length: float
):
    # Whatever the step, however far: (5) does not need the Newton step, nor an optimum.
    direction = np.random.default_rng(seed).standard_normal(problem.weights.shape)
    weights = torch.tensor(problem.weights + length * direction / np.linalg.norm(direction))
    count = 1 + seed % (len(problem.x) - 1)
    remaining = problem.statistics.downdate(problem.rows(slice(count)))
    expansion = bounds.expand(remaining, weights, problem.ridge)
    true = problem.residual(weights, slice(count, None))
    assert true <= expansion.residual <= expansion.literature_residual


@given(problems(), st.integers(1, 15), ANCHORS)
def test_a_deletion_leaves_no_more_than_its_bound(
    problem: LogisticProblem, count: int, anchor: Anchor
):
    kept = slice(min(count, len(problem.x) - 1), None)
    forget = problem.rows(slice(kept.start))
    result, _, _ = delete(problem.model, problem.statistics, forget, anchor)
    assert problem.residual(result.weights, kept) <= bound_of(result)
    distance = np.linalg.norm(result.weights.numpy() - problem.retrained(kept))
    assert distance <= bound_of(result, "distance_to_retraining") * (1 + 1e-9) + 1e-12


@settings(max_examples=40)
@given(problems(most=10, widest=3), st.lists(ANCHORS, min_size=1, max_size=6))
def test_the_bound_holds_along_a_stream_of_deletions_whatever_the_anchor_does(
    problem: LogisticProblem, anchors: list[Anchor]
):
    model, statistics, gone = problem.model, problem.statistics, 0
    for step, anchor in enumerate(anchors):
        batch = 1 + step % 2
        if gone + batch >= len(problem.x):
            break
        forget = problem.rows(slice(gone, gone + batch))
        result, model, statistics = delete(model, statistics, forget, anchor)
        gone += batch
        assert problem.residual(result.weights, slice(gone, None)) <= bound_of(result)
        assert result.gradient_norm_bound == bound_of(result)


@pytest.mark.parametrize("anchor", list(Anchor))
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_the_bound_holds_along_twenty_deletions_that_move_far(
    anchor: Anchor, convention: RidgeConvention
):
    problem = make(5, 60, 4, 2, ridge=Ridge(convention, 1e-3), scale=2.0)
    model, statistics = problem.model, problem.statistics
    for row in range(20):
        forget = problem.rows(slice(row, row + 1))
        result, model, statistics = delete(model, statistics, forget, anchor)
        assert problem.residual(result.weights, slice(row + 1, None)) <= bound_of(result)
    moved = anchor is Anchor.MOVE
    assert bool((statistics.drift > 0).all()) is moved
    assert statistics.n_drifted == (19 if moved else 0)
    assert torch.equal(statistics.anchor, model.weights) is moved


@settings(max_examples=30)
@given(problems(most=8, widest=2), st.integers(0, 2**32 - 1))
def test_the_parts_that_a_moved_anchor_carries_bound_what_they_say(
    problem: LogisticProblem, seed: int
):
    # The drift is checked against the data: Σ_j‖σ'(X_jw_{j−1}) − σ'(X_jw_j)‖₂ by definition.
    rng = np.random.default_rng(seed)
    statistics, at, gone = problem.statistics, problem.weights, 0
    moved = np.zeros(at.shape[1])
    while gone < len(problem.x) - 1:
        statistics = statistics.downdate(problem.rows(slice(gone, gone + 1)))
        gone += 1
        weights = at + rng.choice([1e-3, 0.3, 3.0]) * rng.standard_normal(at.shape)
        expansion = bounds.expand(statistics, torch.tensor(weights), problem.ridge)
        kept = problem.x[gone:]
        moved += np.linalg.norm(_curvature(kept @ at) - _curvature(kept @ weights), axis=0)
        statistics = bounds.move_anchor(statistics, torch.tensor(weights), expansion)
        at = weights
        assert (statistics.drift.numpy() >= moved * (1 - 1e-12)).all()
        true = kept.T @ (_sigmoid(kept @ at) - problem.y[gone:])
        if problem.noise is not None:
            true = true + problem.noise
        unknown = np.linalg.norm(true - statistics.gradient.numpy(), axis=0)
        slack = statistics.gradient_round_off + 1e-12
        assert (unknown <= statistics.residual.numpy() + slack).all()
        # What the stored Hessians are off by at the new anchor, as the downdate's test takes it.
        hessians = np.stack(
            [(kept * _curvature(kept @ at)[:, [c]]).T @ kept for c in range(at.shape[1])]
        )
        off = np.linalg.norm(statistics.hessians.numpy() - hessians, ord=2, axis=(1, 2))
        assert (off <= statistics.drift_norms().numpy() + 1e-12 * (1 + off)).all()


def test_without_a_move_the_bound_is_close_to_the_truth_and_the_literature_is_not():
    problem = make(
        7, 2000, 8, 2, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3), positive=True, scale=0.3
    )
    result, _, _ = delete(problem.model, problem.statistics, problem.rows(slice(20)), Anchor.KEEP)
    true = problem.residual(result.weights, slice(20, None))
    assert bound_of(result) <= 10 * true
    assert bound_of(result, "residual_gradient_norm_literature") >= 20 * true


def test_where_nothing_is_left_to_move_the_bound_is_round_off():
    problem = make(7, 500, 3, 2)
    remaining = problem.statistics
    expansion = bounds.expand(remaining, torch.tensor(problem.weights), problem.ridge)
    assert 0 < expansion.residual < 1e-9
    assert not expansion.remainder.any()
    assert not expansion.first_order.any()


def test_a_bound_that_overflows_is_refused():
    problem = make(7, 10, 2, 1)
    weights = torch.full((2, 1), 1e200, dtype=torch.float64)
    expansion = bounds.expand(problem.statistics, weights, problem.ridge)
    with pytest.raises(IllConditionedError, match="overflows float64"):
        bounds.certified_bounds(expansion, 10, problem.ridge)


def test_steps_far_beyond_the_exponential_forms_keep_a_finite_bound():
    problem = make(7, 10, 2, 1)
    weights = torch.tensor(problem.weights + 1e4)
    expansion = bounds.expand(problem.statistics, weights, problem.ridge)
    assert math.isfinite(expansion.residual)
    assert problem.residual(weights, slice(None)) <= expansion.residual


def test_certifying_bounds_name_their_assumptions_and_the_literature_does_not_certify():
    problem = make(7, 50, 2, 1)
    result, _, _ = delete(problem.model, problem.statistics, problem.rows(slice(1)), Anchor.MOVE)
    assert {bound.name: bound.certifies for bound in result.bounds} == {
        "residual_gradient_norm": True,
        "distance_to_retraining": True,
        "residual_gradient_norm_literature": False,
    }
    standings = {stated.text: stated.standing for stated in result.assumptions}
    assert any("8 units in the last place" in text for text in standings)
    for text, standing in standings.items():
        if "8 units" in text or "IEEE" in text:
            assert standing is Standing.ASSUMED
        elif "semidefinite" not in text:
            assert standing is Standing.ATTESTED


@given(problems(), st.integers(0, 2**32 - 1), st.floats(0.0, 10.0))
def test_the_worst_case_of_logistic_loss_is_never_below_the_residual(
    problem: LogisticProblem, seed: int, length: float
):
    rng = np.random.default_rng(seed)
    count = 1 + seed % (len(problem.x) - 1)
    weights = torch.tensor(problem.weights)
    moved = weights + length * torch.tensor(rng.standard_normal(problem.weights.shape))
    share = problem.ridge.forgotten_shift(count)
    forget = problem.rows(slice(count))
    bound = bounds.worst_case_residual(
        change=moved - weights,
        forget_gradient=losses.gradient(weights, forget, share),
        forget_gradient_round_off=losses.gradient_round_off(weights, forget, share),
        n_remaining=len(problem.x) - count,
        ridge=problem.ridge,
        feature_norm_bound=problem.norm * (1 + 1e-12),
        training_gradient_bound=problem.residual(weights, slice(None)) * (1 + 1e-12),
        largest_curvature=losses.LARGEST_CURVATURE,
    )
    assert problem.residual(moved, slice(count, None)) <= bound


def test_theorem_1_has_no_value_for_logistic_loss():
    lemma, theorem = bounds.published_bounds(Loss.LOGISTIC)
    assert lemma.value is None
    assert theorem.value is None
    assert not theorem.certifies
    assert "published bound, not a certificate" in theorem.note


def test_a_declared_norm_makes_no_certified_bound_smaller():
    problem = make(7, 50, 3, 1, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3))
    short = np.linalg.norm(problem.x, axis=1).argsort()[:2]
    declared = dataclasses.replace(problem.model, feature_norm_bound=0.95 * problem.norm)
    found = [
        bound_of(delete(model, problem.statistics, problem.rows(short), Anchor.KEEP)[0])
        for model in (problem.model, declared)
    ]
    assert found[0] == found[1]


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def _curvature(z):
    return _sigmoid(z) * _sigmoid(-z)
