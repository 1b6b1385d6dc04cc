import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import log_loss, roc_auc_score, roc_curve

from core.errors import InvalidOptionError, InvalidTensorError
from core.evaluation.membership import (
    attack,
    likelihood_ratio,
    loss_threshold,
    sample_losses,
    scaled_confidence,
)
from core.vocabulary import Loss
from tests.reference.problems import make

# Few values, so that ties are common.
SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=300)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(SCORES, SCORES)
def test_the_attack_is_judged_as_scikit_learn_does_ties_included(members, others):
    found = attack(tensor(members), tensor(others))
    truth = [1] * len(members) + [0] * len(others)
    scores = members + others
    assert found.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.tpr_at_1_percent_fpr == pytest.approx(true[false <= 0.01].max(), abs=1e-12)


def test_continuous_scores_are_judged_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 500), rng.normal(0, 1, 2000)
    found = attack(tensor(members), tensor(others))
    truth, scores = np.r_[np.ones(500), np.zeros(2000)], np.r_[members, others]
    assert found.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.tpr_at_1_percent_fpr == pytest.approx(true[false <= 0.01].max(), abs=1e-12)
    assert found.tpr_at_1_percent_fpr > 0.05


@pytest.mark.parametrize("bad", [[], [[1.0]], [float("nan")]])
def test_scores_have_to_be_numbers(bad):
    with pytest.raises(InvalidTensorError, match="members"):
        attack(tensor(bad), tensor([0.0]))
    with pytest.raises(InvalidTensorError, match="others"):
        attack(tensor([0.0]), tensor(bad))


def test_small_losses_are_taken_for_members():
    problem = make(3, 60, 20, 2, 20)
    weights = tensor(np.linalg.lstsq(problem.x[:20], problem.y[:20], rcond=None)[0])
    found = loss_threshold(weights, problem.forget, problem.rest, Loss.SQUARED)
    assert found.auc == 1.0
    assert found.tpr_at_1_percent_fpr == 1.0


def test_losses_are_those_of_numpy_and_scikit_learn_one_by_one():
    problem = make(4, 30, 4, 3, 10, one_hot=True)
    outputs = problem.x @ problem.model.weights.numpy()
    squared = sample_losses(problem.model.weights, problem.data, Loss.SQUARED).numpy()
    assert squared == pytest.approx(0.5 * ((outputs - problem.y) ** 2).sum(axis=1))
    logistic = sample_losses(problem.model.weights, problem.data, Loss.LOGISTIC).numpy()
    sigmoid = 1 / (1 + np.exp(-outputs))
    wanted = [
        sum(log_loss([y], [p], labels=[0, 1]) for y, p in zip(*rows, strict=True))
        for rows in zip(problem.y, sigmoid, strict=True)
    ]
    assert logistic == pytest.approx(np.array(wanted))


def test_the_confidence_is_the_logit_of_the_softmax():
    rng = np.random.default_rng(1)
    outputs, labels = rng.normal(size=(20, 5)), rng.integers(0, 5, 20)
    found = scaled_confidence(tensor(outputs), tensor(np.eye(5)[labels])).numpy()
    right = softmax(outputs, axis=1)[np.arange(20), labels]
    assert found == pytest.approx(np.log(right / (1 - right)))


def test_the_confidence_of_one_output_is_its_signed_margin():
    found = scaled_confidence(tensor([[2.0], [3.0]]), tensor([[1.0], [0.0]]))
    assert found.tolist() == [2.0, -3.0]
    odds = log_softmax([0.0, 2.0])
    assert odds[1] - odds[0] == pytest.approx(2.0)


@pytest.mark.parametrize("models", [5, 64])
def test_the_likelihood_ratio_is_scipys(models):
    rng = np.random.default_rng(2)
    inside = rng.normal(1, 2, (models, 7))
    outside = rng.normal(0, 1, (models, 7))
    observed = rng.normal(size=7)
    found = likelihood_ratio(tensor(observed), tensor(inside), tensor(outside)).numpy()
    deviations = [each.std(axis=0, ddof=1) for each in (inside, outside)]
    if models < 64:
        deviations = [np.full(7, np.sqrt((each**2).mean())) for each in deviations]
    wanted = norm.logpdf(observed, inside.mean(axis=0), deviations[0])
    wanted -= norm.logpdf(observed, outside.mean(axis=0), deviations[1])
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        (torch.zeros(3, 2), InvalidTensorError),
        (torch.zeros(4), InvalidTensorError),
        (torch.zeros(1, 4), InvalidOptionError),
        (torch.zeros(3, 4), InvalidTensorError),
    ],
    ids=["samples", "dimensions", "one model", "all alike"],
)
def test_reference_models_that_show_no_spread_are_refused(reference, error):
    with pytest.raises(error, match="trained_with"):
        likelihood_ratio(torch.zeros(4), reference, torch.ones(3, 4))
