"""The choosers of forget sets, and retraining, on a small dataset."""

import pytest
import torch

from benchmarks import _data
from demo.data import DatasetName, load


@pytest.fixture(scope="module")
def digits():
    return _data.shorten(load(DatasetName.DIGITS), 300)


def test_random_sets_have_their_size_and_no_duplicates(digits):
    for chosen, count in (
        (_data.one_record(digits, 3), 1),
        (_data.random_count(digits, 17, 3), 17),
        (_data.random_share(digits, 10.0, 3), 30),
    ):
        assert len(chosen.rows) == count
        assert len(chosen.rows.unique()) == count


def test_a_seed_chooses_the_same_set_again_and_another_seed_another(digits):
    first, again, other = (_data.random_count(digits, 20, seed).rows for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_class_is_the_whole_of_one_class(digits):
    chosen = _data.one_class(digits, 4)

    assert set(digits.train_labels[chosen.rows].tolist()) == {4}
    assert len(chosen.rows) == int((digits.train_labels == 4).sum())


def test_the_highest_residuals_are_above_the_mean(digits):
    whole = _data.samples(digits)
    kept = torch.ones(len(whole), dtype=torch.bool)
    weights = _data.normal_equations(whole, kept).solve(_data.per_sample(1e-3))
    errors = (whole.features @ weights - whole.targets).square().sum(dim=1)

    chosen = _data.highest_residual(digits, weights, 0)

    assert len(chosen.rows) == 3
    assert errors[chosen.rows].min() > errors.mean()


def test_retraining_leaves_no_gradient_at_the_retain_set(digits):
    whole, ridge = _data.samples(digits), _data.per_sample(1e-3)
    kept = _data.keep_all_but(_data.random_count(digits, 30, 0).rows, len(whole))
    sums = _data.normal_equations(whole, kept)

    weights = sums.refined(ridge, whole, kept)

    left = _data.retain_gradient(whole, kept, weights, ridge.shift(int(kept.sum())))
    assert torch.linalg.norm(left) <= 1e-12 * torch.linalg.norm(sums.cross)


def test_threads_are_given_back():
    before = torch.get_num_threads()

    with _data.torch_threads(1):
        assert torch.get_num_threads() == 1

    assert torch.get_num_threads() == before
