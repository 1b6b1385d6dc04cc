import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from core import training
from core.errors import InvalidTensorError, SolverError
from core.problem import Ridge, SampleSet
from core.training import fit_logistic
from core.vocabulary import RidgeConvention
from tests.reference.logistic_problems import LogisticProblem, make, problems


@given(problems(weakest=1e-2))
def test_training_finds_the_optimum_of_an_independent_newton(problem: LogisticProblem):
    noise = None if problem.noise is None else torch.tensor(problem.noise)
    fitted = fit_logistic(problem.rows(slice(None)), problem.ridge, objective_noise=noise)
    wanted = problem.retrained(slice(None))
    assert_close(fitted.weights.numpy(), wanted, rtol=1e-7, atol=1e-7)
    assert problem.residual(fitted.weights, slice(None)) <= fitted.gradient_norm_bound


@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_training_agrees_with_scikit_learn(convention: RidgeConvention):
    problem = make(1, 300, 5, 1, ridge=Ridge(convention, 0.05))
    fitted = fit_logistic(problem.rows(slice(None)), problem.ridge)
    other = LogisticRegression(
        C=1 / problem.ridge.shift(300), fit_intercept=False, tol=1e-12, max_iter=10000
    ).fit(problem.x, problem.y[:, 0])
    assert_close(fitted.weights[:, 0].numpy(), other.coef_[0], rtol=1e-5, atol=1e-5)
    assert fitted.report.figures["gradient_norm"] < 1e-10


def test_batches_and_the_whole_give_the_same_weights():
    problem = make(1, 300, 5, 2)
    whole = fit_logistic(problem.rows(slice(None)), problem.ridge)
    parts = [problem.rows(slice(at, at + 70)) for at in range(0, 300, 70)]
    assert_close(fit_logistic(parts, problem.ridge).weights, whole.weights, rtol=1e-9, atol=1e-10)


def test_separable_data_with_a_tiny_ridge_converge():
    x = np.vstack([np.eye(2), -np.eye(2)]).repeat(5, axis=0)
    data = SampleSet(torch.tensor(x), torch.tensor((x.sum(axis=1, keepdims=True) > 0) * 1.0))
    fitted = fit_logistic(data, Ridge(RidgeConvention.PER_SAMPLE, 1e-8))
    assert fitted.gradient_norm_bound < 1e-9
    assert float(fitted.weights.min()) > 10


def test_training_that_does_not_converge_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "_MAX_STEPS", 1)
    problem = make(1, 100, 3, 1)
    with pytest.raises(SolverError, match="after 1 Newton steps the gradient norm is"):
        fit_logistic(problem.rows(slice(None)), problem.ridge)


def test_training_needs_a_batch_and_targets_of_0_or_1():
    ridge = Ridge(RidgeConvention.TOTAL, 1.0)
    with pytest.raises(InvalidTensorError, match="no batch"):
        fit_logistic([], ridge)
    problem = make(1, 10, 3, 1)
    half = dataclasses.replace(problem, y=np.full((10, 1), 0.5))
    with pytest.raises(InvalidTensorError, match="expected 0 or 1"):
        fit_logistic(half.rows(slice(None)), ridge)
    narrow = SampleSet(torch.zeros(1, 2).double(), torch.zeros(1, 1).double())
    with pytest.raises(InvalidTensorError, match="features: expected shape"):
        fit_logistic([problem.rows(slice(None)), narrow], ridge)


def test_easy_problems_converge_without_the_step_length_search(monkeypatch: pytest.MonkeyPatch):
    problem = make(1, 100, 3, 1)
    wanted = fit_logistic(problem.rows(slice(None)), problem.ridge).weights
    monkeypatch.setattr(training, "_MAX_HALVINGS", 0)
    found = fit_logistic(problem.rows(slice(None)), problem.ridge).weights
    assert_close(found, wanted, rtol=1e-9, atol=1e-10)
