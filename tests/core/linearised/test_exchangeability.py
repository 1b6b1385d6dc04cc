import dataclasses

import numpy as np
import pytest
import torch

from core.gate import GateFailedError
from core.linearised import exchangeability as module
from core.linearised.exchangeability import require_exchangeable
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.problem import Ridge
from core.vocabulary import RefusalCause, RidgeConvention
from tests.reference.networks import SPECS, TinyProblem

N = 1200
PROBLEM = TinyProblem.draw(SPECS["mlp-2"], N)


def p_value(rows: object, seed: int = 0, model: MixedLinearModel | None = None) -> float:
    # A level that nothing can fail, to see the figure.
    result = require_exchangeable(
        model or PROBLEM.model, PROBLEM.take(rows), level=1e-300, seed=seed
    )
    assert result.passed
    assert result.value is not None
    return result.value


def refuses(forget: FeatureSamples, model: MixedLinearModel | None = None) -> bool:
    try:
        require_exchangeable(model or PROBLEM.model, forget, level=0.01, seed=0)
    except GateFailedError as failure:
        return failure.cause is RefusalCause.FORGET_SET_SKEWED and "statistics" in failure.remedy
    return False


def errors() -> np.ndarray:
    outputs = PROBLEM.model.outputs(PROBLEM.features)
    return (outputs - PROBLEM.targets).square().sum(dim=1).numpy()


def test_p_values_of_random_sets_are_no_smaller_than_they_claim():
    rng = np.random.default_rng(1)
    values = np.array([p_value(rng.permutation(N)[:120], seed) for seed in range(200)])
    # Three standard errors of 200 draws above the level.
    assert (values < 0.05).mean() < 0.05 + 0.046
    assert (values < 0.25).mean() < 0.25 + 0.092
    # Not by never being small.
    assert (values < 0.5).mean() > 0.15


@pytest.mark.parametrize("convention", list(RidgeConvention))
@pytest.mark.parametrize("name", ["mlp-2", "cnn-2", "cnn-4"])
def test_what_is_expected_of_the_mean_is_what_the_training_set_has(name, convention, monkeypatch):
    problem = TinyProblem.draw(SPECS[name], 60, ridge=Ridge(convention, 0.3))
    seen = {}

    def record(values, expected, slack, population, rng):
        del rng
        seen[len(seen)] = (values, expected, slack, population)
        return 1.0

    monkeypatch.setattr(module, "mean_p_value", record)
    require_exchangeable(problem.model, problem.data, level=0.01, seed=0)
    (along, expected, *_), (each, of_each, *_), (rest, of_rest, *rules) = seen.values()
    jacobians, weights = problem.jacobians, problem.weights.numpy()
    residuals = jacobians @ weights - problem.misfit[:, :, None]
    # Of one sample: e·J(x)p. Over the whole training set, the means that the ridge balances.
    shares = ((jacobians @ weights) * residuals).sum(axis=1)
    np.testing.assert_allclose(np.sort(along, axis=0), np.sort(shares, axis=0), atol=1e-9)
    np.testing.assert_allclose(along.mean(axis=0), expected, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(each, residuals[:, :, 0], atol=1e-9)
    np.testing.assert_allclose(each.mean(axis=0), of_each, rtol=1e-7, atol=1e-12)
    # The third direction is the gradient of a third, tested on the others.
    assert len(rest) == 40
    order = np.random.default_rng(0).permutation(60)
    third = np.einsum("ncd,nce->d", jacobians[order[:20]], residuals[order[:20]])
    np.testing.assert_allclose(
        rest[:, 0], np.einsum("ncd,d,nce->n", jacobians[order[20:]], third, residuals[order[20:]]),
        rtol=1e-7, atol=1e-9,
    )  # fmt: skip
    shift = problem.ridge.shift(60) / 60
    np.testing.assert_allclose(of_rest, -shift * (third @ weights), rtol=1e-7)
    assert rules == [0.0, 60]


def test_a_gradient_that_earlier_estimates_left_lowers_the_power_by_what_it_may_amount_to(
    monkeypatch,
):
    slacks = []
    monkeypatch.setattr(
        module, "mean_p_value", lambda _v, _e, slack, *_: slacks.append(slack) or 1.0
    )
    away = dataclasses.replace(PROBLEM.model, gradient_norm_bound=6.0)
    require_exchangeable(away, PROBLEM.take(slice(60)), level=0.01, seed=0)
    # Of a direction p, |p·g| ≤ ‖p‖‖g‖; biases have length 1.
    assert slacks[0] == pytest.approx(6.0 / N * float(away.weights.norm()), rel=1e-12)
    assert slacks[1] == pytest.approx(6.0 / N, rel=1e-12)
    monkeypatch.undo()
    worst = np.argsort(-errors())[:100]
    assert refuses(PROBLEM.take(worst))
    lost = dataclasses.replace(PROBLEM.model, gradient_norm_bound=1e9)
    assert p_value(worst, model=lost) == 1.0


@pytest.mark.parametrize("size", [60, 150])
def test_one_class_the_worst_fitted_and_one_persons_samples_are_told_from_the_rest(size):
    labels = PROBLEM.targets.argmax(dim=1).numpy()
    for label in range(3):
        assert refuses(PROBLEM.take(np.flatnonzero(labels == label)[:size]))
    assert refuses(PROBLEM.take(np.argsort(-errors())[:size]))
    rng = np.random.default_rng(3)
    found = 0
    for person in range(20):
        likeness = 0.05 * torch.from_numpy(rng.standard_normal((size, 4)))
        inputs = PROBLEM.inputs[person] + likeness
        features = PROBLEM.linearisation.network.frozen(inputs)
        targets = PROBLEM.targets[person].expand(size, -1).clone()
        found += refuses(FeatureSamples(features, targets))
    assert found >= 19


def test_the_gate_names_its_tests_and_what_differs():
    worst = PROBLEM.take(np.argsort(-errors())[:100])
    with pytest.raises(
        GateFailedError, match=r"the forget set differs in (gradients|errors)"
    ) as it:
        require_exchangeable(PROBLEM.model, worst, level=0.01, seed=0)
    assert it.value.result.threshold == 0.01
    random = require_exchangeable(PROBLEM.model, PROBLEM.take(slice(100)), level=1e-9, seed=0)
    assert "tests of 3 kinds" in random.detail
    for name in ("along the weights", "errors of each output", "along the mean gradient"):
        assert name in random.detail


def test_a_seed_gives_the_same_figure():
    worst = np.argsort(-errors())[:40]
    values = [p_value(worst, seed) for seed in (0, 0, 1)]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_too_few_samples_for_any_test_are_refused_in_words():
    with pytest.raises(GateFailedError, match="7 forget samples are too few") as failure:
        require_exchangeable(PROBLEM.model, PROBLEM.take(slice(7)), level=0.01, seed=0)
    assert failure.value.cause is RefusalCause.FORGET_SET_TOO_SMALL


def test_no_matrix_of_a_column_for_each_output_is_made(monkeypatch):
    # D numbers for each of C outputs would be the largest thing of a deletion.
    wide = TinyProblem.draw(SPECS["mlp-2"], 30)
    made = []
    original = torch.Tensor.new_zeros
    monkeypatch.setattr(
        torch.Tensor,
        "new_zeros",
        lambda self, *size, **options: made.append(size) or original(self, *size, **options),
    )
    require_exchangeable(wide.model, wide.take(slice(20)), level=1e-300, seed=0)
    assert (57, 3) not in made
    assert (1, 57) in made
