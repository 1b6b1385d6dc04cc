import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised import rows as module
from core.linearised.rows import collect_gram, row_model, row_ridge, rows_of
from core.problem import Ridge
from core.vocabulary import Loss, RidgeConvention
from tests.reference.networks import SPECS, TinyProblem

CLOSE = {"rtol": 1e-11, "atol": 1e-11}


@given(
    st.sampled_from(list(RidgeConvention)),
    st.floats(1e-9, 1e9),
    st.integers(1, 10**6),
    st.integers(1, 1000),
)
def test_rows_are_shifted_as_their_samples_are(convention, strength, count, outputs):
    ridge = Ridge(convention, strength)
    seen = row_ridge(ridge, outputs)
    assert seen.shift(count * outputs) == pytest.approx(ridge.shift(count), rel=1e-14)
    assert seen.forgotten_shift(count * outputs) == pytest.approx(
        ridge.forgotten_shift(count), rel=1e-14
    )


@pytest.mark.parametrize("name", ["linear", "mlp-3", "cnn-2", "cnn-4"])
def test_the_gram_matrix_is_that_of_explicit_rows(name):
    problem = TinyProblem.draw(SPECS[name], 9)
    jacobians, misfit = problem.rows(slice(None))
    statistics = problem.gram()
    assert_close(statistics.gram, torch.from_numpy(jacobians.T @ jacobians), **CLOSE)
    assert_close(statistics.cross, torch.from_numpy(jacobians.T @ misfit), **CLOSE)
    assert_close(statistics.target_gram, torch.from_numpy(misfit.T @ misfit), **CLOSE)
    assert statistics.n_samples == 9 * problem.linearisation.num_outputs
    gradient = statistics.training_gradient(
        problem.weights, row_ridge(problem.ridge, problem.linearisation.num_outputs)
    )
    # At the optimum, of explicit rows, nothing but rounding is left.
    assert float(gradient.norm()) < 1e-10 * float(statistics.cross.norm())


def test_rows_and_their_targets_stand_in_the_order_of_samples_then_outputs():
    problem = TinyProblem.draw(SPECS["mlp-2"], 5)
    found = rows_of(problem.linearisation, problem.data)
    jacobians, misfit = problem.rows(slice(None))
    assert_close(found.features, torch.from_numpy(jacobians), **CLOSE)
    assert_close(found.targets, torch.from_numpy(misfit), **CLOSE)


@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_the_model_of_the_rows_is_the_same_model(convention):
    problem = TinyProblem.draw(SPECS["mlp-2"], 12, ridge=Ridge(convention, 0.2))
    seen = row_model(problem.model)
    assert seen.n_samples == 36
    assert seen.loss is Loss.SQUARED
    assert seen.ridge.shift(36) == pytest.approx(problem.ridge.shift(12), rel=1e-15)
    longest = np.linalg.norm(problem.rows(slice(None))[0], axis=1).max()
    assert longest <= seen.feature_norm_bound == problem.model.jacobian_norm_bound
    assert seen.weights is problem.model.weights


@pytest.mark.parametrize("floats", [1, 300, 2**24])
@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_gram_matrix_does_not_depend_on_batches(floats, size, monkeypatch):
    problem = TinyProblem.draw(SPECS["cnn-3"], 9)
    whole = problem.gram()
    monkeypatch.setattr(module, "_BLOCK_FLOATS", floats)
    parts = [problem.take(part) for part in torch.split(torch.arange(9), size)]
    # Gone through once: an iterator will do.
    found = collect_gram(problem.linearisation, iter(parts))
    assert found.n_samples == whole.n_samples
    for name in ("gram", "cross", "target_gram"):
        assert_close(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


def test_a_gram_matrix_of_too_many_parameters_is_refused_before_anything_is_computed(monkeypatch):
    problem = TinyProblem.draw(SPECS["mlp-2"], 3)
    monkeypatch.setattr(module, "MOST_PARAMETERS", 50)
    with pytest.raises(
        InvalidOptionError, match=r"layers: expected at most 50 .*, got 57; .*a sketch"
    ):
        collect_gram(problem.linearisation, [])


def test_without_batches_there_is_nothing_to_collect():
    problem = TinyProblem.draw(SPECS["mlp-2"], 3)
    with pytest.raises(InvalidTensorError, match="batches: there is none"):
        collect_gram(problem.linearisation, [])
