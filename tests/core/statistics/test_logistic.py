import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.problem import LinearModel, Ridge, SampleSet
from core.statistics import LogisticStatistics, collect_logistic, merge_logistic, require_fit
from core.vocabulary import Loss, RidgeConvention
from tests.reference import logistic as reference
from tests.reference.logistic_problems import LogisticProblem, make, problems
from tests.reference.problems import samples

TENSORS = ("hessians", "gram", "gradient", "feature_sums", "target_sums")


def assert_same(first: LogisticStatistics, second: LogisticStatistics) -> None:
    # What they may differ by is what both say about themselves.
    assert first.n_samples == second.n_samples
    assert torch.equal(first.anchor, second.anchor)
    hessians = torch.linalg.matrix_norm(first.hessians - second.hessians, ord=2).max()
    assert float(hessians) <= first.hessian_round_off + second.hessian_round_off
    gram = torch.linalg.matrix_norm(first.gram - second.gram, ord=2)
    assert float(gram) <= first.gram_round_off + second.gram_round_off
    gradient = torch.linalg.norm(first.gradient - second.gradient)
    assert float(gradient) <= first.gradient_round_off + second.gradient_round_off
    assert_close(first.feature_sums, second.feature_sums, rtol=1e-9, atol=1e-9)
    assert torch.equal(first.target_sums, second.target_sums)


def collected(problem: LogisticProblem, chosen: slice) -> LogisticStatistics:
    return collect_logistic([problem.rows(chosen)], torch.tensor(problem.weights))


@given(problems())
def test_statistics_are_the_sums_over_the_samples(problem: LogisticProblem):
    found = problem.statistics
    wanted = reference.hessian(problem.weights, problem.x)
    assert_close(found.hessians.numpy(), wanted, rtol=1e-9, atol=1e-9)
    assert_close(found.gram.numpy(), problem.x.T @ problem.x, rtol=1e-9, atol=1e-9)
    gradient = reference.gradient(problem.weights, problem.x, problem.y, 0.0, problem.noise)
    assert_close(found.gradient.numpy(), gradient, rtol=1e-9, atol=1e-9)
    assert_close(found.feature_sums.numpy(), problem.x.sum(axis=0), rtol=1e-9, atol=1e-9)
    assert found.target_sums.tolist() == problem.y.sum(axis=0).tolist()
    assert found.n_samples == len(problem.x)
    assert found.largest_norm >= np.linalg.norm(problem.x, axis=1).max()
    assert not found.drift.any()
    assert not found.residual.any()


@given(problems(most=8, widest=3))
def test_the_round_off_of_the_hessians_is_within_its_bound(problem: LogisticProblem):
    half = len(problem.x) // 2
    rest = problem.statistics.downdate(problem.rows(slice(half)))
    error = reference.exact_hessian_error(rest.hessians.numpy(), problem.weights, problem.x[half:])
    assert error <= rest.hessian_round_off


@given(problems(), st.integers(1, 9))
def test_batches_of_any_size_give_the_same_statistics(problem: LogisticProblem, size: int):
    weights = torch.tensor(problem.weights)
    batches = [problem.rows(slice(at, at + size)) for at in range(0, len(problem.x), size)]
    assert_same(collect_logistic(batches, weights), collected(problem, slice(None)))


@given(problems(), st.integers(1, 15))
def test_shards_add_up_to_the_whole(problem: LogisticProblem, at: int):
    at = min(at, len(problem.x) - 1)
    first, second = collected(problem, slice(at)), collected(problem, slice(at, None))
    assert_same(first + second, collected(problem, slice(None)))
    assert_same(first + second, merge_logistic(second, first))


@given(problems(), st.integers(1, 15))
def test_a_downdate_leaves_the_statistics_of_the_rest(problem: LogisticProblem, at: int):
    at = min(at, len(problem.x) - 1)
    whole = collected(problem, slice(None))
    assert_same(whole.downdate(problem.rows(slice(at))), collected(problem, slice(at, None)))


@given(problems())
def test_one_by_one_down_to_the_last_sample_every_deletion_is_accepted(problem: LogisticProblem):
    left = collected(problem, slice(None))
    for row in range(len(problem.x) - 1):
        left = left.downdate(problem.rows(slice(row, row + 1)))
    assert_same(left, collected(problem, slice(len(problem.x) - 1, None)))


def test_the_noise_of_the_objective_enters_the_gradient_once():
    problem = make(1, 30, 3, 2, noise=2.0)
    assert problem.noise is not None
    plain = collected(problem, slice(None))
    assert_close(problem.statistics.gradient, plain.gradient + torch.tensor(problem.noise))
    assert problem.statistics.gradient_round_off >= plain.gradient_round_off


def test_neither_merge_nor_downdate_changes_what_it_is_given():
    problem = make(4, 12, 3, 2)
    before = problem.statistics
    copies = {name: getattr(before, name).clone() for name in TENSORS}
    before.downdate(problem.rows(slice(4)))
    merge_logistic(before, before)
    before.hessian(problem.ridge)
    for name, copy in copies.items():
        assert torch.equal(getattr(before, name), copy)


def test_shards_of_different_anchors_do_not_add_up():
    problem = make(1, 10, 3, 1)
    other = dataclasses.replace(problem, weights=problem.weights + 1.0)
    with pytest.raises(InvalidTensorError, match="same weights"):
        _ = problem.statistics + other.statistics


def test_statistics_whose_anchor_has_moved_do_not_add_up():
    problem = make(1, 10, 3, 2)
    moved = dataclasses.replace(problem.statistics, drift=torch.ones(2, dtype=torch.float64))
    with pytest.raises(InvalidOptionError, match="moved"):
        _ = moved + problem.statistics


def forged(problem: LogisticProblem, x: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(StatisticsMismatchError, match="never in the training set"):
        problem.statistics.downdate(samples(x, y))


def test_a_sample_longer_than_any_that_was_collected_is_refused():
    problem = make(2, 30, 3, 1)
    forged(problem, 1.001 * problem.norm * np.eye(3)[:1], np.ones((1, 1)))


def test_targets_that_occur_more_often_than_in_the_data_are_refused():
    problem = make(2, 30, 3, 1)
    ones = int(problem.y.sum())
    short = np.full((ones + 1, 3), 1e-9)
    forged(problem, short, np.ones((ones + 1, 1)))
    zeros = 30 - ones
    if zeros + 1 < 30:
        forged(problem, short[:1].repeat(zeros + 1, axis=0), np.zeros((zeros + 1, 1)))


def test_a_sample_in_a_direction_that_the_data_lack_is_refused():
    problem = make(2, 30, 3, 1)
    flat = problem.x.copy()
    flat[:, 2] = 0.0
    problem = dataclasses.replace(problem, x=flat)
    forged(problem, 1e-3 * np.eye(3)[2:], np.ones((1, 1)))


def test_samples_whose_curvature_the_data_lack_are_refused():
    # At the anchor every real sample is sure (σ' ≈ 0), the forged one is not: G allows it, H not.
    x = np.array([[3.0, 0.1], [3.0, -0.1], [-3.0, 0.1], [-3.0, -0.1]]).repeat(3, axis=0)
    problem = LogisticProblem(
        x,
        (x[:, :1] > 0).astype(float),
        Ridge(RidgeConvention.TOTAL, 1.0),
        np.array([[10.0], [0.0]]),
    )
    forged(problem, np.array([[0.0, 0.2]]), np.ones((1, 1)))


def test_samples_that_would_leave_more_curvature_than_features_allow_are_refused():
    # Real samples are unsure (σ' = ¼), the forged one is sure: it takes from G, and not from H.
    x = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    problem = LogisticProblem(
        x,
        (x[:, :1] > 0).astype(float),
        Ridge(RidgeConvention.TOTAL, 1.0),
        np.array([[0.0], [0.0]]),
    )
    moved = dataclasses.replace(problem, weights=np.array([[1e-3], [0.0]]))
    moved.statistics.downdate(problem.rows(slice(1)))
    statistics = dataclasses.replace(
        problem.statistics, anchor=torch.tensor([[50.0], [50.0]]).double()
    )
    with pytest.raises(StatisticsMismatchError, match="never in the training set"):
        statistics.downdate(problem.rows(slice(1)))


def test_as_many_samples_as_there_are_cannot_go():
    problem = make(2, 5, 2, 1)
    with pytest.raises(StatisticsMismatchError, match="5 samples cannot leave a rest of the 5"):
        problem.statistics.downdate(problem.rows(slice(None)))


def test_an_invented_target_is_refused():
    problem = make(2, 5, 2, 1)
    with pytest.raises(InvalidTensorError, match="targets: expected 0 or 1"):
        problem.statistics.downdate(samples(problem.x[:1], np.array([[7.0]])))


def test_without_a_batch_there_is_nothing_to_collect():
    with pytest.raises(InvalidTensorError, match="none were given"):
        collect_logistic([], torch.zeros(2, 1, dtype=torch.float64))


def test_statistics_fit_only_a_logistic_model_of_the_same_size():
    problem = make(3, 6, 2, 1)
    statistics, model = problem.statistics, problem.model
    require_fit(statistics, model)
    with pytest.raises(InvalidOptionError, match="n_samples"):
        require_fit(statistics, dataclasses.replace(model, n_samples=7))
    with pytest.raises(InvalidOptionError, match="logistic loss, and the model has squared"):
        require_fit(statistics, dataclasses.replace(model, loss=Loss.SQUARED))
    wide = LinearModel(
        torch.zeros(3, 1, dtype=torch.float64), problem.ridge, 6, 1.0, loss=Loss.LOGISTIC
    )
    with pytest.raises(InvalidTensorError, match=r"expected \(d, C\) = \(3, 1\), got \(2, 1\)"):
        require_fit(statistics, wide)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_samples", 0, "n_samples: expected at least 1"),
        ("n_drifted", -1, "n_drifted: expected at least 0"),
        ("hessian_round_off", float("nan"), "hessian_round_off: expected a number"),
        ("largest_norm", -1.0, "largest_norm: expected a number"),
        ("hessians", torch.zeros(1, 2, 3, dtype=torch.float64), "hessians: expected shape"),
        ("hessians", torch.full((1, 2, 2), torch.nan, dtype=torch.float64), "NaN"),
        ("drift", torch.full((1,), -1.0, dtype=torch.float64), "drift: expected numbers >= 0"),
        ("residual", torch.zeros(1, 1, dtype=torch.float64), "residual: expected shape"),
        ("feature_sums", torch.zeros(3, dtype=torch.float64), "feature_sums: expected shape"),
    ],
)
def test_numbers_that_no_data_set_has_are_refused(field: str, value: object, message: str):
    statistics = make(3, 6, 2, 1).statistics
    with pytest.raises((InvalidOptionError, InvalidTensorError), match=message):
        dataclasses.replace(statistics, **{field: value})


def test_round_off_is_tiny_relative_to_the_sums_and_infinite_where_there_are_none():
    statistics = make(3, 200, 3, 2).statistics
    assert 0 < statistics.relative_round_off < 1e-12
    nothing = collect_logistic(
        [SampleSet(torch.zeros(2, 1).double(), torch.zeros(2, 1).double())],
        torch.zeros(1, 1).double(),
    )
    assert nothing.relative_round_off == 0
    assert dataclasses.replace(nothing, gram_round_off=1.0).relative_round_off == float("inf")


def test_the_gradient_with_the_ridge_is_zero_at_the_optimum():
    problem = make(3, 60, 3, 2)
    gradient = problem.statistics.training_gradient(problem.ridge)
    assert float(torch.linalg.norm(gradient)) < 1e-12
