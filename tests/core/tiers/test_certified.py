import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import InvalidOptionError
from core.options import UnlearningOptions
from core.pipeline import ignore_progress, unlearn
from core.problem import Ridge
from core.results import Refused, Unlearned
from core.statistics import LogisticStatistics, collect
from core.tiers import certified
from core.tiers._deletion import Deletion
from core.vocabulary import (
    Anchor,
    Method,
    RefusalCause,
    RidgeConvention,
    Standing,
    Task,
    Tier,
)
from tests.reference.logistic_problems import LogisticProblem, bound_of, delete, make, problems
from tests.reference.problems import samples


def attempt(problem: LogisticProblem, count: int, *, statistics=None) -> Unlearned | Refused:
    return unlearn(
        problem.model,
        problem.rows(slice(count)),
        statistics=statistics or problem.statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.STORED),
    )


@given(
    problems(most=12, widest=3, weakest=1e-2), st.permutations(range(4)), st.sampled_from([1, 9])
)
def test_with_a_kept_anchor_any_order_and_batching_gives_the_same_weights(
    problem: LogisticProblem, order: list[int], largest: int
):
    gone = min(8, len(problem.x) - 1)
    whole, _, last = delete(
        problem.model, problem.statistics, problem.rows(slice(gone)), Anchor.KEEP
    )
    rows = np.arange(gone)
    parts = [part for part in np.array_split(rows, 4) if len(part)]
    parts = [parts[index] for index in order if index < len(parts)]
    parts = [part[at : at + largest] for part in parts for at in range(0, len(part), largest)]
    model, statistics = problem.model, problem.statistics
    for part in parts:
        result, model, statistics = delete(model, statistics, problem.rows(part), Anchor.KEEP)
    assert_close(result.weights, whole.weights, rtol=1e-8, atol=1e-8)
    assert torch.equal(statistics.anchor, last.anchor)
    assert not statistics.drift.any()
    assert not statistics.residual.any()


def test_a_kept_anchor_bounds_a_stream_far_better_than_a_moved_one():
    problem = make(3, 400, 5, 2, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3))
    last = {}
    for anchor in Anchor:
        model, statistics = problem.model, problem.statistics
        for row in range(40):
            forget = problem.rows(slice(row, row + 1))
            result, model, statistics = delete(model, statistics, forget, anchor)
        last[anchor] = bound_of(result)
        assert problem.residual(result.weights, slice(40, None)) <= last[anchor]
    assert last[Anchor.KEEP] < 0.2 * last[Anchor.MOVE]


@pytest.mark.parametrize("anchor", list(Anchor))
def test_a_deletion_comes_close_to_retraining(anchor: Anchor):
    problem = make(3, 600, 5, 3, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3))
    result, _, statistics = delete(
        problem.model, problem.statistics, problem.rows(slice(30)), anchor
    )
    retrained = problem.retrained(slice(30, None))
    left = np.linalg.norm(result.weights.numpy() - retrained)
    assert left < 0.1 * np.linalg.norm(problem.weights - retrained)
    assert result.tier is Tier.CERTIFIED
    assert statistics.n_samples == 570
    assert result.solvers[-1].figures["relative_residual"] < 1e-10


def test_a_sloppy_optimum_is_improved_on_the_way():
    # g* is part of the statistics: the step removes it together with the forget set.
    problem = make(3, 600, 4, 1, sloppy=0.05)
    before = problem.residual(torch.tensor(problem.weights), slice(5, None))
    result, _, _ = delete(problem.model, problem.statistics, problem.rows(slice(5)), Anchor.MOVE)
    assert problem.residual(result.weights, slice(5, None)) < 0.1 * before


def test_what_was_forgotten_under_objective_perturbation_keeps_the_noise():
    problem = make(3, 600, 4, 2, noise=3.0)
    result, _, _ = delete(problem.model, problem.statistics, problem.rows(slice(5)), Anchor.KEEP)
    noiseless = dataclasses.replace(problem, noise=None)
    kept = slice(5, None)
    assert problem.residual(result.weights, kept) <= bound_of(result)
    assert noiseless.residual(result.weights, kept) > 1.0
    left = np.linalg.norm(result.weights.numpy() - problem.retrained(kept))
    assert left < 0.01 * np.linalg.norm(problem.retrained(kept) - noiseless.retrained(kept))


def test_inputs_are_not_changed():
    problem = make(3, 50, 3, 2)
    statistics, model = problem.statistics, problem.model
    hessians, gradient = statistics.hessians.clone(), statistics.gradient.clone()
    delete(model, statistics, problem.rows(slice(3)), Anchor.MOVE)
    assert torch.equal(statistics.hessians, hessians)
    assert torch.equal(statistics.gradient, gradient)
    assert torch.equal(model.weights, torch.tensor(problem.weights))


# --- Conditioning ------------------------------------------------------------------------------

WEAK = [1e-8, 1e-4, 1.0]


@pytest.mark.parametrize("strength", WEAK)
@pytest.mark.parametrize("kind", ["constant", "duplicate", "wide", "all-but-one"])
def test_degenerate_data_are_unlearned_within_the_bound_or_refused(kind: str, strength: float):
    rng = np.random.default_rng(8)
    width = 30 if kind == "wide" else 4
    x = rng.standard_normal((20, width))
    if kind == "constant":
        x[:, 1:3] = 1.0
    if kind == "duplicate":
        x[:, 3] = x[:, 0]
    y = (rng.random((20, 2)) < 0.5).astype(float)
    ridge = Ridge(RidgeConvention.PER_SAMPLE, strength)
    problem = LogisticProblem(x, y, ridge, 0.1 * rng.standard_normal((width, 2)))
    count = 19 if kind == "all-but-one" else 8
    result = attempt(problem, count)
    if isinstance(result, Refused):
        assert result.cause is RefusalCause.ILL_CONDITIONED
    else:
        assert problem.residual(result.weights, slice(count, None)) <= bound_of(result)


def test_a_hessian_without_a_factor_is_refused_and_never_padded():
    rng = np.random.default_rng(8)
    x = 1e6 * rng.standard_normal((10, 3))
    x[:, 2] = x[:, 0]
    y = (rng.random((10, 1)) < 0.5).astype(float)
    ridge = Ridge(RidgeConvention.TOTAL, 1e-12)
    problem = LogisticProblem(x, y, ridge, np.zeros((3, 1)))
    result = attempt(problem, 2)
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.ILL_CONDITIONED


def test_forged_samples_are_refused():
    problem = make(3, 50, 3, 1)
    result = unlearn(
        problem.model,
        samples(0.99 * problem.norm * np.eye(3), np.ones((3, 1))),
        statistics=dataclasses.replace(problem, x=1e-3 * problem.x).statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.STORED),
    )
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.NOT_IN_TRAINING_SET


def test_statistics_of_another_loss_are_refused():
    problem = make(3, 50, 3, 1)
    squared = collect([problem.rows(slice(None))])
    with pytest.raises(InvalidOptionError, match="squared loss, and the model has logistic"):
        attempt(problem, 2, statistics=squared)


def test_without_statistics_there_is_nothing_to_certify():
    problem = make(3, 50, 3, 1)
    with pytest.raises(InvalidOptionError, match="needs statistics"):
        unlearn(
            problem.model,
            problem.rows(slice(2)),
            task=Task.REGRESSION,
            options=UnlearningOptions(method=Method.STORED),
        )


def test_the_tier_itself_takes_no_other_statistics():
    problem = make(3, 50, 3, 1)
    deletion = Deletion(
        problem.model,
        problem.rows(slice(2)),
        None,
        None,
        None,
        Task.REGRESSION,
        UnlearningOptions(method=Method.STORED),
        Standing.ATTESTED,
        ignore_progress,
    )
    with pytest.raises(InvalidOptionError, match="none are stored"):
        certified.run(deletion)


# --- Tier `estimated` on the same models -------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_estimate_on_a_logistic_model_is_measured_by_its_statistics(seed: int):
    problem = make(seed, 2000, 3, 2, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-2))
    result = unlearn(
        problem.model,
        problem.rows(slice(800)),
        statistics=problem.statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.FORGET_CURVATURE),
    )
    assert isinstance(result, Unlearned), result
    true = problem.residual(result.weights, slice(800, None))
    worst = bound_of(result, "residual_gradient_norm_worst_case")
    assert true <= bound_of(result) <= worst
    assert not any(bound.certifies for bound in result.bounds)
    assert result.gradient_norm_bound == bound_of(result)
    # The statistics keep their anchor, so that the next deletion from them is certified again.
    assert isinstance(result.statistics, LogisticStatistics)
    after = dataclasses.replace(problem.model, weights=result.weights, n_samples=result.n_samples)
    forget = problem.rows(slice(800, 805))
    again, _, _ = delete(after, result.statistics, forget, Anchor.MOVE)
    assert problem.residual(again.weights, slice(805, None)) <= bound_of(again)
