import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.losses import squared as losses
from core.problem import Ridge, SampleSet
from core.rounding import gamma
from core.statistics import StoredStatistics, collect, merge
from core.vocabulary import RidgeConvention
from tests.reference import ridge as reference
from tests.reference.problems import Problem, make, problems, samples

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))


def augmented(statistics: StoredStatistics) -> torch.Tensor:
    top = torch.cat([statistics.gram, statistics.cross], dim=1)
    bottom = torch.cat([statistics.cross.T, statistics.target_gram], dim=1)
    return torch.cat([top, bottom])


def assert_same(first: StoredStatistics, second: StoredStatistics, slack: float = 0.0) -> None:
    # What they may differ by is what both say about themselves.
    assert first.n_samples == second.n_samples
    gap = torch.linalg.matrix_norm(augmented(first) - augmented(second), ord=2)
    assert float(gap) <= first.round_off + second.round_off + slack


def exact_error(statistics: StoredStatistics, x, y) -> float:
    return reference.exact_gram_error(augmented(statistics).numpy(), np.hstack([x, y]))


@given(problems(), st.integers(1, 9))
def test_batches_of_any_size_give_the_same_statistics(problem: Problem, size: int):
    starts = range(0, len(problem.x), size)
    batches = (samples(problem.x[at : at + size], problem.y[at : at + size]) for at in starts)
    assert_same(collect(batches), problem.statistics)


@given(problems())
def test_statistics_are_the_sums_of_products(problem: Problem):
    found = problem.statistics
    assert_close(found.gram.numpy(), problem.x.T @ problem.x, rtol=1e-9, atol=1e-9)
    assert_close(found.cross.numpy(), problem.x.T @ problem.y, rtol=1e-9, atol=1e-9)
    assert_close(found.target_gram.numpy(), problem.y.T @ problem.y, rtol=1e-9, atol=1e-9)
    assert found.n_samples == len(problem.x)


@given(problems())
def test_the_round_off_of_collecting_is_within_its_bound(problem: Problem):
    assert exact_error(problem.statistics, problem.x, problem.y) <= problem.statistics.round_off


@given(problems())
def test_the_round_off_of_a_downdate_is_within_its_bound(problem: Problem):
    rest = problem.statistics.downdate(problem.forget)
    x, y = problem.x[problem.n_forget :], problem.y[problem.n_forget :]
    assert exact_error(rest, x, y) <= rest.round_off


def test_the_round_off_of_many_blocks_is_far_below_the_worst_case():
    problem = make(3, 5000, 4, 2, 1)
    collected = collect([problem.data])
    elsewhere = StoredStatistics.from_arrays(
        collected.gram, collected.cross, collected.target_gram, collected.n_samples
    )
    assert collected.round_off < 0.2 * elsewhere.round_off
    assert exact_error(collected, problem.x, problem.y) <= collected.round_off


@given(problems())
def test_a_downdate_leaves_the_statistics_of_the_rest(problem: Problem):
    assert_same(problem.statistics.downdate(problem.forget), collect([problem.rest]))


@given(problems(), st.permutations([0, 1, 2]))
def test_a_downdate_may_be_split_in_any_order(problem: Problem, order: list[int]):
    thirds = np.array_split(np.arange(problem.n_forget), 3)
    left = problem.statistics
    for part in order:
        if len(thirds[part]):
            left = left.downdate(samples(problem.x[thirds[part]], problem.y[thirds[part]]))
    assert_same(left, problem.statistics.downdate(problem.forget))


@given(problems())
def test_one_by_one_down_to_the_last_sample_every_deletion_is_accepted(problem: Problem):
    left = problem.statistics
    for row in range(len(problem.x) - 1):
        left = left.downdate(samples(problem.x[row : row + 1], problem.y[row : row + 1]))
    assert_same(left, collect([samples(problem.x[-1:], problem.y[-1:])]))


@given(problems())
def test_merging_commutes(problem: Problem):
    first, second = collect([problem.forget]), collect([problem.rest])
    assert torch.equal(augmented(first + second), augmented(second + first))
    assert (first + second).round_off == (second + first).round_off


@given(problems())
def test_merging_associates_up_to_round_off(problem: Problem):
    first, second, third = collect([problem.forget]), collect([problem.rest]), problem.statistics
    assert_same((first + second) + third, first + (second + third))


@given(problems())
def test_a_downdate_undoes_a_merge(problem: Problem):
    rest = collect([problem.rest])
    assert_same(merge(rest, collect([problem.forget])).downdate(problem.forget), rest)


def test_neither_merge_nor_downdate_changes_what_it_is_given():
    problem = make(4, 12, 3, 2, 4)
    before = problem.statistics
    copy = augmented(before)
    before.downdate(problem.forget)
    merge(before, before)
    before.hessian(problem.ridge)
    assert torch.equal(augmented(before), copy)


@given(problems(), st.floats(0.1, 10.0))
def test_a_sample_that_sticks_out_of_the_data_is_refused(problem: Problem, excess: float):
    # M − aaᵀ has a negative eigenvalue once aᵀM⁻¹a > 1: here along the direction of a alone.
    statistics = problem.statistics
    largest = float(torch.linalg.eigvalsh(augmented(statistics))[-1])
    forged = np.sqrt((1 + excess) * largest) * np.ones((1, problem.x.shape[1]))
    with pytest.raises(StatisticsMismatchError, match="never in the training set"):
        statistics.downdate(samples(forged, np.zeros((1, problem.y.shape[1]))))


def test_a_second_deletion_of_the_same_sample_is_refused_where_it_sticks_out():
    problem = make(5, 6, 8, 2, 1)  # fewer samples than features: each has a direction of its own
    once = problem.statistics.downdate(problem.forget)
    with pytest.raises(StatisticsMismatchError):
        once.downdate(problem.forget)


def test_a_wrong_target_is_refused_where_no_sample_explains_it():
    problem = make(6, 30, 4, 2, 1)
    perfect = samples(problem.x, problem.x @ np.ones((4, 2)))  # y is a function of x
    with pytest.raises(StatisticsMismatchError):
        collect([perfect]).downdate(samples(problem.x[:1], np.array([[50.0, -50.0]])))


def test_all_zero_data_can_be_downdated():
    nothing = samples(np.zeros((3, 2)), np.zeros((3, 1)))
    left = collect([nothing]).downdate(samples(np.zeros((1, 2)), np.zeros((1, 1))))
    assert left.n_samples == 2


@pytest.mark.parametrize("extra", [0, 1])
def test_removing_every_sample_or_more_is_refused(extra):
    problem = make(7, 5, 2, 1, 1)
    everything = samples(
        np.vstack([problem.x, problem.x[:extra]]), np.vstack([problem.y, problem.y[:extra]])
    )
    with pytest.raises(StatisticsMismatchError, match="cannot leave a rest"):
        problem.statistics.downdate(everything)


@CONVENTIONS
def test_gradient_hessian_and_loss_are_those_of_the_data(convention):
    problem = make(8, 20, 4, 3, 5, ridge=Ridge(convention, 0.3))
    weights = torch.ones_like(problem.model.weights)
    shift = problem.ridge.shift(20)
    statistics = problem.statistics
    assert_close(
        statistics.training_gradient(weights, problem.ridge),
        torch.from_numpy(reference.gradient(weights.numpy(), problem.x, problem.y, shift)),
    )
    assert_close(
        statistics.hessian(problem.ridge),
        losses.hessian(problem.model.weights, problem.data.features, shift),
    )
    assert statistics.retain_loss(weights, problem.ridge) == pytest.approx(
        losses.loss(weights, problem.data, shift), rel=1e-12
    )


@CONVENTIONS
def test_the_ridge_of_a_downdated_set_is_that_of_its_own_size(convention):
    problem = make(9, 20, 4, 3, 5, ridge=Ridge(convention, 0.3))
    left = problem.statistics.downdate(problem.forget)
    added = 0.3 * 15 if convention is RidgeConvention.PER_SAMPLE else 0.3
    assert_close(
        left.hessian(problem.ridge),
        losses.hessian(problem.model.weights, problem.rest.features, added),
    )


def test_the_loss_of_a_perfect_fit_is_never_negative():
    x = np.random.default_rng(1).standard_normal((40, 3))
    weights = np.array([[1.0], [-2.0], [1e3]])
    statistics = collect([samples(x, x @ weights)])
    ridge = Ridge(RidgeConvention.TOTAL, 1e-300)
    assert 0 <= statistics.retain_loss(torch.from_numpy(weights), ridge) < 1e-6


@given(problems())
def test_the_gradients_distance_to_the_data_is_within_its_bound(problem: Problem):
    weights = problem.model.weights
    statistics = problem.statistics
    computed = statistics.training_gradient(weights, problem.ridge).numpy()
    ridge = problem.ridge
    added = reference.exact_shift(ridge.convention, ridge.strength, len(problem.x))
    error = reference.exact_gradient_error(computed, weights.numpy(), problem.x, problem.y, added)
    assert error <= statistics.training_gradient_round_off(weights, ridge)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_gradients_own_evaluation_is_within_its_bound(seed: int, width: int):
    # Whole numbers: the statistics are exact, and all round-off is that of the evaluation.
    rng = np.random.default_rng(seed)
    x, y = (rng.integers(-9, 10, (12, columns)).astype(float) for columns in (width, 2))
    weights = rng.standard_normal((width, 2))
    sums = (torch.from_numpy(product) for product in (x.T @ x, x.T @ y, y.T @ y))
    statistics = StoredStatistics(*sums, n_samples=12, round_off=0.0)
    ridge = Ridge(RidgeConvention.PER_SAMPLE, 0.1)
    computed = statistics.training_gradient(torch.from_numpy(weights), ridge).numpy()
    added = reference.exact_shift("per_sample", 0.1, 12)
    error = reference.exact_gradient_error(computed, weights, x, y, added)
    assert error <= statistics.training_gradient_round_off(torch.from_numpy(weights), ridge)


def test_merging_exact_statistics_counts_the_round_off_of_their_sum():
    # 1 + 2^-60 is 1 in float64.
    first, second = (samples(np.array([[value]]), np.zeros((1, 1))) for value in (1.0, 2.0**-30))
    exact = [dataclasses.replace(collect([each]), round_off=0.0) for each in (first, second)]
    merged = merge(*exact)
    x = np.array([[1.0], [2.0**-30]])
    error = exact_error(merged, x, np.zeros((2, 1)))
    assert 0 < error <= merged.round_off


@given(problems())
def test_statistics_from_elsewhere_carry_the_worst_case(problem: Problem):
    elsewhere = StoredStatistics.from_arrays(
        torch.from_numpy(problem.x.T @ problem.x),
        torch.from_numpy(problem.x.T @ problem.y),
        torch.from_numpy(problem.y.T @ problem.y),
        len(problem.x),
    )
    assert exact_error(elsewhere, problem.x, problem.y) <= elsewhere.round_off


def test_statistics_that_are_not_symmetric_are_refused():
    gram = torch.tensor([[1.0, 0.5], [0.4, 1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(InvalidTensorError, match=r"gram: not symmetric.*0\.1"):
        StoredStatistics.from_arrays(gram, torch.ones(2, 1, dtype=torch.float64), one, 3)


def test_statistics_with_round_off_between_their_triangles_are_made_symmetric():
    gram = torch.tensor([[1.0, 0.5], [0.5 + 1e-15, 1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    found = StoredStatistics.from_arrays(gram, torch.ones(2, 1, dtype=torch.float64), one, 3)
    assert torch.equal(found.gram, found.gram.T)
    assert found.round_off > 5e-16


def test_a_declared_round_off_below_what_the_triangles_show_is_widened_by_it():
    gram = torch.tensor([[1.0, 0.5], [0.5 + 1e-10, 1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    cross = torch.ones(2, 1, dtype=torch.float64)
    # No symmetric matrix is nearer than 5e-11 to what was declared to be exact.
    found = StoredStatistics.from_arrays(gram, cross, one, 3, round_off=0.0)
    assert found.round_off > 5e-11
    again = StoredStatistics.from_arrays(found.gram, cross, one, 3, round_off=found.round_off)
    assert again.round_off == found.round_off


def test_the_relative_round_off_is_that_of_all_sums_together():
    statistics = collect([make(1, 40, 3, 2, 4).data])
    trace = float(augmented(statistics).trace())
    assert statistics.relative_round_off == pytest.approx(statistics.round_off / trace)
    nothing = torch.zeros(1, 1, dtype=torch.float64)
    assert StoredStatistics(nothing, nothing, nothing, 3, 0.0).relative_round_off == 0.0
    assert StoredStatistics(nothing, nothing, nothing, 3, 1e-9).relative_round_off == math.inf


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gram": torch.ones(3, 2, dtype=torch.float64)}, InvalidTensorError, "gram"),
        ({"gram": torch.ones((), dtype=torch.float64)}, InvalidTensorError, "gram"),
        ({"cross": torch.ones(3, 1, dtype=torch.float64)}, InvalidTensorError, "cross"),
        ({"target_gram": torch.eye(2, dtype=torch.float64)}, InvalidTensorError, "target_gram"),
        ({"gram": torch.eye(2)}, InvalidTensorError, "float64, got torch.float32"),
        ({"n_samples": 0}, InvalidOptionError, "n_samples: expected at least 1, got 0"),
        ({"round_off": -1.0}, InvalidOptionError, "round_off.*-1.0"),
        ({"round_off": float("nan")}, InvalidOptionError, "round_off.*nan"),
    ],
)
def test_what_no_data_set_can_leave_is_refused(change, error, message):
    fields = {
        "gram": torch.eye(2, dtype=torch.float64),
        "cross": torch.ones(2, 1, dtype=torch.float64),
        "target_gram": torch.ones(1, 1, dtype=torch.float64),
        "n_samples": 3,
        "round_off": 0.0,
    }
    StoredStatistics(**fields)
    with pytest.raises(error, match=message):
        StoredStatistics(**fields | change)


def test_an_infinite_sum_is_refused():
    huge = SampleSet(
        torch.full((1, 1), 1e200, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    )
    with pytest.raises(InvalidTensorError, match="gram: contains NaN or infinite"):
        collect([huge])


def test_nothing_to_collect_is_refused():
    with pytest.raises(InvalidTensorError, match="none were given"):
        collect([])


def test_sets_of_other_dimensions_do_not_merge():
    with pytest.raises(InvalidTensorError, match=r"\(3, 2\) and \(4, 2\)"):
        merge(make(0, 5, 3, 2, 1).statistics, make(0, 5, 4, 2, 1).statistics)


def test_forget_samples_of_other_dimensions_are_refused():
    with pytest.raises(InvalidTensorError, match=r"features: expected shape \(any, 3\)"):
        make(0, 5, 3, 2, 1).statistics.downdate(make(0, 5, 4, 2, 1).forget)


@given(problems())
def test_what_is_refused_is_indefinite_and_what_passes_is_not(problem: Problem):
    # Forged samples of about the data's own size: some pass.
    forged = samples(-problem.x[: problem.n_forget] * 1.5, problem.y[: problem.n_forget])
    statistics = problem.statistics
    lowest = float(torch.linalg.eigvalsh(augmented(statistics) - augmented(collect([forged])))[0])
    try:
        left = statistics.downdate(forged)
    except StatisticsMismatchError:
        assert lowest < 0
    else:
        trace, size = float(augmented(left).trace()), len(augmented(left))
        tolerance = 2 * (left.round_off + gamma(size + 2) * max(trace, 0.0))
        own_error = 1e-14 * float(augmented(statistics).trace())
        assert lowest >= -2 * tolerance - own_error
