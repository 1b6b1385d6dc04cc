import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, mean_squared_error

from core.evaluation.scores import compare, score
from core.vocabulary import Task
from tests.reference.problems import make, samples


def test_scores_are_those_of_scikit_learn():
    problem = make(0, 50, 5, 4, 10, one_hot=True)
    weights = problem.model.weights
    found = score(weights, problem.data, Task.CLASSIFICATION)
    outputs = problem.x @ weights.numpy()
    right = accuracy_score(problem.y.argmax(axis=1), outputs.argmax(axis=1))
    assert found.accuracy == right
    assert 0 < right < 1
    # scikit-learn averages over outputs as well.
    assert found.mean_loss == pytest.approx(0.5 * 4 * mean_squared_error(problem.y, outputs))
    assert found.n_samples == 50


def test_regression_has_no_accuracy():
    problem = make(1, 20, 3, 1, 5)
    assert score(problem.model.weights, problem.data, Task.REGRESSION).accuracy is None


def test_what_cannot_be_measured_is_named():
    problem = make(2, 20, 3, 2, 5)
    found = compare(
        problem.model,
        problem.model.weights + 1.0,
        forget=problem.forget,
        holdout=None,
        remaining=None,
        task=Task.REGRESSION,
    )
    assert found.holdout_before is None
    assert found.retain_loss_after is None
    assert set(found.missing) == {"holdout", "retain_loss"}
    assert found.weight_change == pytest.approx(np.sqrt(6))
    assert found.forget_before != found.forget_after


def test_with_a_holdout_and_statistics_nothing_is_missing():
    problem = make(3, 20, 3, 2, 5)
    moved = torch.from_numpy(problem.retrained())
    found = compare(
        problem.model,
        moved,
        forget=problem.forget,
        holdout=samples(problem.x[:2], problem.y[:2]),
        remaining=problem.statistics.downdate(problem.forget),
        task=Task.REGRESSION,
    )
    assert found.missing == {}
    assert found.holdout_after is not None
    assert found.holdout_after.n_samples == 2
    assert found.retain_loss_before is not None
    assert found.retain_loss_after is not None
    # Retraining minimises the retain loss.
    assert found.retain_loss_after < found.retain_loss_before
    x, y = problem.x[5:], problem.y[5:]
    errors = x @ moved.numpy() - y
    wanted = 0.5 * (errors**2).sum() + 0.5 * 1e-2 * 15 * (moved.numpy() ** 2).sum()
    assert found.retain_loss_after == pytest.approx(wanted, rel=1e-10)
