import dataclasses
import math

import numpy as np
import pytest
import torch

from core import noise
from core.errors import InvalidOptionError
from core.gate import GateFailedError
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy, covered_norm, sigma_for
from core.release import release, require_budget, require_true_bound
from core.results import Bound, Refused, Unlearned
from core.vocabulary import Mechanism, Method, RefusalCause, Standing, Task, Tier
from tests.reference import logistic_problems
from tests.reference.problems import Problem, make

KEY = bytes(range(32))
WEIGHTS = torch.zeros(3, 2, dtype=torch.float64)


def privacy(mechanism: Mechanism = Mechanism.OUTPUT, sigma: float = 1.0) -> Privacy:
    return Privacy(mechanism, epsilon=1.0, delta=1e-5, sigma=sigma)


def bounds(residual: float, distance: float, *, certifies: bool = True) -> tuple[Bound, ...]:
    return (
        Bound("residual_gradient_norm", "METHOD (5)", residual, certifies, ""),
        Bound("distance_to_retraining", "METHOD (6)", distance, certifies, ""),
        Bound("residual_gradient_norm_literature", "METHOD §3", 1e9, certifies=False, note=""),
    )


def run(problem: Problem, declared: Privacy | None, method=Method.STORED, **change):
    model = dataclasses.replace(problem.model, privacy=declared)
    inputs = {"statistics": problem.statistics, "noise_key": KEY} | change
    return unlearn(
        model,
        problem.forget,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=method, seed=7),
        **inputs,
    )


# --- what is held against the budget -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mechanism", "residual", "distance"),
    [(Mechanism.OBJECTIVE, 0.2, 1e6), (Mechanism.OUTPUT, 1e6, 0.2)],
)
def test_each_mechanism_hides_a_measure_of_its_own(mechanism, residual, distance):
    declared = privacy(mechanism)
    (gate,) = require_budget(declared, Tier.CERTIFIED, bounds(residual, distance))
    assert gate.name == "privacy_budget"
    assert (gate.value, gate.threshold) == (0.2, covered_norm(declared))
    with pytest.raises(GateFailedError) as refusal:
        require_budget(declared, Tier.CERTIFIED, bounds(distance, residual))
    assert refusal.value.cause is RefusalCause.BUDGET_SPENT
    assert "retrain" in refusal.value.remedy
    assert not refusal.value.result.passed


def test_the_limit_itself_is_still_covered_and_the_next_number_is_not():
    limit = covered_norm(privacy())
    assert require_budget(privacy(), Tier.EXACT, bounds(0.0, limit))
    with pytest.raises(GateFailedError):
        require_budget(privacy(), Tier.EXACT, bounds(0.0, math.nextafter(limit, 1.0)))


@pytest.mark.parametrize(
    ("tier", "found"),
    [
        (Tier.CERTIFIED, bounds(0.0, 0.0, certifies=False)),
        (Tier.CERTIFIED, ()),
        (Tier.ESTIMATED, bounds(0.0, 0.0)),
        (Tier.CERTIFIED, bounds(math.nan, math.nan)),
    ],
)
def test_nothing_is_hidden_that_no_bound_certifies(tier, found):
    with pytest.raises(GateFailedError):
        require_budget(privacy(), tier, found)


def test_without_declared_noise_nothing_is_held_against_anything():
    assert require_true_bound(None, Tier.ESTIMATED, None) == ()
    assert require_budget(None, Tier.ESTIMATED, ()) == ()
    plain = release(None, WEIGHTS, (), None)
    assert plain.weights is WEIGHTS
    assert plain.privacy is None


@pytest.mark.parametrize("tier", [Tier.SURROGATE, Tier.ESTIMATED])
def test_a_tier_without_a_true_bound_is_refused_before_anything_is_computed(tier):
    with pytest.raises(GateFailedError) as refusal:
        require_true_bound(privacy(), tier, KEY)
    assert refusal.value.result.name == "tier_has_true_bound"
    assert "store statistics" in refusal.value.remedy


def test_an_exact_deletion_would_lose_the_noise_of_a_perturbed_objective():
    with pytest.raises(InvalidOptionError, match=r"privacy\.mechanism.*lose the noise"):
        require_true_bound(privacy(Mechanism.OBJECTIVE), Tier.EXACT, None)
    assert require_true_bound(privacy(Mechanism.OBJECTIVE), Tier.CERTIFIED, None)


# --- what is released ----------------------------------------------------------------------------


def test_output_perturbation_releases_the_weights_with_the_keys_noise():
    found = release(privacy(sigma=0.5), WEIGHTS, bounds(1.0, 0.01), KEY)
    assert (found.weights.numpy() == noise.perturbed(WEIGHTS.numpy(), 0.5, KEY)).all()
    assert not WEIGHTS.any()
    statement = found.privacy
    assert statement is not None
    assert (statement.measure, statement.spent) == ("distance_to_retraining", 0.01)
    assert statement.limit == covered_norm(privacy(sigma=0.5))
    texts = " ".join(each.text for each in statement.assumptions)
    for word in ("secret", "first release", "this release alone", "float64", "was refused"):
        assert word in texts
    standings = {each.standing for each in statement.assumptions}
    assert standings == {Standing.COMPUTED, Standing.ATTESTED, Standing.ASSUMED}


def test_objective_perturbation_releases_the_weights_as_they_are():
    found = release(privacy(Mechanism.OBJECTIVE), WEIGHTS, bounds(0.01, 1.0), None)
    assert found.weights is WEIGHTS
    assert found.privacy is not None
    assert (found.privacy.measure, found.privacy.spent) == ("residual_gradient_norm", 0.01)
    depends = next(each for each in found.privacy.assumptions if "theorem 3" in each.text)
    assert depends.standing is Standing.ASSUMED
    assert "nothing here proves" in depends.text
    adaptive = next(each for each in found.privacy.assumptions if "Gupta et al." in each.text)
    assert adaptive.standing is Standing.ASSUMED


def test_no_statement_is_made_of_a_bound_that_certifies_nothing():
    with pytest.raises(InvalidOptionError, match="distance_to_retraining"):
        release(privacy(), WEIGHTS, bounds(0.0, 0.0, certifies=False), KEY)


@pytest.mark.parametrize("key", [None, b"short"])
def test_output_perturbation_without_a_whole_key_is_the_callers_mistake(key):
    with pytest.raises(InvalidOptionError, match="noise_key"):
        release(privacy(), WEIGHTS, bounds(0.0, 0.0), key)


def test_why_a_residual_that_depends_on_b_is_not_covered_by_guo_et_al():
    # L(w) = ½w² with bᵀw: training gives −b. A "removal" that rounds b to a grid leaves a residual
    # of at most half a cell, far below what σ covers; yet its outputs lie on the grid, where
    # retraining comes with probability 0. So a small residual alone proves nothing: ADR 0009.
    declared = privacy(Mechanism.OBJECTIVE)
    cell = 2.0**-10
    retrained = -noise.objective_noise(KEY, (10_000,), declared.sigma)
    b = noise.objective_noise(KEY[::-1], (10_000,), declared.sigma)
    removed = -np.round(b / cell) * cell
    residual = np.abs(removed + b)
    assert residual.max() <= cell / 2 < covered_norm(declared) / 100

    def on_grid(weights: np.ndarray) -> np.ndarray:
        return np.round(weights / cell) * cell == weights

    assert on_grid(removed).all()
    assert not on_grid(retrained).any()


# --- through the pipeline ------------------------------------------------------------------------


def test_an_exact_deletion_is_released_with_noise_and_keeps_its_own_weights():
    problem = make(1, 60, 4, 2, 5)
    plain, private = run(problem, None), run(problem, privacy(sigma=0.1))
    assert isinstance(plain, Unlearned)
    assert isinstance(private, Unlearned)
    assert plain.release is plain.weights
    assert plain.privacy is None
    assert torch.equal(private.weights, plain.weights)
    assert not torch.isclose(private.release, private.weights).any()
    assert private.privacy is not None
    assert private.privacy.spent < 1e-9
    assert private.gates[0].name == "tier_has_true_bound"
    assert private.gates[-1].name == "privacy_budget"


def test_noise_weaker_than_the_bound_is_refused_with_the_budget_as_cause():
    problem = make(1, 60, 4, 2, 5)
    answer = run(problem, privacy(sigma=sigma_for(1.0, 1e-5, 1e-18)))
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.BUDGET_SPENT


def test_an_estimate_of_a_private_model_is_refused():
    answer = run(make(2, 2000, 4, 2, 400), privacy(), Method.FORGET_CURVATURE)
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.ESTIMATE_UNRELIABLE
    assert answer.gates[-1].name == "tier_has_true_bound"


def test_a_missing_key_is_found_before_anything_is_computed():
    with pytest.raises(InvalidOptionError, match="noise_key"):
        run(make(1, 60, 4, 2, 5), privacy(), noise_key=None)


# --- logistic loss -------------------------------------------------------------------------------


def certified(mechanism: Mechanism, sigma: float, *, n_forget: int = 2) -> Unlearned | Refused:
    problem = logistic_problems.make(3, 200, 4, 1, noise=1.0)
    declared = Privacy(mechanism, epsilon=1.0, delta=1e-4, sigma=sigma)
    return unlearn(
        dataclasses.replace(problem.model, privacy=declared),
        problem.rows(slice(0, n_forget)),
        statistics=problem.statistics,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.STORED),
        noise_key=KEY,
    )


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_a_certified_deletion_spends_what_its_bound_says_and_no_more_than_the_noise_hides(
    mechanism,
):
    result = certified(mechanism, 100.0)
    assert isinstance(result, Unlearned)
    assert result.tier is Tier.CERTIFIED
    statement = result.privacy
    assert statement is not None
    bound = next(each for each in result.bounds if each.name == statement.measure)
    assert bound.certifies
    assert 0 < statement.spent == bound.value <= statement.limit
    assert torch.equal(result.release, result.weights) == (mechanism is Mechanism.OBJECTIVE)


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_a_certified_deletion_beyond_the_budget_is_refused(mechanism):
    answer = certified(mechanism, 1e-6, n_forget=60)
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.BUDGET_SPENT
    value, threshold = answer.gates[-1].value, answer.gates[-1].threshold
    assert value is not None
    assert threshold is not None
    assert value > threshold
