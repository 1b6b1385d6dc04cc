import pytest
from sklearn.metrics import accuracy_score, mean_squared_error

from core.evaluation.scores import score
from core.vocabulary import Loss, Task
from tests.reference.problems import make


def test_scores_are_those_of_scikit_learn():
    problem = make(0, 50, 5, 4, 10, one_hot=True)
    weights = problem.model.weights
    found = score(weights, problem.data, Loss.SQUARED, Task.CLASSIFICATION)
    outputs = problem.x @ weights.numpy()
    right = accuracy_score(problem.y.argmax(axis=1), outputs.argmax(axis=1))
    assert found.accuracy == right
    assert 0 < right < 1
    # scikit-learn averages over outputs as well.
    assert found.mean_loss == pytest.approx(0.5 * 4 * mean_squared_error(problem.y, outputs))
    assert found.n_samples == 50


def test_regression_has_no_accuracy():
    problem = make(1, 20, 3, 1, 5)
    assert (
        score(problem.model.weights, problem.data, Loss.SQUARED, Task.REGRESSION).accuracy is None
    )
