import dataclasses

import numpy as np
import pytest
import torch

from core import gate
from core.gate import GateFailedError
from core.options import GatePolicy, UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Refused, Unlearned
from core.statistics import collect_logistic
from core.training import fit_logistic
from core.vocabulary import Loss, Mechanism, Method, RefusalCause, RidgeConvention, Task
from tests.reference.problems import Problem, make, samples

RIDGE = Ridge(RidgeConvention.PER_SAMPLE, 1e-2)
LOSSES = pytest.mark.parametrize("loss", list(Loss))
STORED = pytest.mark.parametrize("stored", [False, True])


def trained(loss: Loss, count: int = 3000) -> tuple[Problem, LinearModel, object]:
    # Classes whose features have means of their own, as classes have.
    problem = make(0, count, 6, 3, 1, ridge=RIDGE, one_hot=True)
    problem.x[:, 5] = 1.0
    if loss is Loss.SQUARED:
        return problem, problem.model, problem.statistics
    weights = fit_logistic(problem.data, RIDGE).weights
    model = dataclasses.replace(problem.model, weights=weights, loss=loss)
    return problem, model, collect_logistic([problem.data], weights)


def p_value(problem: Problem, model: LinearModel, stored: object, rows, seed: int = 0) -> float:
    forget = samples(problem.x[rows], problem.y[rows])
    # A level that nothing can fail, to see the figure.
    value = gate.require_exchangeable(model, forget, stored, level=1e-300, seed=seed).value
    assert value is not None
    return value


def refuses(problem: Problem, model: LinearModel, stored: object, rows) -> bool:
    return refuses_samples(model, stored, samples(problem.x[rows], problem.y[rows]))


def refuses_samples(model: LinearModel, stored: object, forget: SampleSet) -> bool:
    try:
        gate.require_exchangeable(model, forget, stored, level=0.01, seed=0)
    except GateFailedError as failure:
        return failure.cause is RefusalCause.FORGET_SET_SKEWED and "statistics" in failure.remedy
    return False


@LOSSES
@STORED
def test_p_values_of_random_sets_are_no_smaller_than_they_claim(loss, stored):
    problem, model, statistics = trained(loss)
    rng = np.random.default_rng(1)
    values = np.array(
        [
            p_value(
                problem, model, statistics if stored else None, rng.permutation(3000)[:240], seed
            )
            for seed in range(300)
        ]
    )
    # Three standard errors of 300 draws above the level.
    assert (values < 0.05).mean() < 0.05 + 0.038
    assert (values < 0.25).mean() < 0.25 + 0.075
    # Not by never being small.
    assert (values < 0.5).mean() > 0.15


@LOSSES
@STORED
@pytest.mark.parametrize("size", [60, 300])
def test_one_class_one_person_and_the_worst_fitted_are_told_from_the_rest(loss, stored, size):
    problem, model, statistics = trained(loss)
    known = statistics if stored else None
    margins = torch.from_numpy(problem.x) @ model.weights
    outputs = margins if loss is Loss.SQUARED else torch.sigmoid(margins)
    errors = (outputs - torch.from_numpy(problem.y)).square().sum(dim=1).numpy()
    worst = np.argsort(-errors)[:size]
    classes = [np.flatnonzero(problem.y[:, label])[:size] for label in range(3)]
    # One person's records: all but the same features, and one label.
    rng = np.random.default_rng(3)
    people = [
        samples(
            problem.x[person] + 0.05 * rng.standard_normal((size // 5, 6)),
            np.tile(problem.y[person], (size // 5, 1)),
        )
        for person in range(40)
    ]
    assert refuses(problem, model, known, worst)
    assert all(refuses(problem, model, known, rows) for rows in classes)
    assert sum(refuses_samples(model, known, records) for records in people) >= 38


@STORED
def test_copies_of_one_record_are_told_from_the_rest_even_when_they_are_few(stored):
    problem, model, statistics = trained(Loss.SQUARED)
    rows = np.full(8, 7)
    assert refuses(problem, model, statistics if stored else None, rows)


def test_too_few_samples_for_any_test_are_refused_in_words():
    problem, model, _ = trained(Loss.SQUARED)
    with pytest.raises(GateFailedError, match="7 forget samples are too few") as failure:
        p_value(problem, model, None, np.arange(7))
    assert failure.value.cause is RefusalCause.FORGET_SET_TOO_SMALL
    assert failure.value.result.value is None


def test_the_level_is_shared_by_all_tests_that_could_be_made():
    problem, model, statistics = trained(Loss.SQUARED)
    forget = samples(problem.x[:300], problem.y[:300])
    bare = gate.require_exchangeable(model, forget, None, level=1e-9, seed=0)
    more = gate.require_exchangeable(model, forget, statistics, level=1e-9, seed=0)
    assert "tests of 2 kinds" in bare.detail
    assert "tests of 5 kinds" in more.detail
    assert "class counts" in more.detail


def test_rare_classes_are_counted_by_simulation_and_a_class_of_nobody_is_skew():
    problem, model, statistics = trained(Loss.SQUARED)
    # 8 samples expect fewer than 5 in each class.
    assert not refuses(problem, model, statistics, np.arange(8))
    empty = samples(problem.x.copy(), np.eye(3)[np.zeros(3000, dtype=int)])
    counted = dataclasses.replace(problem, y=empty.targets.numpy())
    forged = samples(problem.x[:100], np.eye(3)[np.ones(100, dtype=int)])
    with pytest.raises(GateFailedError) as failure:
        gate.require_exchangeable(model, forged, counted.statistics, level=0.01, seed=0)
    assert failure.value.result.value == 0.0


def test_an_earlier_estimates_gradient_bound_and_a_secret_noise_lower_the_tests_power():
    problem, model, _ = trained(Loss.SQUARED)
    rows = np.flatnonzero(problem.y[:, 0])[:100]
    assert refuses(problem, model, None, rows)
    away = dataclasses.replace(model, gradient_norm_bound=1e9)
    assert p_value(problem, away, None, rows) == 1.0
    hidden = Privacy(Mechanism.OBJECTIVE, epsilon=1.0, delta=1e-6, sigma=1e9)
    assert p_value(problem, dataclasses.replace(model, privacy=hidden), None, rows) == 1.0


def test_a_perfect_fit_shows_no_skew():
    problem = make(3, 400, 4, 2, 1, ridge=RIDGE)
    problem.x[:], problem.y[:] = 0.0, 0.0
    model = dataclasses.replace(
        problem.model, weights=torch.zeros_like(problem.model.weights), feature_norm_bound=1.0
    )
    assert p_value(problem, model, problem.statistics, np.arange(50)) == 1.0


def test_a_switched_off_test_says_so_in_the_result():
    problem = make(5, 2000, 6, 3, 400, ridge=RIDGE)
    options = UnlearningOptions(method=Method.FORGET_CURVATURE, gate=GatePolicy(skew_level=0.0))
    result = unlearn(problem.model, problem.forget, task=Task.REGRESSION, options=options)
    assert isinstance(result, Unlearned)
    skew = next(each for each in result.gates if each.name == "forget_set_is_exchangeable")
    assert "not tested" in skew.detail
    assert skew.value is skew.threshold is None
    assert "skew" not in result.seeds


@LOSSES
def test_a_skewed_set_is_refused_by_the_pipeline_with_the_seed_on_record(loss):
    problem, model, _ = trained(loss)
    rows = np.flatnonzero(problem.y[:, 1])[:600]
    answer = unlearn(
        model,
        samples(problem.x[rows], problem.y[rows]),
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method=Method.FORGET_CURVATURE, seed=5),
    )
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.FORGET_SET_SKEWED
    assert answer.seeds == {"gate": 5, "skew": 7}


def test_features_that_never_vary_have_no_mean_to_differ_from():
    problem, model, _ = trained(Loss.SQUARED)
    problem.x[:] = 0.5
    assert 0 <= p_value(problem, model, problem.statistics, np.arange(60)) <= 1
