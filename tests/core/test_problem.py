import pytest
import torch

from core.errors import InvalidOptionError, InvalidTensorError
from core.problem import LinearModel, Ridge, SampleSet, require_matrix
from core.vocabulary import Loss, RidgeConvention

ONES = torch.ones(3, 2, dtype=torch.float64)
PER_SAMPLE = Ridge(RidgeConvention.PER_SAMPLE, 0.5)
TOTAL = Ridge(RidgeConvention.TOTAL, 0.5)


def test_a_ridge_per_sample_grows_with_the_samples_and_is_shared_by_the_forgotten():
    assert (PER_SAMPLE.shift(6), PER_SAMPLE.forgotten_shift(2)) == (3.0, 1.0)
    assert PER_SAMPLE.mean_shift(6) == 0.5


def test_a_total_ridge_belongs_to_the_whole_objective():
    assert (TOTAL.shift(6), TOTAL.forgotten_shift(2)) == (0.5, 0.0)
    assert TOTAL.mean_shift(5) == 0.1


@pytest.mark.parametrize("strength", [-1.0, float("inf"), float("nan")])
def test_a_ridge_without_an_optimum_is_refused(strength):
    with pytest.raises(InvalidOptionError, match="ridge strength"):
        Ridge(RidgeConvention.TOTAL, strength)


def test_only_least_squares_can_do_without_a_ridge():
    none = Ridge(RidgeConvention.TOTAL, 0.0)
    weights = torch.zeros(2, 1, dtype=torch.float64)
    assert LinearModel(weights, none, 5, 1.0).ridge.shift(5) == 0.0
    with pytest.raises(InvalidOptionError, match="ridge strength: 0 leaves logistic loss"):
        LinearModel(weights, none, 5, 1.0, loss=Loss.LOGISTIC)
    with pytest.raises(InvalidOptionError, match="ridge strength"):
        Ridge(RidgeConvention.PER_SAMPLE, 0.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3, 2), "m: expected float64, got torch.float32"),
        (ONES[0], r"m: expected shape \(3, any\), got \(2,\)"),
        (ONES[:2], r"m: expected shape \(3, any\), got \(2, 2\)"),
        (ONES * float("nan"), "m: contains NaN or infinite"),
        (ONES * float("inf"), "m: contains NaN or infinite"),
    ],
)
def test_a_matrix_that_is_none_is_refused(value, message):
    with pytest.raises(InvalidTensorError, match=message):
        require_matrix("m", value, rows=3)


def test_opposite_infinities_do_not_cancel_and_large_numbers_pass():
    mixed = ONES.clone()
    mixed[0, 0], mixed[1, 0] = float("inf"), float("-inf")
    with pytest.raises(InvalidTensorError, match="NaN or infinite"):
        require_matrix("m", mixed)
    require_matrix("m", ONES * 1e308)  # finite, though its sum is not


def test_samples_without_targets_or_without_samples_are_refused():
    with pytest.raises(InvalidTensorError, match=r"targets: expected shape \(3, any\)"):
        SampleSet(ONES, ONES[:2])
    with pytest.raises(InvalidTensorError, match="empty set"):
        SampleSet(ONES[:0], ONES[:0])


@pytest.mark.parametrize(
    "change",
    [
        {"n_samples": 0},
        {"feature_norm_bound": 0.0},
        {"feature_norm_bound": float("inf")},
        {"gradient_norm_bound": -1.0},
        {"gradient_norm_bound": float("nan")},
    ],
)
def test_a_model_that_no_training_left_is_refused(change):
    fields = {"weights": ONES, "ridge": TOTAL, "n_samples": 3, "feature_norm_bound": 1.0}
    LinearModel(**fields)
    with pytest.raises(InvalidOptionError, match=next(iter(change))):
        LinearModel(**fields | change)
