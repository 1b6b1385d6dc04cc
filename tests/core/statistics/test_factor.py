"""A stored factor changes how long a deletion takes, and nothing else."""

import dataclasses
import math

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge
from core.results import Refused, Unlearned
from core.serialization import dump_statistics, load_statistics
from core.statistics import StoredStatistics, collect
from core.statistics.factor import JointGram, build
from core.vocabulary import Method, RefusalCause, RidgeConvention, Task
from tests.reference import ridge as reference
from tests.reference.problems import Problem, make, problems, samples

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))
MATRICES = ("inverse", "joint_inverse")


def augmented(statistics: StoredStatistics) -> torch.Tensor:
    top = torch.cat([statistics.gram, statistics.cross], dim=1)
    return torch.cat([top, torch.cat([statistics.cross.T, statistics.target_gram], dim=1)])


def delete(model: LinearModel, statistics: StoredStatistics, x, y) -> Unlearned | Refused:
    return unlearn(
        model,
        samples(x, y),
        statistics=statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.STORED),
    )


def follow(model: LinearModel, result: Unlearned) -> LinearModel:
    return dataclasses.replace(
        model,
        weights=result.weights,
        n_samples=result.n_samples,
        gradient_norm_bound=result.gradient_norm_bound,
    )


def prepared(problem: Problem) -> StoredStatistics:
    statistics = problem.statistics.prepare(problem.ridge)
    assert statistics.factor is not None
    return statistics


def stream(problem: Problem, statistics: StoredStatistics, parts) -> tuple[LinearModel, Unlearned]:
    model = problem.model
    result = None
    for rows in parts:
        if len(rows):
            result = delete(model, statistics, problem.x[rows], problem.y[rows])
            assert isinstance(result, Unlearned), result
            model = follow(model, result)
            assert isinstance(result.statistics, StoredStatistics)
            statistics = result.statistics
    assert result is not None
    return model, result


def corrupted(statistics: StoredStatistics, **change: torch.Tensor) -> StoredStatistics:
    assert statistics.factor is not None
    return dataclasses.replace(statistics, factor=dataclasses.replace(statistics.factor, **change))


@settings(max_examples=60)
@given(problems(weakest=1e-3), st.integers(1, 6), st.integers(0, 99))
def test_any_split_of_a_deletion_with_a_factor_gives_the_weights_of_retraining(
    problem: Problem, pieces: int, seed: int
):
    order = np.random.default_rng(seed).permutation(problem.n_forget)
    model, result = stream(problem, prepared(problem), np.array_split(order, pieces))
    ridge = problem.ridge
    added = reference.exact_shift(ridge.convention, ridge.strength, problem.n_remaining)
    left = slice(problem.n_forget, None)
    optimum = reference.exact_retrain(problem.x[left], problem.y[left], added)
    distance = reference.exact_distance(model.weights.numpy(), optimum)
    bounds = {each.name: each.value for each in result.bounds}
    assert problem.retain_gradient_norm(model.weights) <= bounds["residual_gradient_norm"]
    assert distance <= bounds["distance_to_retraining"]
    trace = float(augmented(problem.statistics).trace())
    condition = 1.0 + trace / ridge.shift(problem.n_remaining)
    size = 1.0 + float(np.linalg.norm(problem.model.weights.numpy()))
    assert distance <= 1e-8 * size + 1e-15 * condition * size


@settings(max_examples=40)
@given(problems(weakest=1e-3))
def test_with_and_without_a_factor_the_losses_and_bounds_are_the_same(problem: Problem):
    rows = np.arange(problem.n_forget)
    _, fast = stream(problem, prepared(problem), [rows])
    _, slow = stream(problem, problem.statistics, [rows])
    gap = float(torch.linalg.norm(fast.weights - slow.weights))
    assert gap <= sum(r.bounds[1].value or math.inf for r in (fast, slow))
    before, after = fast.metrics.retain_loss_before, fast.metrics.retain_loss_after
    assert before == pytest.approx(slow.metrics.retain_loss_before, rel=1e-9, abs=1e-9)
    assert after == pytest.approx(slow.metrics.retain_loss_after, rel=1e-9, abs=1e-9)


@CONVENTIONS
def test_a_stream_of_200_deletions_stays_at_retraining_and_keeps_its_factor(convention):
    problem = make(3, 2000, 24, 3, 200, ridge=Ridge(convention, 1e-3), one_hot=True)
    statistics = prepared(problem)
    built = statistics.factor
    names = []
    model = problem.model
    for row in range(200):
        result = delete(model, statistics, problem.x[row : row + 1], problem.y[row : row + 1])
        assert isinstance(result, Unlearned)
        assert isinstance(result.statistics, StoredStatistics)
        model, statistics = follow(model, result), result.statistics
        names.append(result.solvers[1].name)
    assert set(names) == {"stored-factor"}
    assert built is not None
    wanted = problem.retrained()
    error = np.linalg.norm(model.weights.numpy() - wanted)
    assert error <= 1e-8 * np.linalg.norm(problem.model.weights.numpy() - wanted)
    assert error <= (result.bounds[1].value or 0.0)
    if convention is RidgeConvention.TOTAL:
        # Never built anew: the floor only rose.
        assert statistics.factor is not None
        assert statistics.factor.shift == built.shift


@CONVENTIONS
@pytest.mark.parametrize("strength", [1e-8, 1e-14])
def test_weak_ridges_with_repeated_features_are_exact_or_refused(convention, strength):
    problem = make(4, 60, 12, 2, 6, ridge=Ridge(convention, strength))
    problem.x[:, 3] = problem.x[:, 0]
    model, statistics = problem.model, problem.statistics.prepare(problem.ridge)
    for row in range(6):
        result = delete(model, statistics, problem.x[row : row + 1], problem.y[row : row + 1])
        if isinstance(result, Refused):
            assert result.cause is RefusalCause.ILL_CONDITIONED
            return
        assert isinstance(result.statistics, StoredStatistics)
        model, statistics = follow(model, result), result.statistics
    residual = problem.retain_gradient_norm(model.weights)
    assert residual <= (result.bounds[0].value or 0.0) < 1e-6


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("kind", ["zero", "noise", "negative", "nan", "infinite", "scaled"])
@CONVENTIONS
def test_a_corrupted_factor_still_gives_the_weights_of_retraining(name, kind, convention):
    problem = make(5, 120, 12, 2, 2, ridge=Ridge(convention, 1e-2))
    honest = prepared(problem)
    matrix = getattr(honest.factor, name)
    noise = torch.randn(*matrix.shape, generator=torch.Generator().manual_seed(0)).double()
    broken = {
        "zero": torch.zeros_like(matrix),
        "noise": 10 * noise,
        "negative": -matrix,
        "nan": torch.full_like(matrix, math.nan),
        "infinite": torch.full_like(matrix, math.inf),
        "scaled": 1.3 * matrix,
    }[kind]
    statistics = corrupted(honest, **{name: broken})
    model, _ = stream(problem, statistics, [np.array([0]), np.array([1])])
    assert_close(model.weights.numpy(), problem.retrained(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["zero", "noise", "scaled", "honest"])
def test_whatever_the_factor_a_sample_that_sticks_out_is_refused(kind):
    problem = make(6, 60, 12, 2, 1)
    honest = prepared(problem)
    assert honest.factor is not None
    matrix = honest.factor.joint_inverse
    noise = torch.randn(*matrix.shape, generator=torch.Generator().manual_seed(0)).double()
    broken = {
        "zero": torch.zeros_like(matrix),
        "noise": noise,
        "scaled": 1e-3 * matrix,
        "honest": matrix,
    }[kind]
    forged = np.full((1, 12), 30.0)
    with pytest.raises(StatisticsMismatchError):
        corrupted(honest, joint_inverse=broken).downdate(samples(forged, np.zeros((1, 2))))


@given(problems())
def test_one_by_one_down_to_the_last_sample_every_true_deletion_is_accepted(problem: Problem):
    left = problem.statistics.prepare(problem.ridge)
    for row in range(len(problem.x) - 1):
        left = left.downdate(samples(problem.x[row : row + 1], problem.y[row : row + 1]))
        if left.factor is None:
            left = left.prepare(problem.ridge)
    assert left.n_samples == 1


@given(problems(), st.floats(0.0, 3.0))
def test_what_a_factor_accepts_leaves_no_eigenvalue_that_the_cholesky_test_would_refuse(
    problem: Problem, scale: float
):
    # Forged samples, of about the data's own size, again and again: some pass.
    left = problem.statistics.prepare(problem.ridge)
    forged = samples(-problem.x[:1] * scale, problem.y[:1])
    for _ in range(3):
        if left.factor is None or left.n_samples == 1:
            return
        try:
            left = left.downdate(forged)
        except StatisticsMismatchError:
            return
        if left.factor is not None:
            joint = JointGram(left.gram, left.cross, left.target_gram, left.round_off)
            lowest = float(torch.linalg.eigvalsh(augmented(left))[0])
            own_error = 1e-14 * float(augmented(problem.statistics).trace())
            assert lowest >= -left.factor.floor - own_error
            assert left.factor.floor <= joint.tested_floor(joint.tolerance())


def test_a_second_deletion_of_the_same_sample_is_refused_where_it_sticks_out():
    problem = make(5, 6, 8, 2, 1)
    once = problem.statistics.downdate(problem.forget).prepare(problem.ridge)
    with pytest.raises(StatisticsMismatchError):
        once.downdate(problem.forget)


@pytest.mark.parametrize("n_forget", [1, 3])
def test_the_downdated_inverses_are_those_of_the_rest(n_forget):
    problem = make(7, 200, 16, 3, n_forget)
    rest = prepared(problem).downdate(problem.forget)
    assert rest.factor is not None
    shifted = rest.gram + rest.factor.shift * torch.eye(16, dtype=torch.float64)
    assert_close(rest.factor.inverse, torch.linalg.inv(shifted), rtol=1e-9, atol=1e-12)
    assert_close(rest.factor.joint_inverse, torch.linalg.inv(augmented(rest)), rtol=1e-6, atol=1e-9)


def test_a_factor_holds_no_vector_of_a_deleted_record():
    fields = {field.name for field in dataclasses.fields(prepared(make(8, 50, 8, 2, 1)).factor)}
    assert fields == {"inverse", "shift", "joint_inverse", "floor"}


def test_repeated_constant_features_and_one_hot_targets_keep_the_factor():
    # [X Y] has a null space: the intercept is the sum of the targets, two columns are equal.
    problem = make(9, 400, 16, 3, 5, one_hot=True)
    problem.x[:, 0] = 1.0
    problem.x[:, 1] = problem.x[:, 2]
    statistics = prepared(problem)
    for row in range(5):
        forget = samples(problem.x[row : row + 1], problem.y[row : row + 1])
        statistics = statistics.downdate(forget)
        assert statistics.factor is not None


def test_a_large_deletion_factorises_and_leaves_the_factor_to_the_next_small_one():
    problem = make(10, 200, 16, 2, 50)
    _, result = stream(problem, prepared(problem), [np.arange(50)])
    assert result.solvers[1].name == "cholesky"
    assert isinstance(result.statistics, StoredStatistics)
    assert result.statistics.factor is None


def test_a_small_deletion_without_a_factor_stores_one():
    problem = make(11, 200, 16, 2, 1)
    _, result = stream(problem, problem.statistics, [np.arange(1)])
    assert isinstance(result.statistics, StoredStatistics)
    assert result.statistics.factor is not None
    assert result.solvers[1].name == "stored-factor"


def test_a_deletion_changes_neither_statistics_nor_factor():
    problem = make(12, 80, 12, 2, 1)
    statistics = prepared(problem)
    copies = [augmented(statistics)] + [getattr(statistics.factor, n).clone() for n in MATRICES]
    stream(problem, statistics, [np.arange(1)])
    now = [augmented(statistics)] + [getattr(statistics.factor, name) for name in MATRICES]
    assert all(torch.equal(a, b) for a, b in zip(now, copies, strict=True))


def test_sums_of_statistics_have_no_factor():
    problem = make(13, 40, 4, 2, 4)
    assert (prepared(problem) + prepared(problem)).factor is None


def test_statistics_that_no_data_set_has_get_no_factor():
    gram = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
    one, cross = torch.ones(1, 1).double(), torch.zeros(2, 1).double()
    assert build(JointGram(gram, cross, one, 0.0), 3.0) is None
    assert build(JointGram(-gram * 0 - 1e9 * gram.abs(), cross, one, 0.0), 3.0) is None


def test_statistics_that_are_symmetric_only_up_to_round_off_get_no_factor():
    statistics = make(17, 60, 8, 2, 1).statistics
    gram = statistics.gram.clone()
    gram[0, 1] *= 1 + 1e-15
    assert not torch.equal(gram, gram.T)
    lopsided = dataclasses.replace(statistics, gram=gram)
    assert lopsided.prepare(Ridge(RidgeConvention.TOTAL, 1.0)).factor is None


@given(problems(most=40, widest=9))
def test_collected_and_downdated_statistics_are_symmetric_to_the_last_bit(problem: Problem):
    left = problem.statistics.downdate(problem.forget)
    for block in (left.gram, left.target_gram):
        assert torch.equal(block, block.T)


def test_all_zero_data_can_be_prepared_and_downdated():
    nothing = collect([samples(np.zeros((3, 2)), np.zeros((3, 1)))])
    left = nothing.prepare(Ridge(RidgeConvention.TOTAL, 1.0))
    assert left.downdate(samples(np.zeros((1, 2)), np.zeros((1, 1)))).n_samples == 2


# --- in a file -----------------------------------------------------------------------------------


def test_a_factor_survives_in_a_file_but_not_what_was_proved():
    statistics = prepared(make(14, 60, 8, 2, 1))
    content = dump_statistics(statistics)
    loaded = load_statistics(content)
    assert isinstance(loaded, StoredStatistics)
    assert statistics.factor is not None
    assert loaded.factor is not None
    assert torch.equal(loaded.factor.inverse, statistics.factor.inverse)
    assert torch.equal(loaded.factor.joint_inverse, statistics.factor.joint_inverse)
    assert loaded.factor.shift == statistics.factor.shift
    assert not any("floor" in name for name in safetensors.numpy.load(content))
    assert dump_statistics(loaded) == content


def test_a_factor_beside_statistics_of_no_data_set_is_dropped():
    arrays = safetensors.numpy.load(dump_statistics(prepared(make(15, 60, 8, 2, 1))))
    arrays["gram"] = arrays["gram"] - 100.0 * np.eye(8)
    loaded = load_statistics(safetensors.numpy.save(arrays))
    assert isinstance(loaded, StoredStatistics)
    assert loaded.factor is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"factor.inverse": np.eye(7)}, InvalidTensorError, r"factor\.inverse: expected float64"),
        ({"factor.joint_inverse": np.eye(8)}, InvalidTensorError, r"joint_inverse.*\(10, 10\)"),
        ({"factor.inverse": np.eye(8, dtype=np.float32)}, InvalidTensorError, "float32"),
        ({"factor.shift": np.array([-1.0])}, InvalidOptionError, r"factor\.shift.*-1\.0"),
        ({"factor.shift": np.array([1])}, InvalidTensorError, r"factor\.shift"),
        ({"factor.floor": np.array([1.0])}, InvalidTensorError, "expected keys"),
        ({"factor.shift": None}, InvalidTensorError, "expected keys"),
        ({"factor.inverse": None}, InvalidTensorError, "expected keys"),
    ],
)
def test_a_file_whose_factor_does_not_fit_is_refused(change, error, message):
    arrays = safetensors.numpy.load(dump_statistics(prepared(make(16, 60, 8, 2, 1)))) | change
    content = safetensors.numpy.save({k: v for k, v in arrays.items() if v is not None})
    with pytest.raises(error, match=message):
        load_statistics(content)
