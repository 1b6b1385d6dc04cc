import dataclasses

import numpy as np
import pytest
import torch

from core import bounds, gate
from core.bounds import SurrogateDistance
from core.errors import InvalidOptionError
from core.hessian.surrogate import surrogate_curvature
from core.losses import OF
from core.options import UnlearningOptions
from core.pipeline import ignore_progress, unlearn
from core.problem import LinearModel, Ridge, SampleSet, Surrogate
from core.results import Refused, Unlearned
from core.statistics import LogisticStatistics, collect, collect_logistic
from core.tiers._deletion import Deletion
from core.tiers.surrogate import run
from core.training import fit_logistic
from core.vocabulary import (
    Anchor,
    Loss,
    Method,
    RefusalCause,
    RidgeConvention,
    Standing,
    Task,
    Tier,
)
from tests.reference.problems import Problem, make, samples

LOSSES = pytest.mark.parametrize("loss", list(Loss))


def halves(
    loss: Loss, n_forget: int = 1, convention: RidgeConvention = RidgeConvention.PER_SAMPLE
) -> tuple[Problem, LinearModel, torch.Tensor]:
    strength = 0.05 if convention is RidgeConvention.PER_SAMPLE else 100.0
    whole = make(0, 4000, 5, 3, n_forget, ridge=Ridge(convention, strength), one_hot=True)
    problem = dataclasses.replace(whole, x=whole.x[:2000], y=whole.y[:2000])
    model = problem.model
    if loss is Loss.LOGISTIC:
        weights = fit_logistic(problem.data, problem.ridge).weights
        model = dataclasses.replace(model, weights=weights, loss=loss)
    return problem, model, torch.from_numpy(whole.x[2000:])


def true_distance(problem: Problem, model: LinearModel, features: torch.Tensor) -> float:
    functions = OF[model.loss]
    own = functions.hessian(model.weights, torch.from_numpy(problem.x)) / len(problem.x)
    gap = own - functions.hessian(model.weights, features) / len(features)
    return float(torch.linalg.matrix_norm(gap, ord=2).max()) * (1 + 1e-9)


def delete(model: LinearModel, forget: SampleSet, surrogate: Surrogate, **change):
    options = UnlearningOptions(method=Method.SURROGATE, seed=3)
    inputs = {"task": Task.CLASSIFICATION, "options": options, "surrogate": surrogate} | change
    return unlearn(model, forget, **inputs)


def value(result: Unlearned, name: str) -> float:
    found = next(bound.value for bound in result.bounds if bound.name == name)
    assert found is not None
    return found


def retain_gradient_norm(problem: Problem, model: LinearModel, weights: torch.Tensor) -> float:
    shift = problem.ridge.shift(problem.n_remaining)
    return float(torch.linalg.norm(OF[model.loss].gradient(weights, problem.rest, shift)))


@LOSSES
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_the_estimate_is_the_surrogates_share_less_the_forget_sets(loss, convention):
    problem, model, features = halves(loss, 7, convention)
    found = surrogate_curvature(model, Surrogate(features), problem.forget).matrix
    shift = problem.ridge.shift(problem.n_remaining)
    for output in range(3 if loss is Loss.LOGISTIC else 1):
        weight = np.ones((2, 2000))
        if loss is Loss.LOGISTIC:
            wanted = model.weights.numpy()[:, output]
            probability = [1 / (1 + np.exp(-x @ wanted)) for x in (features.numpy(), problem.x)]
            weight = np.array([p * (1 - p) for p in probability])
        near = (features.numpy().T * weight[0]) @ features.numpy()
        own = (problem.x[:7].T * weight[1, :7]) @ problem.x[:7]
        expected = near - own + shift * np.eye(5)
        matrix = found[output] if loss is Loss.LOGISTIC else found
        assert np.allclose(matrix.numpy(), expected, rtol=1e-11, atol=1e-9)


@LOSSES
@pytest.mark.parametrize("n_forget", [1, 20, 200])
def test_with_a_true_distance_the_bound_holds_and_retraining_comes_nearer(loss, n_forget):
    problem, model, features = halves(loss, n_forget)
    surrogate = Surrogate(features, true_distance(problem, model, features))
    result = delete(model, problem.forget, surrogate)
    assert isinstance(result, Unlearned), result
    assert result.tier is Tier.SURROGATE
    left = retain_gradient_norm(problem, model, result.weights)
    before = retain_gradient_norm(problem, model, model.weights)
    assert left <= value(result, "residual_gradient_norm_conditional") < before
    assert left < 0.2 * before
    assert value(result, "residual_gradient_norm_worst_case") == result.gradient_norm_bound
    assert not any(bound.certifies for bound in result.bounds)
    attested = [a for a in result.assumptions if "as declared" in a.text]
    assert [a.standing for a in attested] == [Standing.ATTESTED]
    assert result.seeds == {}


@LOSSES
def test_the_bound_holds_for_any_step_ridge_and_surrogate(loss):
    rng = np.random.default_rng(2)
    for seed in range(60):
        problem = make(
            seed,
            60,
            4,
            2,
            int(rng.integers(1, 30)),
            ridge=Ridge(RidgeConvention.PER_SAMPLE, 10.0 ** rng.uniform(-4, 0)),
            one_hot=True,
            scale=10.0 ** rng.uniform(-1, 1),
        )
        model = dataclasses.replace(
            problem.model,
            weights=torch.from_numpy(rng.standard_normal((4, 2))),
            loss=loss,
        )
        features = torch.from_numpy(problem.x + 0.1 * rng.standard_normal((60, 4)))
        change = torch.from_numpy(10.0 ** rng.uniform(-3, 1) * rng.standard_normal((4, 2)))
        forget, functions = problem.forget, OF[loss]
        share = problem.ridge.forgotten_shift(len(forget))
        bound = bounds.conditional_residual(
            loss=loss,
            estimate=surrogate_curvature(model, Surrogate(features), forget).matrix,
            estimate_round_off=1e-9,
            change=change,
            forget_gradient=functions.gradient(model.weights, forget, share),
            forget_gradient_round_off=1e-9,
            distance=true_distance(problem, model, features),
            n_samples=60,
            n_remaining=problem.n_remaining,
            ridge=problem.ridge,
            feature_norm_bound=model.feature_norm_bound,
        )
        shift = problem.ridge.shift(60)
        optimum = functions.gradient(model.weights, problem.data, shift)
        shift = problem.ridge.shift(problem.n_remaining)
        left = functions.gradient(model.weights + change, problem.rest, shift) - optimum
        assert float(torch.linalg.norm(left)) <= bound


def test_without_a_distance_it_is_estimated_and_stays_an_assumption():
    problem, model, features = halves(Loss.SQUARED, 400)
    result = delete(model, problem.forget, Surrogate(features))
    assert isinstance(result, Unlearned), result
    stated = next(a for a in result.assumptions if "estimated by halves" in a.text)
    assert stated.standing is Standing.ASSUMED
    assert set(result.seeds) == {"gate", "skew"}
    left = retain_gradient_norm(problem, model, result.weights)
    assert left <= value(result, "residual_gradient_norm_conditional")


def test_one_record_without_a_distance_is_refused_with_what_would_help():
    problem, model, features = halves(Loss.SQUARED)
    answer = delete(model, problem.forget, Surrogate(features))
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.FORGET_SET_TOO_SMALL
    assert "declare the surrogate's distance" in answer.remedy


@LOSSES
@pytest.mark.parametrize("n_forget", [1, 400])
def test_noise_for_a_surrogate_is_refused_with_its_true_distance_and_without_any(loss, n_forget):
    problem, model, features = halves(loss, n_forget)
    noise = 0.05 * torch.randn(
        features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for distance in (true_distance(problem, model, noise), None):
        answer = delete(model, problem.forget, Surrogate(noise, distance))
        assert isinstance(answer, Refused)
        assert answer.cause in {
            RefusalCause.ESTIMATE_UNRELIABLE,
            RefusalCause.FORGET_SET_TOO_SMALL,
            RefusalCause.ILL_CONDITIONED,
        }


def test_a_skewed_forget_set_cannot_estimate_the_distance_but_needs_no_test_where_it_is_declared():
    problem, model, features = halves(Loss.SQUARED)
    rows = np.flatnonzero(problem.y[:, 0])[:300]
    forget = samples(problem.x[rows], problem.y[rows])
    answer = delete(model, forget, Surrogate(features))
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.FORGET_SET_SKEWED
    declared = Surrogate(features, true_distance(problem, model, features))
    assert isinstance(delete(model, forget, declared), Unlearned)


def test_a_surrogate_that_lacks_what_is_forgotten_gives_no_factor_and_is_refused():
    problem, model, features = halves(Loss.SQUARED, 1900)
    answer = delete(model, problem.forget, Surrogate(0.01 * features, 0.0))
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.ILL_CONDITIONED


def test_without_surrogate_features_the_method_is_the_callers_mistake():
    problem, model, _ = halves(Loss.SQUARED)
    with pytest.raises(InvalidOptionError, match="surrogate"):
        delete(model, problem.forget, None)  # type: ignore[arg-type]


@LOSSES
def test_statistics_at_hand_show_the_true_residual(loss):
    problem, model, features = halves(loss, 20)
    statistics = collect([problem.data])
    if loss is Loss.LOGISTIC:
        statistics = collect_logistic([problem.data], model.weights)
    declared = Surrogate(features, true_distance(problem, model, features))
    result = delete(model, problem.forget, declared, statistics=statistics)
    assert isinstance(result, Unlearned)
    left = retain_gradient_norm(problem, model, result.weights)
    assert left <= value(result, "residual_gradient_norm") == result.gradient_norm_bound
    assert result.statistics is not None
    assert result.statistics.n_samples == problem.n_remaining
    assert not any(bound.certifies for bound in result.bounds)


def test_a_step_of_no_length_is_at_no_distance():
    problem, model, features = halves(Loss.SQUARED, 2)
    still = dataclasses.replace(
        problem, y=np.zeros_like(problem.y), x=np.zeros_like(problem.x)
    ).forget
    nothing = dataclasses.replace(model, weights=torch.zeros_like(model.weights))
    eye = torch.eye(5, dtype=torch.float64)
    surrogate = Surrogate(features)
    found = gate.estimated_surrogate_distance(nothing, surrogate, still, eye, splits=1, seed=0)
    assert found == 0.0
    assert SurrogateDistance(0.5, Standing.ASSUMED).assumption().standing is Standing.ASSUMED


def test_a_kept_anchor_stays_where_the_statistics_were_collected():
    problem, model, features = halves(Loss.LOGISTIC, 20)
    statistics = collect_logistic([problem.data], model.weights)
    declared = Surrogate(features, true_distance(problem, model, features))
    anchors = {}
    for anchor in Anchor:
        options = UnlearningOptions(method=Method.SURROGATE, anchor=anchor)
        result = delete(model, problem.forget, declared, statistics=statistics, options=options)
        assert isinstance(result, Unlearned)
        assert isinstance(result.statistics, LogisticStatistics)
        anchors[anchor] = torch.equal(result.statistics.anchor, model.weights)
    assert anchors == {Anchor.KEEP: True, Anchor.MOVE: False}


def test_the_tier_itself_asks_for_surrogate_features():
    problem, model, _ = halves(Loss.SQUARED)
    bare = Deletion(
        model,
        problem.forget,
        statistics=None,
        surrogate=None,
        holdout=None,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method=Method.SURROGATE),
        membership=Standing.ATTESTED,
        progress=ignore_progress,
    )
    with pytest.raises(InvalidOptionError, match="there are none"):
        run(bare)


def test_a_declared_distance_says_that_it_is_of_the_training_set_at_registration():
    # It is not tracked through deletions, so the premise has to say what it takes for granted.
    stated = SurrogateDistance(0.5, Standing.ATTESTED).assumption()
    assert "at registration" in stated.text
    assert "still" in stated.text
    assert "every output" in stated.text
