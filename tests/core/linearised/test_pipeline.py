import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from core.device import to_device
from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised import exact
from core.linearised.deletion import NetworkDeletion
from core.linearised.linearisation import Linearisation
from core.linearised.options import HeadSolver
from core.linearised.pipeline import unlearn
from core.linearised.problem import FeatureSamples
from core.options import GatePolicy, UnlearningOptions
from core.pipeline import ignore_progress
from core.privacy import Privacy, sigma_for
from core.problem import Ridge
from core.results import Refused, Unlearned
from core.statistics import LogisticStatistics
from core.vocabulary import (
    Anchor,
    Mechanism,
    Method,
    RefusalCause,
    RidgeConvention,
    Standing,
    Task,
    Tier,
)
from tests.reference.devices import tensors_of
from tests.reference.far_device import FAR, FarTensor, far_device
from tests.reference.logistic_problems import make as make_logistic
from tests.reference.networks import SPECS, TinyProblem, follow

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))
TINY = ("linear", "mlp-2", "mlp-3", "cnn-2", "cnn-3", "cnn-4")
N = 40
MLP = TinyProblem.draw(SPECS["mlp-2"], N)
# So large and so much alike that an estimate from a part of it is worth something.
LARGE = TinyProblem.draw(SPECS["mlp-2"], 1500, ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))


def run(problem: TinyProblem, rows: object, **changes: object) -> Unlearned | Refused:
    given = {"model": problem.model, "method": Method.STORED, "policy": GatePolicy()} | changes
    method, model = given.pop("method"), given.pop("model")
    if "statistics" not in given:
        given["statistics"] = problem.gram() if method is Method.STORED else None
    anchor = given.pop("anchor", Anchor.MOVE)
    options = UnlearningOptions(method, seed=7, gate=given.pop("policy"), anchor=anchor)
    given = {"task": Task.CLASSIFICATION} | given
    return unlearn(model, problem.take(rows), options=options, **given)


@cache
def drawn(name: str) -> TinyProblem:
    return TinyProblem.draw(SPECS[name], N)


def completed(result: Unlearned | Refused) -> Unlearned:
    assert isinstance(result, Unlearned), result
    return result


def refused(result: Unlearned | Refused) -> Refused:
    assert isinstance(result, Refused), result
    assert not result.gates[-1].passed
    return result


def bound(result: Unlearned, name: str = "residual_gradient_norm") -> float:
    (value,) = (each.value for each in result.bounds if each.name == name)
    assert value is not None
    return value


# --- Tier `exact` ---------------------------------------------------------------------------------


@CONVENTIONS
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *itertools.product(TINY, ([3], [0, 5, 6, 20, 21], list(range(N - 1)))),
        ("resnet-1", [3, 4]),
    ],
    ids=lambda value: value if isinstance(value, str) else len(value),
)
def test_an_exact_deletion_is_retraining_on_explicit_rows(name, convention, rows):
    problem = drawn(name)
    largest = float(np.linalg.norm(problem.gauss_newton(slice(None)), 2))
    strength = 1e-3 * largest / (N if convention is RidgeConvention.PER_SAMPLE else 1)
    problem = problem.but(ridge=Ridge(convention, strength))
    result = completed(run(problem, rows))
    rest = problem.rest(rows)
    retrained = problem.trained(rest)
    moved = float((retrained - problem.weights).norm())
    assert float((result.weights - retrained).norm()) <= 1e-8 * moved
    assert problem.gradient_norm(result.weights, rest) <= bound(result)
    assert bound(result) < 1e-6 * problem.gradient_norm(problem.weights, rest)
    assert (result.tier, result.n_samples) == (Tier.EXACT, len(rest))
    assert result.statistics.n_samples == len(rest) * problem.linearisation.num_outputs


@settings(max_examples=25)
@given(st.permutations(range(12)), st.integers(1, 5), st.sampled_from(list(RidgeConvention)))
def test_exact_deletions_in_any_order_and_batching_are_retraining(order, largest, convention):
    problem = MLP.but(ridge=Ridge(convention, 0.05))
    model, statistics = problem.model, problem.gram()
    for at in range(0, 12, largest):
        part = order[at : at + largest]
        result = completed(run(problem, part, model=model, statistics=statistics))
        model, statistics = follow(model, result), result.statistics
    rest = problem.rest(order)
    retrained = problem.trained(rest)
    moved = float((retrained - problem.weights).norm())
    assert float((model.weights - retrained).norm()) <= 1e-8 * moved
    assert model.n_samples == N - 12
    assert problem.gradient_norm(model.weights, rest) <= bound(result)
    distance = float((model.weights - retrained).norm())
    assert distance <= bound(result, "distance_to_retraining") + 1e-12 * moved


def test_an_exact_deletion_with_a_stored_factor_is_the_same_deletion():
    problem = MLP.but(ridge=Ridge(RidgeConvention.TOTAL, 2.0))
    plain = completed(run(problem, [4]))
    from_factor = problem.gram().prepare(Ridge(RidgeConvention.TOTAL, 2.0))
    helped = completed(run(problem, [4], statistics=from_factor))
    assert_close(helped.weights, plain.weights, rtol=1e-10, atol=1e-12)
    assert helped.statistics.factor is not None


def test_a_certificate_names_what_a_network_rests_on():
    result = completed(run(MLP, [1]))
    texts = " ".join(each.text for each in result.assumptions)
    assert "the network's own weights" in texts
    assert "float64 differentiation" in texts
    checked = completed(run(MLP, [1], membership=Standing.COMPUTED))
    assert checked.assumptions != result.assumptions


def test_the_tier_itself_takes_no_other_statistics():
    deletion = NetworkDeletion(
        MLP.model,
        MLP.take([1]),
        None,
        None,
        Task.CLASSIFICATION,
        UnlearningOptions(Method.STORED),
        HeadSolver.AUTO,
        Standing.ATTESTED,
        ignore_progress,
    )
    with pytest.raises(InvalidOptionError, match="`stored` needs a Gram matrix, and none"):
        exact.run(deletion)


@CONVENTIONS
def test_output_perturbation_hides_what_an_exact_deletion_leaves(convention):
    problem = MLP.but(ridge=Ridge(convention, 0.5))
    hidden = Privacy(Mechanism.OUTPUT, 1.0, 1e-4, sigma_for(1.0, 1e-4, 1e-3))
    model = dataclasses.replace(problem.model, privacy=hidden)
    result = completed(run(problem, [1, 2], model=model, noise_key=bytes(32)))
    assert result.privacy.spent == bound(result, "distance_to_retraining")
    assert result.privacy.measure == "distance_to_retraining"
    noise = (result.release - result.weights) / hidden.sigma
    # Of 57 normal numbers the mean square is 1 ± 0.19.
    assert 0.4 < float(noise.square().mean()) < 1.8
    with pytest.raises(InvalidOptionError, match="noise_key"):
        run(problem, [1, 2], model=model)
    small = dataclasses.replace(hidden, sigma=1e-18)
    tight = dataclasses.replace(problem.model, privacy=small)
    assert refused(run(problem, [1], model=tight, noise_key=bytes(32))).cause is (
        RefusalCause.BUDGET_SPENT
    )


# --- Tier `estimated` -----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [HeadSolver.AUTO, HeadSolver.CONJUGATE_GRADIENTS])
def test_an_estimate_of_a_large_random_forget_set_comes_nearer_to_retraining(solver):
    rows = np.random.default_rng(0).permutation(1500)[:300]
    result = completed(run(LARGE, rows, method=Method.FORGET_CURVATURE, solver=solver))
    rest = LARGE.rest(rows)
    retrained = LARGE.trained(rest)
    before = float((LARGE.weights - retrained).norm())
    assert float((result.weights - retrained).norm()) < 0.5 * before
    assert (result.tier, result.statistics) == (Tier.ESTIMATED, None)
    assert not any(each.certifies for each in result.bounds)
    true = LARGE.gradient_norm(result.weights, rest)
    worst = bound(result, "residual_gradient_norm_worst_case")
    assert true <= worst == result.gradient_norm_bound
    # METHOD (7) was above the true figure.
    size = float(LARGE.model.data_gradient(LARGE.take(rows)).add(
        LARGE.weights, alpha=LARGE.ridge.forgotten_shift(300)
    ).norm())  # fmt: skip
    assert true / size < bound(result, "cross_fitted_residual") < 1.0
    assert [report.name for report in result.solvers] == [
        "forget-curvature",
        "dual-cholesky" if solver is HeadSolver.AUTO else "conjugate-gradients",
    ]
    assert result.solvers[0].figures == {"rank_at_most": 57.0, "scale": 4.0}
    assert result.seeds.keys() == {"gate", "skew"}


def test_an_estimates_step_is_that_of_the_explicit_mean_matched_matrix():
    rows = np.arange(300)
    result = completed(run(LARGE, rows, method=Method.FORGET_CURVATURE))
    matrix = 4.0 * LARGE.gauss_newton(rows) + LARGE.ridge.shift(1200) * np.eye(57)
    gradient = LARGE.gradient(LARGE.weights, rows).astype(float)
    step = np.linalg.solve(matrix, gradient)
    change = (result.weights - LARGE.weights).numpy()
    # To the tolerance of its solver.
    assert np.linalg.norm(change - step) < 1e-4 * np.linalg.norm(step)
    # Of the retain set nothing is known but a ≤ H_r ≤ a + n_r·R_J².
    lowest = LARGE.ridge.shift(1200)
    spread = 1200 * (LARGE.model.jacobian_norm_bound * (1 + 1e-6)) ** 2
    worst = np.linalg.norm((lowest + spread / 2) * change - gradient)
    worst += spread / 2 * np.linalg.norm(change)
    assert bound(result, "residual_gradient_norm_worst_case") == pytest.approx(worst, rel=1e-5)


def test_the_diagonal_of_published_code_is_computed_on_request_and_judged():
    rows = np.arange(300)
    strong = LARGE.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 30.0))
    result = run(strong, rows, method=Method.FORGET_CURVATURE, solver=HeadSolver.DIAGONAL)
    result = completed(result)
    assert result.solvers[1].name == "hutchinson-diagonal"
    assert "perturbation" in result.seeds
    dual = completed(run(strong, rows, method=Method.FORGET_CURVATURE))
    estimates = [bound(each, "cross_fitted_residual") for each in (result, dual)]
    assert estimates[0] > 2 * estimates[1]


@pytest.mark.parametrize("kind", ["gram", "sketch"])
def test_an_estimate_with_statistics_at_hand_downdates_them_and_shows_the_residual(kind):
    rows, rest = np.arange(300), LARGE.rest(np.arange(300))
    statistics = LARGE.gram() if kind == "gram" else LARGE.sketch(rank=57)
    result = completed(run(LARGE, rows, method=Method.FORGET_CURVATURE, statistics=statistics))
    true = LARGE.gradient_norm(result.weights, rest)
    assert true <= bound(result) <= true * (1.0 + 1e-3)
    assert bound(result) == result.gradient_norm_bound
    assert not any(each.certifies for each in result.bounds)
    assert result.tier is Tier.ESTIMATED
    if kind == "gram":
        assert result.statistics.n_samples == 1200 * 3
        shift = LARGE.ridge.shift(1200)
        jacobians, misfit = LARGE.rows(rest)
        left = jacobians @ result.weights.numpy() - misfit
        loss = 0.5 * np.square(left).sum() + 0.5 * shift * float(result.weights.square().sum())
        assert result.metrics.retain_loss_after == pytest.approx(loss, rel=1e-9)
    else:
        assert result.statistics.n_samples == 1200
        assert torch.equal(result.statistics.anchor, result.weights)
    # What is stored next certifies the next deletion, from wherever the estimate led.
    after = follow(LARGE.model, result)
    method = Method.STORED if kind == "gram" else Method.SKETCH
    again = run(LARGE, [400], model=after, statistics=result.statistics, method=method)
    if isinstance(again, Unlearned):
        rest = LARGE.rest([*range(300), 400])
        assert LARGE.gradient_norm(again.weights, rest) <= bound(again)
        if kind == "gram":
            assert bound(again) < 1e-6
    else:
        assert kind == "sketch"
        assert again.cause is RefusalCause.ESTIMATE_UNRELIABLE


def test_a_kept_anchor_stays_where_it_is_when_an_estimate_moves():
    result = completed(
        run(
            LARGE,
            np.arange(300),
            method=Method.FORGET_CURVATURE,
            statistics=LARGE.sketch(rank=57),
            anchor=Anchor.KEEP,
        )
    )
    assert torch.equal(result.statistics.anchor, LARGE.weights)
    rest = LARGE.rest(np.arange(300))
    assert LARGE.gradient_norm(result.weights, rest) <= bound(result)


def test_estimates_in_a_row_carry_their_worst_case():
    model = LARGE.model
    for begin in (0, 200):
        rows = np.arange(begin, begin + 200)
        result = completed(run(LARGE, rows, model=model, method=Method.FORGET_CURVATURE))
        rest = LARGE.rest(np.arange(begin + 200))
        assert LARGE.gradient_norm(result.weights, rest) <= result.gradient_norm_bound
        assert result.gradient_norm_bound > model.gradient_norm_bound
        model = follow(model, result)


def test_one_record_without_statistics_is_refused_and_so_are_a_few():
    for rows in ([3], [3, 4]):
        result = refused(run(LARGE, rows, method=Method.FORGET_CURVATURE))
        assert result.cause in {
            RefusalCause.FORGET_SET_TOO_SMALL,
            RefusalCause.ESTIMATE_UNRELIABLE,
        }


def test_one_class_is_refused_as_skewed_and_a_switched_off_test_says_so():
    rows = np.flatnonzero(LARGE.targets[:, 0].numpy())[:200]
    result = refused(run(LARGE, rows, method=Method.FORGET_CURVATURE))
    assert result.cause is RefusalCause.FORGET_SET_SKEWED
    assert result.gates[-1].name == "forget_set_is_exchangeable"
    policy = GatePolicy(skew_level=0)
    untested = completed(run(LARGE, rows, method=Method.FORGET_CURVATURE, policy=policy))
    (gate,) = (each for each in untested.gates if each.name == "forget_set_is_exchangeable")
    assert "not tested" in gate.detail
    assert "skew" not in untested.seeds


# --- What is refused whatever the method ----------------------------------------------------------


@pytest.mark.parametrize("method", [Method.STORED, Method.SKETCH, Method.FORGET_CURVATURE])
def test_nothing_may_be_left_of_a_training_set_but_something(method):
    statistics = {Method.STORED: MLP.gram(), Method.SKETCH: MLP.sketch()}.get(method)
    result = refused(run(MLP, slice(None), method=method, statistics=statistics))
    assert result.cause is RefusalCause.NOTHING_WOULD_REMAIN
    assert len(result.gates) == 1


@pytest.mark.parametrize("method", [Method.STORED, Method.SKETCH, Method.FORGET_CURVATURE])
@pytest.mark.parametrize("factor", [10.0, 1e160, 1e300])
@pytest.mark.parametrize("name", ["mlp-2", "cnn-4"])
def test_a_jacobian_beyond_the_declared_norm_is_refused_even_if_it_overflows(name, factor, method):
    problem = TinyProblem.draw(SPECS[name], 20)
    statistics = {Method.STORED: problem.gram(), Method.SKETCH: problem.sketch()}.get(method)
    forget = problem.take([0, 1, 2])
    # Only one of three.
    features = forget.features.clone()
    features[1] = factor * (1.0 + features[1])
    result = unlearn(
        problem.model,
        dataclasses.replace(forget, features=features),
        statistics=statistics,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method),
    )
    result = refused(result)
    assert result.cause is RefusalCause.NOT_IN_TRAINING_SET
    gate = result.gates[-1]
    assert gate.name == "jacobian_within_bound"
    assert gate.value is None or gate.value > gate.threshold
    assert "declared feature_norm_bound" in result.remedy


def test_the_longest_sample_itself_is_within_the_bound_that_its_norm_declares():
    norms = np.linalg.norm(MLP.jacobians, 2, axis=(1, 2))
    result = completed(run(MLP, [int(norms.argmax())]))
    (gate,) = (each for each in result.gates if each.name == "jacobian_within_bound")
    assert gate.value == pytest.approx(norms.max(), rel=1e-12)


def test_samples_that_were_never_trained_on_are_refused():
    few = TinyProblem.draw(SPECS["mlp-2"], 8)
    model = dataclasses.replace(few.model, jacobian_norm_bound=1e3)
    changed = dataclasses.replace(few.take([0]), features=1.5 * few.take([0]).features)
    for statistics, method in ((few.gram(), Method.STORED), (few.sketch(rank=30), Method.SKETCH)):
        result = unlearn(
            model,
            changed,
            statistics=statistics,
            task=Task.CLASSIFICATION,
            options=UnlearningOptions(method),
        )
        assert refused(result).cause is RefusalCause.NOT_IN_TRAINING_SET


def test_an_ill_conditioned_retain_set_is_refused_and_never_padded():
    problem = TinyProblem.draw(SPECS["mlp-2"], 8)
    weak = dataclasses.replace(problem.model, ridge=Ridge(RidgeConvention.TOTAL, 1e-18))
    result = refused(run(problem, [0], model=weak))
    assert result.cause is RefusalCause.ILL_CONDITIONED


# --- What does not belong together ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        (Method.STORED, None, "`stored` needs StoredStatistics, and none are stored"),
        (Method.STORED, "sketch", "`stored` needs StoredStatistics, and got SketchStatistics"),
        (Method.SKETCH, None, "`stored-sketch` needs SketchStatistics, and none are stored"),
        (Method.SKETCH, "gram", "`stored-sketch` needs SketchStatistics, and got StoredS"),
        (Method.STORED, "logistic", "and got LogisticStatistics"),
        (Method.FORGET_CURVATURE, "logistic", "of logistic loss, LogisticStatistics"),
    ],
)
def test_a_method_needs_statistics_of_its_own_kind(method, kind, message):
    statistics = {
        None: None,
        "gram": MLP.gram(),
        "sketch": MLP.sketch(),
        "logistic": make_logistic(0, 20, 3, 1).statistics,
    }[kind]
    assert kind != "logistic" or isinstance(statistics, LogisticStatistics)
    with pytest.raises(InvalidOptionError, match=message):
        run(MLP, [1], method=method, statistics=statistics)


@pytest.mark.parametrize("method", [Method.SURROGATE, Method.PAPER_SDP])
def test_a_network_has_no_other_methods(method):
    with pytest.raises(InvalidOptionError, match=f"a network has no `{method}`; take `stored`"):
        run(MLP, [1, 2], method=method)


def test_a_sketchs_probabilistic_bound_is_never_held_against_noise():
    hidden = Privacy(Mechanism.OUTPUT, 1.0, 1e-4, 1e6)
    model = dataclasses.replace(MLP.model, privacy=hidden)
    with pytest.raises(InvalidOptionError, match="privacy: the bound of a sketch"):
        run(MLP, [1], model=model, method=Method.SKETCH, statistics=MLP.sketch())


@pytest.mark.parametrize("method", [Method.STORED, Method.FORGET_CURVATURE])
def test_objective_perturbation_is_not_for_squared_loss(method):
    hidden = Privacy(Mechanism.OBJECTIVE, 1.0, 1e-4, 1e6)
    model = dataclasses.replace(MLP.model, privacy=hidden)
    with pytest.raises(InvalidOptionError, match=r"privacy\.mechanism: .* output"):
        run(MLP, [1], model=model, method=method)


def test_an_estimate_cannot_be_hidden_by_noise():
    hidden = Privacy(Mechanism.OUTPUT, 1.0, 1e-4, 1e6)
    model = dataclasses.replace(LARGE.model, privacy=hidden)
    for statistics in (None, LARGE.sketch()):
        result = run(
            LARGE,
            slice(300),
            model=model,
            method=Method.FORGET_CURVATURE,
            statistics=statistics,
            noise_key=bytes(32),
        )
        assert refused(result).gates[-1].name == "tier_has_true_bound"


def test_tensors_that_do_not_belong_to_the_network_are_refused_by_name():
    features, targets = MLP.take([1]).features, MLP.take([1]).targets
    options = {"task": Task.CLASSIFICATION, "options": UnlearningOptions(Method.STORED)}
    for name in ("forget", "holdout"):
        for samples, message in (
            (FeatureSamples(features[:, :4], targets), rf"{name}\.features: expected \(5,\)"),
            (FeatureSamples(features[..., None], targets), rf"{name}\.features: expected \(5,\)"),
            (FeatureSamples(features, targets[:, :2]), rf"{name}\.targets: expected shape"),
        ):
            sets = {"forget": MLP.take([1]), "holdout": None} | {name: samples}
            with pytest.raises(InvalidTensorError, match=message):
                unlearn(MLP.model, sets["forget"], holdout=sets["holdout"], **options)
    with pytest.raises(InvalidTensorError, match="released_before: expected shape"):
        run(MLP, [1], released_before=MLP.weights.T)


@pytest.mark.parametrize("kind", ["gram", "sketch"])
def test_statistics_of_another_count_or_width_are_refused(kind):
    other = TinyProblem.draw(SPECS["mlp-1"], N)
    fewer = TinyProblem.draw(SPECS["mlp-2"], N - 1)
    method = Method.STORED if kind == "gram" else Method.SKETCH
    for problem in (other, fewer):
        statistics = problem.gram() if kind == "gram" else problem.sketch()
        with pytest.raises(InvalidTensorError, match=r"\(D, columns, n\) = \(57, 1, (40|120)\)"):
            run(MLP, [1], method=method, statistics=statistics)


def test_a_gram_matrix_counts_rows_and_a_sketch_samples():
    # Each with the other's count is another training set's.
    gram = dataclasses.replace(MLP.gram(), n_samples=N)
    with pytest.raises(InvalidTensorError, match="a Gram matrix counts C rows a sample"):
        run(MLP, [1], statistics=gram)
    sketch = dataclasses.replace(MLP.sketch(), n_samples=3 * N)
    with pytest.raises(InvalidTensorError, match="counts C rows a sample"):
        run(MLP, [1], method=Method.SKETCH, statistics=sketch)


# --- All the rest ---------------------------------------------------------------------------------

STRONG = LARGE.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 30.0))


@cache
def case(method: Method) -> dict[str, object]:
    statistics = {Method.STORED: STRONG.gram, Method.SKETCH: STRONG.sketch}.get(method)
    return {
        "method": method,
        "statistics": None if statistics is None else statistics(),
        "holdout": STRONG.take(slice(300, 340)),
    }


METHODS = pytest.mark.parametrize("method", [Method.STORED, Method.SKETCH, Method.FORGET_CURVATURE])


@METHODS
def test_progress_is_told_every_stage_in_order_and_may_cancel(method):
    seen = []
    completed(run(STRONG, slice(200), progress=lambda *told: seen.append(told), **case(method)))
    stages = [stage for stage, _ in seen]
    assert list(dict.fromkeys(stages)) == ["estimate", "step", "bound", "evaluate"]
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0

    class CancelledError(Exception):
        pass

    def cancel(stage: str, _fraction: float) -> None:
        if stage == "step":
            raise CancelledError

    with pytest.raises(CancelledError):
        run(STRONG, slice(200), progress=cancel, **case(method))


@METHODS
def test_inputs_are_not_changed(method):
    given_inputs, forget = case(method), STRONG.take(slice(200))
    network = STRONG.linearisation.network
    held = [forget.features, forget.targets, STRONG.weights, *network.state.values()]
    held += tensors_of(given_inputs["statistics"])
    copies = [tensor.clone() for tensor in held]
    completed(run(STRONG, slice(200), **given_inputs))
    assert all(map(torch.equal, held, copies))


@METHODS
def test_the_same_seed_gives_the_same_weights(method):
    first, second = (completed(run(STRONG, slice(200), **case(method))) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert first.seeds == second.seeds


def tensors_for(method: Method) -> tuple:
    given = case(method)
    return STRONG.model, STRONG.take(slice(200)), given["statistics"], given["holdout"]


def moved(device: torch.device, tensors: tuple, method: Method) -> tuple[tuple, dict]:
    model, forget, statistics, holdout = to_device(tensors, device)
    rest = {"statistics": statistics, "holdout": holdout, "task": Task.CLASSIFICATION}
    return (model, forget), rest | {"options": UnlearningOptions(method, seed=7)}


def differentiate_near(monkeypatch) -> None:
    """Let `torch.func`, which unwraps the far device's tensors, compute on the CPU.

    Everything around it keeps the rules of an accelerator, and what goes in has to be there.
    """
    push, pull, outputs = Linearisation._push, Linearisation._pull, Linearisation._outputs
    near = torch.device("cpu")

    def brought(linearisation: Linearisation, *given: object) -> tuple:
        found = tensors_of([list(linearisation.network.state.values()), _listed(given)])
        assert {tensor.device for tensor in found} == {FAR}
        return to_device((linearisation, *given), near)

    def far_pull(linearisation, features, cotangents, total) -> None:
        part = torch.zeros(total.shape, dtype=torch.float64)
        pull(*brought(linearisation, features, cotangents), part)
        total.add_(part.to(FAR))

    monkeypatch.setattr(Linearisation, "_push", lambda *given: push(*brought(*given)).to(FAR))
    monkeypatch.setattr(Linearisation, "_outputs", lambda *given: outputs(*brought(*given)).to(FAR))
    monkeypatch.setattr(Linearisation, "_pull", far_pull)


def _listed(value: object) -> object:
    if isinstance(value, dict):
        return list(value.values())
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


@METHODS
def test_everything_stays_on_the_device_of_its_inputs(method, monkeypatch):
    expected = completed(run(STRONG, slice(200), **case(method)))
    tensors = tensors_for(method)
    differentiate_near(monkeypatch)
    with far_device():
        positional, named = moved(FAR, tensors, method)
        result = unlearn(*positional, **named)
        assert isinstance(result, Unlearned), result
        assert all(isinstance(tensor, FarTensor) for tensor in tensors_of(result))
        weights = result.weights.cpu()
    assert torch.equal(weights, expected.weights)
    assert [each.value for each in result.bounds] == [each.value for each in expected.bounds]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@METHODS
def test_every_method_agrees_on_cpu_and_gpu(method):
    expected = completed(run(STRONG, slice(200), **case(method)))
    positional, named = moved(torch.device("cuda"), tensors_for(method), method)
    result = completed(unlearn(*positional, **named))
    assert {tensor.device.type for tensor in tensors_of(result)} == {"cuda"}
    assert_close(result.weights.cpu(), expected.weights, rtol=1e-6, atol=1e-6)
    assert result.seeds == expected.seeds
    for ours, theirs in zip(result.bounds, expected.bounds, strict=True):
        assert (ours.name, ours.certifies) == (theirs.name, theirs.certifies)
