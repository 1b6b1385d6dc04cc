import dataclasses

import numpy as np
import pytest
import torch

from core.linearised.pipeline import unlearn
from core.linearised.problem import FeatureSamples
from core.options import GatePolicy, UnlearningOptions
from core.privacy import Privacy, sigma_for
from core.problem import Ridge
from core.results import Unlearned
from core.vocabulary import Mechanism, Method, RidgeConvention, Task
from tests.reference.networks import SPECS, TinyProblem

PROBLEM = TinyProblem.draw(SPECS["mlp-2"], 80, ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.05))
FORGET, HOLDOUT = np.arange(12), np.arange(60, 80)
# What is never trained on is left out of the statistics too.
TRAINED = PROBLEM.but(
    inputs=PROBLEM.inputs[:60], targets=PROBLEM.targets[:60], linearisation=PROBLEM.linearisation
)


def run(**changes: object) -> Unlearned:
    given = {
        "model": TRAINED.model,
        "statistics": TRAINED.gram(),
        "holdout": PROBLEM.take(HOLDOUT),
        "task": Task.CLASSIFICATION,
        "options": UnlearningOptions(Method.STORED),
        "forget": PROBLEM.take(FORGET),
    } | changes
    result = unlearn(given.pop("model"), given.pop("forget"), **given)
    assert isinstance(result, Unlearned), result
    return result


def losses(weights: torch.Tensor, rows: np.ndarray) -> np.ndarray:
    left = PROBLEM.jacobians[rows] @ weights.numpy() - PROBLEM.misfit[rows][:, :, None]
    return 0.5 * np.square(left).sum(axis=(1, 2))


def accuracy(weights: torch.Tensor, rows: np.ndarray) -> float:
    centre = PROBLEM.targets.numpy() - PROBLEM.misfit
    outputs = centre[rows] + (PROBLEM.jacobians[rows] @ weights.numpy())[:, :, 0]
    right = outputs.argmax(axis=1) == PROBLEM.targets.numpy()[rows].argmax(axis=1)
    return float(right.mean())


def test_scores_are_those_of_explicit_rows():
    result = run()
    found = result.metrics
    for weights, forget, holdout in (
        (TRAINED.weights, found.forget_before, found.holdout_before),
        (result.weights, found.forget_after, found.holdout_after),
    ):
        for score, rows in ((forget, FORGET), (holdout, HOLDOUT)):
            assert score.mean_loss == pytest.approx(losses(weights, rows).mean(), rel=1e-9)
            assert score.accuracy == accuracy(weights, rows)
            assert score.n_samples == len(rows)
    assert found.forget_after.mean_loss > found.forget_before.mean_loss
    change = float((result.weights - TRAINED.weights).norm())
    assert found.weight_change == pytest.approx(change, rel=1e-12)


def test_retain_losses_are_those_of_explicit_rows():
    result = run()
    rest = np.setdiff1d(np.arange(60), FORGET)
    shift = TRAINED.ridge.shift(48)
    for weights, found in (
        (TRAINED.weights, result.metrics.retain_loss_before),
        (result.weights, result.metrics.retain_loss_after),
    ):
        ridge = 0.5 * shift * float(weights.square().sum())
        assert found == pytest.approx(losses(weights, rest).sum() + ridge, rel=1e-9)
    assert result.metrics.retain_loss_after < result.metrics.retain_loss_before


def test_membership_is_inferred_from_the_losses_of_both_weights():
    result = run()
    for weights, found in (
        (TRAINED.weights, result.metrics.membership_before),
        (result.weights, result.metrics.membership_after),
    ):
        members, others = losses(weights, FORGET), losses(weights, HOLDOUT)
        wins = (members[:, None] < others[None, :]).mean()
        assert found.auc == pytest.approx(wins, abs=1e-12)
        # Of 20 others none may be accused: what is below all of them.
        assert found.tpr_at_1_percent_fpr == (members < others.min()).mean()
    assert result.metrics.membership_before.auc > 0.5


def test_a_leak_is_the_largest_cosine_between_the_change_and_a_row_of_a_forget_sample():
    result = run()
    change = (result.weights - TRAINED.weights).numpy()[:, 0]
    rows = PROBLEM.jacobians[FORGET].reshape(-1, 57)
    lengths = np.linalg.norm(rows, axis=1)
    cosines = np.abs(rows @ change) / (lengths * np.linalg.norm(change))
    leak = result.metrics.reconstruction
    assert leak.cosine == pytest.approx(cosines.max(), rel=1e-9)
    assert leak.cosine_with_statistics is None
    single = run(forget=PROBLEM.take([3])).metrics.reconstruction
    assert single.cosine <= 1.0


def test_what_was_released_before_is_what_the_change_is_seen_from():
    before = TRAINED.weights + 0.25
    result = run(released_before=before)
    found = result.metrics
    assert found.weight_change == pytest.approx(float((result.weights - before).norm()), rel=1e-12)
    assert found.forget_before.mean_loss == pytest.approx(losses(before, FORGET).mean(), rel=1e-9)


def test_with_output_perturbation_the_noisy_weights_are_what_is_seen():
    hidden = Privacy(Mechanism.OUTPUT, 1.0, 1e-4, sigma_for(1.0, 1e-4, 1e-3))
    model = dataclasses.replace(TRAINED.model, privacy=hidden)
    result = run(model=model, noise_key=bytes(32))
    assert result.metrics.reconstruction is None
    assert "not at hand" in result.metrics.missing["reconstruction"]
    assert result.metrics.forget_after.mean_loss == pytest.approx(
        losses(result.release, FORGET).mean(), rel=1e-9
    )
    again = run(model=model, noise_key=bytes(32), released_before=TRAINED.weights)
    assert again.metrics.reconstruction is not None


def test_what_is_missing_is_said():
    result = run(holdout=None)
    assert result.metrics.holdout_before is result.metrics.holdout_after is None
    assert result.metrics.membership_before is result.metrics.membership_after is None
    assert result.metrics.missing.keys() == {"holdout", "membership", "reference_models"}
    sketched = run(statistics=TRAINED.sketch(rank=57), options=UnlearningOptions(Method.SKETCH))
    assert "do not tell it" in sketched.metrics.missing["retain_loss"]
    assert sketched.metrics.retain_loss_after is None


def test_without_statistics_there_is_no_retain_loss():
    strong = TRAINED.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 30.0))
    policy = GatePolicy(skew_level=0)
    result = run(
        model=strong.model,
        statistics=None,
        forget=PROBLEM.take(np.arange(30)),
        options=UnlearningOptions(Method.FORGET_CURVATURE, gate=policy),
    )
    assert result.metrics.missing["retain_loss"] == "no statistics are stored"


def test_regression_has_no_accuracy():
    assert run(task=Task.REGRESSION).metrics.forget_after.accuracy is None


def test_weights_that_do_not_change_reveal_nothing():
    # Without misfit the optimum is 0 whatever is forgotten.
    fitted = TRAINED.but(targets=TRAINED.linearisation.centre_outputs(TRAINED.features))
    model = dataclasses.replace(TRAINED.model, weights=torch.zeros_like(TRAINED.weights))
    forget = FeatureSamples(fitted.features[:3], fitted.targets[:3])
    result = run(model=model, statistics=fitted.gram(), forget=forget, task=Task.REGRESSION)
    assert not result.weights.any()
    assert result.metrics.reconstruction is None
    assert "reveal nothing" in result.metrics.missing["reconstruction"]
