import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as ScikitRidge
from torch.testing import assert_close

from core.errors import InvalidOptionError, InvalidTensorError
from core.options import GatePolicy, PerturbationOptions, PriorOptions, UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge
from core.results import Refused, Unlearned
from core.statistics import StoredStatistics
from core.vocabulary import (
    Floor,
    Method,
    PerturbationLaw,
    Prior,
    RefusalCause,
    RidgeConvention,
    Standing,
    Task,
    Tier,
)
from tests.reference import ridge as reference
from tests.reference.problems import Problem, make, problems, samples

# What needs nothing but the model, the samples and statistics.
METHODS = [Method.STORED, Method.FORGET_CURVATURE, Method.PAPER_SDP]
CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))
ESTIMATES = pytest.mark.parametrize("method", [Method.FORGET_CURVATURE, Method.PAPER_SDP])
TOTAL = Ridge(RidgeConvention.TOTAL, 5.0)


def run(problem: Problem, method: Method, **change) -> Unlearned | Refused:
    inputs = {
        "statistics": problem.statistics if method is Method.STORED else None,
        "task": Task.REGRESSION,
        "options": UnlearningOptions(method=method, seed=7),
    } | change
    model, forget = inputs.pop("model", problem.model), inputs.pop("forget", problem.forget)
    return unlearn(model, forget, **inputs)


def completed(result: Unlearned | Refused) -> Unlearned:
    assert isinstance(result, Unlearned), result
    return result


def refused(result: Unlearned | Refused) -> Refused:
    assert isinstance(result, Refused), result
    return result


def bound(result: Unlearned, name: str) -> float:
    value = next(each.value for each in result.bounds if each.name == name)
    assert value is not None
    return value


def follow(model: LinearModel, result: Unlearned) -> LinearModel:
    # As the service does between two deletions.
    return dataclasses.replace(
        model,
        weights=result.weights,
        n_samples=result.n_samples,
        gradient_norm_bound=result.gradient_norm_bound,
    )


# --- exact ---------------------------------------------------------------------------------------


@CONVENTIONS
@pytest.mark.parametrize("n_forget", [1, 30, 199])
def test_an_exact_deletion_is_scikit_learns_retraining(convention, n_forget):
    ridge = Ridge(convention, 0.05)
    problem = make(0, 200, 8, 4, n_forget, ridge=ridge, one_hot=True)
    result = completed(run(problem, Method.STORED, task=Task.CLASSIFICATION))
    alpha = 0.05 * (200 - n_forget) if convention is RidgeConvention.PER_SAMPLE else 0.05
    scikit = ScikitRidge(alpha=alpha, fit_intercept=False, solver="svd")
    scikit.fit(problem.x[n_forget:], problem.y[n_forget:])
    assert_close(result.weights.numpy(), scikit.coef_.T, rtol=1e-9, atol=1e-11)
    assert result.tier is Tier.EXACT
    assert result.n_samples == 200 - n_forget


@given(problems(weakest=1e-3))
def test_an_exact_deletions_bounds_hold_for_the_data_in_exact_arithmetic(problem: Problem):
    result = completed(run(problem, Method.STORED))
    assert problem.retain_gradient_norm(result.weights) <= bound(result, "residual_gradient_norm")
    ridge = problem.ridge
    added = reference.exact_shift(ridge.convention, ridge.strength, problem.n_remaining)
    optimum = reference.exact_retrain(
        problem.x[problem.n_forget :], problem.y[problem.n_forget :], added
    )
    distance = reference.exact_distance(result.weights.numpy(), optimum)
    assert distance <= bound(result, "distance_to_retraining")


@settings(max_examples=40)
@given(problems(weakest=1e-3), st.integers(1, 4))
def test_a_sequence_of_exact_deletions_has_bounds_that_hold_and_the_result_of_one(
    problem: Problem, pieces: int
):
    model, statistics = problem.model, problem.statistics
    result = None
    for rows in np.array_split(np.arange(problem.n_forget), pieces):
        if len(rows) == 0:
            continue
        forget = samples(problem.x[rows], problem.y[rows])
        step = run(problem, Method.STORED, model=model, forget=forget, statistics=statistics)
        result = completed(step)
        model = follow(model, result)
        assert result.statistics is not None
        statistics = result.statistics
    assert result is not None
    assert problem.retain_gradient_norm(result.weights) <= bound(result, "residual_gradient_norm")
    at_once = completed(run(problem, Method.STORED))
    distance = float(torch.linalg.norm(result.weights - at_once.weights))
    limit = bound(result, "distance_to_retraining") + bound(at_once, "distance_to_retraining")
    assert distance <= limit


@CONVENTIONS
def test_exact_deletions_in_any_order_and_batching_agree_to_1e_8(convention):
    problem = make(1, 300, 10, 3, 60, ridge=Ridge(convention, 1e-3))
    wanted = problem.retrained()
    rng = np.random.default_rng(0)
    for pieces in (1, 4, 60):
        model, statistics = problem.model, problem.statistics
        for rows in np.array_split(rng.permutation(60), pieces):
            forget = samples(problem.x[rows], problem.y[rows])
            result = completed(
                run(problem, Method.STORED, model=model, forget=forget, statistics=statistics)
            )
            model = follow(model, result)
            assert result.statistics is not None
            statistics = result.statistics
        error = np.linalg.norm(model.weights.numpy() - wanted)
        assert error <= 1e-8 * np.linalg.norm(problem.model.weights.numpy() - wanted)


def test_an_exact_deletion_needs_no_optimum_to_start_from():
    problem = make(2, 80, 5, 2, 10)
    away = dataclasses.replace(problem.model, weights=torch.ones_like(problem.model.weights))
    result = completed(run(problem, Method.STORED, model=away))
    assert_close(result.weights.numpy(), problem.retrained(), rtol=1e-9, atol=1e-11)


def test_an_exact_result_states_its_assumptions_and_its_solve():
    result = completed(run(make(3, 80, 5, 2, 10), Method.STORED))
    standings = {assumption.standing for assumption in result.assumptions}
    assert {Standing.ATTESTED, Standing.COMPUTED} <= standings
    assert [report.name for report in result.solvers] == ["stored-statistics", "cholesky"]
    assert result.solvers[1].figures["condition_estimate"] >= 1
    assert result.seeds == {}
    assert all(gate.passed for gate in result.gates)
    assert bound(result, "residual_gradient_norm") > 0  # round-off is never printed as 0
    assert result.gradient_norm_bound == bound(result, "residual_gradient_norm")


@CONVENTIONS
def test_weak_ridges_and_repeated_features_are_exact_or_refused_but_never_jittered(convention):
    for strength in (1e-2, 1e-8, 1e-14, 1e-18):
        problem = make(4, 60, 4, 2, 10, ridge=Ridge(convention, strength))
        problem.x[:, 3] = problem.x[:, 0]
        result = run(problem, Method.STORED)
        if isinstance(result, Refused):
            assert result.cause is RefusalCause.ILL_CONDITIONED
            assert strength <= 1e-14
        else:
            residual = problem.retain_gradient_norm(result.weights)
            assert residual <= bound(result, "residual_gradient_norm") < 1e-6
    assert isinstance(result, Refused)
    assert "leading minor" in result.detail
    assert result.gates[-1].name == "solution_exists"


# --- estimated -----------------------------------------------------------------------------------


@ESTIMATES
@CONVENTIONS
def test_an_estimate_of_a_large_random_forget_set_comes_nearer_to_retraining(method, convention):
    strength = 1e-2 if convention is RidgeConvention.PER_SAMPLE else 20.0
    problem = make(5, 2000, 6, 3, 400, ridge=Ridge(convention, strength))
    result = completed(run(problem, method))
    before = np.linalg.norm(problem.model.weights.numpy() - problem.retrained())
    after = np.linalg.norm(result.weights.numpy() - problem.retrained())
    assert after < 0.5 * before
    assert result.tier is Tier.ESTIMATED
    assert result.statistics is None
    assert not any(each.certifies for each in result.bounds)


@ESTIMATES
def test_an_estimates_worst_case_holds_and_is_carried_to_the_next_deletion(method):
    problem = make(6, 2000, 4, 2, 400)
    model, forgotten = problem.model, 0
    for size in (200, 200):
        rows = slice(forgotten, forgotten + size)
        forget = samples(problem.x[rows], problem.y[rows])
        result = completed(run(problem, method, model=model, forget=forget))
        forgotten += size
        so_far = dataclasses.replace(problem, n_forget=forgotten)
        residual = so_far.retain_gradient_norm(result.weights)
        worst = bound(result, "residual_gradient_norm_worst_case")
        assert residual <= worst == result.gradient_norm_bound
        assert worst > model.gradient_norm_bound
        model = follow(model, result)
    added = reference.exact_shift(problem.ridge.convention, problem.ridge.strength, 1600)
    optimum = reference.exact_retrain(problem.x[400:], problem.y[400:], added)
    distance = reference.exact_distance(model.weights.numpy(), optimum)
    assert distance <= bound(result, "distance_to_retraining_worst_case")


def test_an_estimates_worst_case_holds_for_retain_samples_as_long_as_forget_samples_may_be():
    # Samples that exceed R_x by a rounding are let in, so the rest may consist of them.
    longest = 1.0 + 9e-7
    x = np.array([[0.5]] * 100 + [[longest]] * 300)
    y = np.array([[2.0]] * 100 + [[1.0]] * 300)
    problem = Problem(x, y, 100, Ridge(RidgeConvention.TOTAL, 1e-9))
    model = dataclasses.replace(problem.model, feature_norm_bound=1.0)
    # A forget set as unlike the rest as can be: only without the skew tests does it get that far.
    untested = UnlearningOptions(method=Method.FORGET_CURVATURE, gate=GatePolicy(skew_level=0.0))
    result = completed(run(problem, Method.FORGET_CURVATURE, model=model, options=untested))
    # The retain set has the largest curvature possible, which is the worst case of this step.
    residual = problem.retain_gradient_norm(result.weights)
    worst = bound(result, "residual_gradient_norm_worst_case")
    assert residual <= worst <= 1.0001 * residual


@ESTIMATES
def test_an_estimate_reports_the_published_bounds_without_believing_them(method):
    result = completed(run(make(7, 2000, 4, 2, 400), method))
    published = [each for each in result.bounds if each.name.startswith("published")]
    assert len(published) == 2
    assert all("not a certificate" in each.note for each in published)
    assert any(each.standing is Standing.ASSUMED for each in result.assumptions)


@ESTIMATES
def test_an_estimate_with_statistics_at_hand_downdates_them_and_shows_the_true_residual(method):
    problem = make(8, 2000, 4, 2, 400)
    result = completed(run(problem, method, statistics=problem.statistics))
    assert result.statistics is not None
    assert result.statistics.n_samples == 1600
    seen = bound(result, "residual_gradient_norm")
    true = problem.retain_gradient_norm(result.weights)
    assert true <= seen <= true * (1 + 1e-5) + 1e-9
    assert result.gradient_norm_bound == seen
    assert result.tier is Tier.ESTIMATED
    assert not any(each.certifies for each in result.bounds)


def test_an_exact_deletion_repairs_an_estimate():
    problem = make(9, 2000, 4, 2, 400)
    first = completed(
        run(
            problem,
            Method.FORGET_CURVATURE,
            forget=samples(problem.x[:200], problem.y[:200]),
            statistics=problem.statistics,
        )
    )
    result = completed(
        run(
            problem,
            Method.STORED,
            model=follow(problem.model, first),
            forget=samples(problem.x[200:400], problem.y[200:400]),
            statistics=first.statistics,
        )
    )
    assert_close(result.weights.numpy(), problem.retrained(), rtol=1e-9, atol=1e-11)


@ESTIMATES
def test_the_same_seed_gives_the_same_result_to_the_last_bit(method):
    problem = make(10, 1000, 4, 2, 300)
    law = PerturbationOptions(law=PerturbationLaw.GAUSSIAN, count=200)
    first, again, other = (
        completed(
            run(problem, method, options=UnlearningOptions(method=method, seed=s, perturbation=law))
        )
        for s in (3, 3, 4)
    )
    assert torch.equal(first.weights, again.weights)
    assert first.bounds == again.bounds
    assert first.seeds == again.seeds
    assert first.seeds["gate"] == 3
    assert bound(first, "cross_fitted_residual") != bound(other, "cross_fitted_residual")


def test_the_papers_solver_and_its_status_reach_the_result():
    problem = make(11, 1000, 4, 2, 300)
    options = UnlearningOptions(method=Method.PAPER_SDP, solver="SCS", floor=Floor.ZERO)
    result = completed(run(problem, Method.PAPER_SDP, options=options))
    assert result.solvers[0].name == "cvxpy/SCS"
    assert result.solvers[0].status in {"optimal", "optimal_inaccurate"}
    assert set(result.seeds) == {"gate", "skew", "perturbation"}


def test_the_papers_estimate_is_gated_with_its_deviation_on_top():
    problem = make(12, 1000, 4, 2, 300)
    curvature = completed(run(problem, Method.FORGET_CURVATURE))
    noisy = UnlearningOptions(
        method=Method.PAPER_SDP,
        seed=7,
        perturbation=PerturbationOptions(law=PerturbationLaw.GAUSSIAN, count=40),
    )
    result = completed(run(problem, Method.PAPER_SDP, options=noisy))
    assert bound(result, "cross_fitted_residual") > bound(curvature, "cross_fitted_residual")
    names = [gate.name for gate in result.gates]
    assert names[-3:] == [
        "cross_fitted_residual",
        "forget_set_is_exchangeable",
        "cross_fitted_residual_of_estimate",
    ]


# --- refusals ------------------------------------------------------------------------------------


@ESTIMATES
def test_one_record_without_statistics_is_refused(method):
    answer = refused(run(make(13, 500, 4, 2, 1), method))
    assert answer.cause is RefusalCause.FORGET_SET_TOO_SMALL
    assert "statistics" in answer.remedy
    assert answer.tier is Tier.ESTIMATED
    assert not answer.gates[-1].passed
    assert all(gate.passed for gate in answer.gates[:-1])


@ESTIMATES
def test_a_forget_set_too_small_for_an_estimate_is_refused_with_the_figure(method):
    problem = make(14, 2000, 20, 3, 4, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3))
    answer = refused(run(problem, method))
    assert answer.cause is RefusalCause.ESTIMATE_UNRELIABLE
    value, threshold = answer.gates[-1].value, answer.gates[-1].threshold
    assert value is not None
    assert value >= threshold == 1.0
    assert answer.seeds == {"gate": 7}


def test_the_policy_sets_the_threshold():
    problem = make(15, 2000, 4, 2, 400)
    strict = UnlearningOptions(
        method=Method.FORGET_CURVATURE, gate=GatePolicy(threshold=1e-6, splits=2)
    )
    assert isinstance(run(problem, Method.FORGET_CURVATURE), Unlearned)
    answer = refused(run(problem, Method.FORGET_CURVATURE, options=strict))
    assert answer.cause is RefusalCause.ESTIMATE_UNRELIABLE


def test_too_few_perturbations_are_refused_unless_the_policy_wants_to_see_it():
    problem = make(16, 2000, 6, 2, 400)
    few = PerturbationOptions(count=20)
    options = UnlearningOptions(method=Method.PAPER_SDP, perturbation=few)
    answer = refused(run(problem, Method.PAPER_SDP, options=options))
    assert answer.cause is RefusalCause.ESTIMATE_NOT_IDENTIFIED
    assert "21" in answer.remedy
    lenient = dataclasses.replace(options, gate=GatePolicy(require_identified=False))
    shown = run(problem, Method.PAPER_SDP, options=lenient)
    assert "perturbations_identify" not in [gate.name for gate in shown.gates]
    if isinstance(shown, Refused):
        assert shown.gates[-1].name == "cross_fitted_residual_of_estimate"
    else:
        assert shown.solvers[0].figures["identified"] == 0.0


def test_a_prior_decides_what_too_few_perturbations_leave_open():
    problem = make(16, 2000, 6, 2, 400)
    options = UnlearningOptions(
        method=Method.PAPER_SDP,
        perturbation=PerturbationOptions(count=20),
        prior=PriorOptions(Prior.FORGET),
    )
    result = completed(run(problem, Method.PAPER_SDP, options=options))
    assert "perturbations_identify" not in [gate.name for gate in result.gates]
    assert result.solvers[0].figures["identified"] == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_samples_that_were_never_trained_on_are_refused_by_any_method(method):
    problem = make(17, 100, 4, 2, 40)
    wide = dataclasses.replace(problem.model, feature_norm_bound=1e6)
    forged = samples(problem.x[:40] * 100.0, problem.y[:40])
    answer = refused(run(problem, method, model=wide, forget=forged, statistics=problem.statistics))
    assert answer.cause is RefusalCause.NOT_IN_TRAINING_SET
    assert answer.gates[-1].name == "downdate_is_possible"


@pytest.mark.parametrize("declared", [1e-3, 1e300])
def test_statistics_too_imprecise_to_refuse_or_show_anything_certify_nothing(declared):
    # A declared round-off of any size would let any samples pass, and a bound of its size certify.
    problem = make(17, 100, 4, 2, 40)
    vague = dataclasses.replace(problem.statistics, round_off=declared)
    answer = refused(run(problem, Method.STORED, statistics=vague))
    assert answer.cause is RefusalCause.ILL_CONDITIONED
    assert answer.gates[-1].name == "statistics_are_precise"
    assert "float64" in answer.remedy


@pytest.mark.parametrize("method", METHODS)
def test_forgetting_everything_is_refused(method):
    problem = make(18, 30, 4, 2, 29)
    answer = refused(run(problem, method, forget=problem.data))
    assert answer.cause is RefusalCause.NOTHING_WOULD_REMAIN


def test_a_singular_estimate_is_refused_as_ill_conditioned():
    # Floor 0 and equations that ask for less curvature than none: the solution is singular.
    problem = make(19, 2000, 3, 2, 400, ridge=Ridge(RidgeConvention.TOTAL, 1e-18))
    problem.x[:, 2] = problem.x[:, 0]
    answer = refused(run(problem, Method.FORGET_CURVATURE))
    assert answer.cause is RefusalCause.ILL_CONDITIONED
    assert "ridge" in answer.remedy


# --- callers' mistakes, progress, purity ---------------------------------------------------------


def test_stored_without_statistics_is_the_callers_mistake():
    with pytest.raises(InvalidOptionError, match="needs statistics"):
        run(make(20, 30, 4, 2, 3), Method.STORED, statistics=None)


def test_statistics_of_another_number_of_samples_are_the_callers_mistake():
    problem = make(21, 30, 4, 2, 3)
    other = problem.statistics.downdate(problem.forget)
    with pytest.raises(InvalidOptionError, match=r"statistics.n_samples.*30, got 27"):
        run(problem, Method.STORED, statistics=other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forget": make(0, 9, 5, 2, 3).forget}, r"forget.features: expected shape \(any, 4\)"),
        ({"forget": make(0, 9, 4, 3, 3).forget}, r"forget.targets: expected shape \(any, 2\)"),
        ({"holdout": make(0, 9, 5, 2, 3).forget}, "holdout.features"),
        ({"statistics": make(0, 30, 5, 2, 3).statistics}, r"statistics: expected \(d, C\)"),
        ({"forget": samples(np.full((1, 4), 1e3), np.ones((1, 2)))}, "norm 2000, more than"),
    ],
)
def test_inputs_that_do_not_belong_together_are_named(change, message):
    with pytest.raises(InvalidTensorError, match=message):
        run(make(22, 30, 4, 2, 3), Method.STORED, **change)


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        (Method.STORED, ["estimate", "step", "bound", "evaluate"]),
        (Method.FORGET_CURVATURE, ["estimate", "step", "bound", "evaluate"]),
        (Method.PAPER_SDP, ["perturb", "estimate", "step", "bound", "evaluate"]),
    ],
)
def test_progress_names_every_stage_in_order_and_ends_at_one(method, stages):
    told: list[tuple[str, float]] = []
    completed(
        run(
            make(23, 1000, 4, 2, 300),
            method,
            progress=lambda stage, fraction: told.append((stage, fraction)),
        )
    )
    assert list(dict.fromkeys(stage for stage, _ in told)) == stages
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert told[-1] == ("evaluate", 1.0)


def test_a_caller_can_cancel_from_progress():
    def cancel(stage: str, _fraction: float) -> None:
        if stage == "step":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(make(24, 30, 4, 2, 3), Method.STORED, progress=cancel)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_never_change(method):
    problem = make(25, 1000, 4, 2, 300)
    model, forget, statistics = problem.model, problem.forget, problem.statistics
    tensors = [
        model.weights,
        forget.features,
        forget.targets,
        statistics.gram,
        statistics.cross,
        statistics.target_gram,
    ]
    copies = [tensor.clone() for tensor in tensors]
    completed(
        run(problem, method, model=model, forget=forget, statistics=statistics, holdout=forget)
    )
    assert all(torch.equal(now, then) for now, then in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_of_a_result_is_a_finite_number(method):
    # Records are signed as JSON, which has neither NaN nor infinity.
    result = completed(run(make(26, 1000, 4, 2, 300), method))
    figures = [each.value for each in result.bounds] + [gate.value for gate in result.gates]
    figures += [value for report in result.solvers for value in report.figures.values()]
    assert all(math.isfinite(figure) for figure in figures if figure is not None)


def test_statistics_collected_elsewhere_give_a_wider_bound_that_holds():
    problem = make(27, 400, 4, 2, 30, ridge=TOTAL)
    elsewhere = StoredStatistics.from_arrays(
        torch.from_numpy(problem.x.T @ problem.x),
        torch.from_numpy(problem.x.T @ problem.y),
        torch.from_numpy(problem.y.T @ problem.y),
        400,
    )
    result = completed(run(problem, Method.STORED, statistics=elsewhere))
    ours = completed(run(problem, Method.STORED))
    wide = bound(result, "residual_gradient_norm")
    assert problem.retain_gradient_norm(result.weights) <= wide
    assert wide >= bound(ours, "residual_gradient_norm")
