"""The certified tier: its bound against the true retain gradient, from explicit rows."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.errors import CoreError, IllConditionedError, InvalidOptionError
from core.linearised import probes, sketched
from core.linearised.deletion import NetworkDeletion
from core.linearised.options import HeadSolver
from core.linearised.pipeline import unlearn
from core.linearised.sketch import SketchStatistics, public_basis
from core.linearised.sketched import SketchView
from core.linearised.sketched_curvature import SketchedCurvature
from core.options import GatePolicy, UnlearningOptions
from core.pipeline import ignore_progress
from core.problem import Ridge
from core.results import Refused, Unlearned
from core.vocabulary import (
    Anchor,
    Method,
    RefusalCause,
    RidgeConvention,
    Standing,
    Task,
    Tier,
)
from tests.reference.networks import SPECS, TinyProblem, explicit_sketch, follow

MLP = TinyProblem.draw(SPECS["mlp-2"], 60)


def run(
    problem: TinyProblem, statistics: SketchStatistics, rows: object, **changes: object
) -> Unlearned | Refused:
    given = {"model": problem.model, "anchor": Anchor.MOVE, "method": Method.SKETCH} | changes
    gate = GatePolicy(**given.pop("gate", {}))
    options = UnlearningOptions(given.pop("method"), anchor=given.pop("anchor"), gate=gate)
    return unlearn(
        given.pop("model"),
        problem.take(rows),
        statistics=statistics,
        task=Task.CLASSIFICATION,
        options=options,
        **given,
    )


def completed(result: Unlearned | Refused) -> Unlearned:
    assert isinstance(result, Unlearned), result
    return result


def bound(result: Unlearned, name: str = "residual_gradient_norm") -> float:
    (value,) = (each.value for each in result.bounds if each.name == name)
    assert value is not None
    return value


# --- (8) is never below the truth -----------------------------------------------------------------


@dataclasses.dataclass
class Rows:
    """Explicit rows that stand for a retain set, with a place that a step starts from."""

    jacobians: np.ndarray
    misfit: np.ndarray
    anchor: np.ndarray
    ridge: Ridge

    def gradient_norm(self, weights: torch.Tensor) -> float:
        rows = self.jacobians.reshape(-1, self.jacobians.shape[2]).astype(np.longdouble)
        found = weights.numpy().astype(np.longdouble)
        left = rows @ found - self.misfit.reshape(-1, 1).astype(np.longdouble)
        shift = np.longdouble(self.ridge.shift(len(self.jacobians)))
        return float(np.sqrt(np.square(rows.T @ left + shift * found).sum()))


def draw_rows(rng: np.random.Generator) -> Rows:
    n, outputs, width = rng.integers(1, 30), rng.integers(1, 4), rng.integers(2, 25)
    jacobians = rng.standard_normal((n, outputs, width)) * 10.0 ** rng.uniform(-3, 3)
    match rng.integers(6):
        case 1:  # the same sample again and again
            jacobians[:] = jacobians[0]
        case 2:  # a few directions hold nearly all
            jacobians *= 10.0 ** -np.linspace(0, 8, width)
        case 3:  # one sample is far longer than all others
            jacobians[0] *= 1e4
        case 4:  # parameters that nothing touches
            jacobians[:, :, width // 2 :] = 0.0
        case 5:  # fewer directions than parameters
            jacobians = (
                jacobians @ rng.standard_normal((width, 2)) @ rng.standard_normal((2, width))
            )
    # One class is as one-sided as targets can be.
    misfit = rng.standard_normal((n, outputs)) if rng.random() < 0.7 else np.ones((n, outputs))
    misfit *= 10.0 ** rng.uniform(-6, 6)
    ridge = Ridge(rng.choice(list(RidgeConvention)), 10.0 ** rng.uniform(-8, 3))
    flat = jacobians.reshape(-1, width)
    hessian = flat.T @ flat + ridge.shift(n) * np.eye(width)
    optimum = np.linalg.lstsq(hessian, flat.T @ misfit.reshape(-1, 1), rcond=None)[0]
    # From the optimum itself, where gradients cancel, to far away.
    away = rng.choice([0.0, 1e-9, 1e-3, 1.0]) * (1.0 + np.linalg.norm(optimum))
    return Rows(jacobians, misfit, optimum + away * rng.standard_normal((width, 1)), ridge)


def hostile_steps(rng: np.random.Generator, rows: Rows, curvature: SketchedCurvature):
    """Steps that know everything but the error probes."""
    width = len(rows.anchor)
    flat = torch.from_numpy(rows.jacobians.reshape(-1, width))
    hessian = flat.T @ flat + curvature.shift * torch.eye(width)
    error = hessian - curvature.times(torch.eye(width, dtype=torch.float64))
    directions = torch.linalg.svd(error).Vh
    yield -curvature.solve(curvature.statistics.gradient(rows.ridge))[0]
    yield curvature.solve(-curvature.statistics.gradient(rows.ridge))[0]
    # The direction that the estimate knows least of, and the one that it knows best.
    for direction in (directions[:1].T, directions[-1:].T):
        yield 10.0 ** rng.uniform(-8, 4) * direction
    yield 10.0 ** rng.uniform(-8, 4) * torch.from_numpy(rng.standard_normal((width, 1)))


def test_the_bound_is_never_below_the_true_gradient_of_explicit_rows():
    rng = np.random.default_rng(20)
    ratios, unsolvable, cases = [], 0, 500
    for seed in range(cases):
        rows = draw_rows(rng)
        statistics = explicit_sketch(
            rows.jacobians,
            rows.misfit,
            rows.anchor,
            rank=int(rng.integers(1, len(rows.anchor) + 4)),
            error_probes=int(rng.choice([10, 20, 80])),
            seed=seed,
        )
        try:
            curvature = SketchedCurvature.of(statistics, rows.ridge)
        except IllConditionedError:
            unsolvable += 1
            continue
        for step in hostile_steps(rng, rows, curvature):
            view = SketchView.at(curvature, rows.ridge, step)
            true = rows.gradient_norm(statistics.anchor + step)
            assert true <= view.residual, (seed, true, view.residual)
            ratios.append(view.residual / true)
    assert len(ratios) > 2400
    # Refusing is no way out either.
    assert unsolvable < cases // 20


@pytest.mark.parametrize("anchor", list(Anchor))
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_streams_of_deletions_stay_within_their_bounds(anchor, convention):
    ratios = []
    for seed, rank, strength in itertools.product(range(4), (1, 8, 30, 60), (1e-2, 1.0)):
        share = 60 if convention is RidgeConvention.TOTAL else 1
        problem = MLP.but(ridge=Ridge(convention, strength * share))
        model, statistics = problem.model, problem.sketch(rank=rank, seed=seed)
        order = np.random.default_rng(seed).permutation(60)
        gone: list[int] = []
        for part in np.split(order[:30], [1, 2, 8, 20]):
            result = run(problem, statistics, part, model=model, anchor=anchor)
            if isinstance(result, Refused):
                assert result.cause is RefusalCause.ESTIMATE_UNRELIABLE
                break
            gone.extend(part)
            rest = problem.rest(gone)
            true = problem.gradient_norm(result.weights, rest)
            assert true <= bound(result) == result.gradient_norm_bound
            ratios.append(bound(result) / true)
            distance = float((result.weights - problem.trained(rest)).norm())
            assert distance <= bound(result, "distance_to_retraining") * (1 + 1e-9)
            assert isinstance(result.statistics, SketchStatistics)
            model, statistics = follow(model, result), result.statistics
    assert len(ratios) > 20


@pytest.mark.parametrize("name", ["linear", "cnn-2", "cnn-4"])
def test_the_bound_holds_for_every_kind_of_network(name):
    problem = TinyProblem.draw(SPECS[name], 40, ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.5))
    found = 0
    for seed in range(10):
        statistics = problem.sketch(rank=20, seed=seed)
        rows = np.random.default_rng(seed).permutation(40)[: 1 + seed]
        result = run(problem, statistics, rows)
        if isinstance(result, Unlearned):
            found += 1
            assert problem.gradient_norm(result.weights, problem.rest(rows)) <= bound(result)
    assert found >= 5


def test_the_bound_says_about_twice_the_truth():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 1.0))
    ratios = []
    for seed in range(30):
        rows = np.random.default_rng(seed).permutation(60)[:6]
        # 80 probes, of which 64 bound; what says nothing is refused.
        result = completed(run(problem, problem.sketch(rank=15, seed=seed), rows))
        ratios.append(bound(result) / problem.gradient_norm(result.weights, problem.rest(rows)))
    assert min(ratios) > 1.0
    assert 1.0 <= np.median(ratios) <= 4.0


def test_a_sample_that_the_network_fits_to_round_off_is_no_exception():
    # Its gradient is so small that the rounding of the weights themselves is what is left.
    for digits in range(1, 14, 2):
        ridge = Ridge(RidgeConvention.TOTAL, 0.6)
        problem = MLP.but(ridge=ridge)
        targets = problem.targets.clone()
        outputs = torch.from_numpy(problem.jacobians[0]) @ problem.trained(np.arange(1, 60))
        centre = problem.targets[0] - torch.from_numpy(problem.misfit[0])
        targets[0] = centre + outputs[:, 0] + 10.0**-digits
        fitted = problem.but(targets=targets)
        result = run(fitted, fitted.sketch(rank=57), [0])
        if isinstance(result, Unlearned):
            true = fitted.gradient_norm(result.weights, fitted.rest([0]))
            assert true <= bound(result), digits
        else:
            assert result.cause is RefusalCause.ESTIMATE_UNRELIABLE
            assert digits > 6


# --- What a deletion does -------------------------------------------------------------------------


def test_a_full_sketch_retrains():
    for convention in RidgeConvention:
        problem = MLP.but(ridge=Ridge(convention, 0.1))
        rows = [5, 9, 30]
        result = completed(run(problem, problem.sketch(rank=57), rows))
        retrained = problem.trained(problem.rest(rows))
        moved = float((problem.weights - retrained).norm())
        assert float((result.weights - retrained).norm()) < 1e-6 * moved
        assert result.tier is Tier.CERTIFIED
        assert [report.name for report in result.solvers] == ["stored-sketch", "sketch-woodbury"]
        assert result.n_samples == result.statistics.n_samples == 57
        assert any("fails with a probability" in each.text for each in result.assumptions)


def test_with_a_kept_anchor_any_order_and_batching_gives_the_same_weights():
    rows = np.arange(20)
    problem, found = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3)), []
    for parts in ([rows], np.split(rows, [3, 10]), np.split(rows[::-1], [10, 13])):
        model, statistics = problem.model, problem.sketch(rank=30)
        for part in parts:
            result = completed(run(problem, statistics, part, model=model, anchor=Anchor.KEEP))
            model, statistics = follow(model, result), result.statistics
        found.append(result)
        assert torch.equal(statistics.anchor, problem.weights)
        # The rounding of sums alone.
        assert statistics.gradient_uncertainty < 1e-6 * bound(result)
    for result in found[1:]:
        assert_close(result.weights, found[0].weights, rtol=1e-9, atol=1e-11)
        assert bound(result) == pytest.approx(bound(found[0]), rel=1e-5)


def test_a_moved_anchor_is_where_the_weights_are_with_the_gradient_that_is_left():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    result = completed(run(problem, problem.sketch(rank=30), [1, 2]))
    statistics = result.statistics
    assert torch.equal(statistics.anchor, result.weights)
    true = problem.gradient(result.weights, problem.rest([1, 2])).astype(float)
    told = statistics.gradient(problem.ridge).numpy()
    assert np.linalg.norm(told - true) <= statistics.gradient_uncertainty
    assert statistics.gradient_uncertainty <= bound(result)


def test_a_chosen_basis_makes_a_better_estimate_of_the_same_rank():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.05))
    public = problem.linearisation.network.frozen(problem.inputs + 0.1)
    basis = public_basis(problem.linearisation, public, rank=12, seed=1)
    rows = np.arange(6)
    chosen = completed(run(problem, problem.sketch(rank=12, basis=basis), rows))
    assert chosen.solvers[0].figures["chosen_basis"] == 1.0
    rest = problem.rest(rows)
    assert problem.gradient_norm(chosen.weights, rest) <= bound(chosen)
    random = run(problem, problem.sketch(rank=12), rows)
    # A bound that says nothing is refused.
    assert isinstance(random, Refused) or bound(chosen) < 0.7 * bound(random)


@pytest.mark.parametrize("anchor", list(Anchor))
@pytest.mark.parametrize("method", [Method.SKETCH, Method.FORGET_CURVATURE])
def test_weights_do_not_depend_on_the_probes_that_bound_them(anchor, method, monkeypatch):
    # Of seed 6 nothing is its own but the 64 probes of the bound.
    drawn, signs = probes.gaussian_rows, probes.sign_rows

    def other(seed: int, start: int, count: int, width: int) -> np.ndarray:
        rows = [
            drawn(5 if row < 16 else seed, row, 1, width) for row in range(start, start + count)
        ]
        return np.concatenate(rows)

    monkeypatch.setattr(probes, "gaussian_rows", other)
    monkeypatch.setattr(probes, "sign_rows", lambda _seed, *shape: signs(5, *shape))
    problem, streams = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 30.0)), []
    for seed in (5, 6):
        model, statistics = problem.model, problem.sketch(rank=30, seed=seed)
        stream = []
        for forget in (slice(15), slice(15, 30), slice(30, 40)):
            changes = {
                "model": model,
                "anchor": anchor,
                "method": method,
                "gate": {"skew_level": 0},
            }
            changes |= {"solver": HeadSolver.CONJUGATE_GRADIENTS}
            stream.append(completed(run(problem, statistics, forget, **changes)))
            model, statistics = follow(model, stream[-1]), stream[-1].statistics
        streams.append(stream)
    for ours, theirs in zip(*streams, strict=True):
        assert torch.equal(ours.weights, theirs.weights)
        assert torch.equal(ours.statistics.data_gradient, theirs.statistics.data_gradient)
        assert bound(ours) != bound(theirs)


def deletion(problem: TinyProblem, statistics: object, rows: object, model=None) -> NetworkDeletion:
    return NetworkDeletion(
        model or problem.model,
        problem.take(rows),
        statistics,
        None,
        Task.CLASSIFICATION,
        UnlearningOptions(Method.SKETCH),
        HeadSolver.AUTO,
        Standing.ATTESTED,
        ignore_progress,
    )


def test_inputs_are_not_changed():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    statistics, forget = problem.sketch(rank=30), problem.take([1, 2])
    held = [getattr(statistics, name) for name in ("sketch", "core", "anchor", "data_gradient")]
    held += [forget.features, forget.targets, problem.model.weights]
    copies = [tensor.clone() for tensor in held]
    for anchor in Anchor:
        completed(run(problem, statistics, [1, 2], anchor=anchor))
    assert all(map(torch.equal, held, copies))


# --- What is refused ------------------------------------------------------------------------------


def test_a_bound_that_says_no_more_than_doing_nothing_is_refused_with_its_remedy():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-4))
    result = run(problem, problem.sketch(rank=1), [3])
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.ESTIMATE_UNRELIABLE
    assert "higher rank" in result.remedy
    failed = result.gates[-1]
    assert (failed.name, failed.passed, failed.threshold) == ("bound_says_something", False, 1.0)
    assert failed.value >= 1.0
    assert [each.passed for each in result.gates[:-1]] == [True] * 4


@pytest.mark.parametrize("anchor", list(Anchor))
def test_a_long_stream_of_single_deletions_goes_on(anchor):
    # What earlier ones left adds up to more than a single gradient, and refuses none of the later.
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    model, statistics, gone = problem.model, problem.sketch(rank=30), []
    for row in range(20):
        gone.append(row)
        result = completed(run(problem, statistics, [row], model=model, anchor=anchor))
        model, statistics = follow(model, result), result.statistics
        assert problem.gradient_norm(result.weights, problem.rest(gone)) <= bound(result)
    single = completed(run(problem, problem.sketch(rank=30), [0], anchor=anchor))
    assert bound(result) > bound(single)


def test_a_policy_may_ask_for_more_than_something():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    statistics = problem.sketch(rank=30)
    result = completed(run(problem, statistics, [1, 2]))
    (passed,) = (each for each in result.gates if each.name == "bound_says_something")
    stricter = run(problem, statistics, [1, 2], gate={"threshold": 0.99 * passed.value})
    assert isinstance(stricter, Refused)


@pytest.mark.parametrize("size", [1e160, 1e300])
def test_targets_that_overflow_are_refused_with_figures_that_json_can_hold(size):
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    forget = dataclasses.replace(problem.take([1, 2]), targets=size * problem.targets[:2])
    result = unlearn(
        problem.model,
        forget,
        statistics=problem.sketch(rank=30),
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(Method.SKETCH),
    )
    assert isinstance(result, Refused)
    assert result.gates[-1].value is None
    assert "overflow" in result.detail


def test_a_bound_that_is_no_number_is_refused_with_figures_that_json_can_hold(monkeypatch):
    monkeypatch.setattr(sketched.SketchView, "own", float("nan"))
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    result = run(problem, problem.sketch(rank=30), [1])
    assert isinstance(result, Refused)
    assert result.gates[-1].name == "bound_says_something"
    assert result.gates[-1].value is None


def test_a_forget_set_whose_gradient_is_nothing_leaves_what_is_left_already():
    problem = MLP.but(ridge=Ridge(RidgeConvention.TOTAL, 1.0))
    model = dataclasses.replace(problem.model, weights=torch.zeros_like(problem.weights))
    targets = problem.targets.clone()
    targets[:1] = problem.linearisation.centre_outputs(problem.features[:1])
    fitted = problem.but(targets=targets)
    assert not model.data_gradient(fitted.take([0])).any()
    result = completed(run(fitted, fitted.sketch(rank=57), [0], model=model))
    assert fitted.gradient_norm(result.weights, fitted.rest([0])) <= bound(result)


def test_samples_that_leave_more_curvature_than_norms_allow_are_refused():
    problem = MLP.but(ridge=Ridge(RidgeConvention.PER_SAMPLE, 0.3))
    short = dataclasses.replace(problem.model, jacobian_norm_bound=2.0)
    row = int(np.argmin(np.linalg.norm(problem.jacobians, 2, axis=(1, 2))))
    norm = float(np.linalg.norm(problem.jacobians[row], 2))
    short = dataclasses.replace(short, jacobian_norm_bound=norm)
    result = run(problem, problem.sketch(rank=8), [row], model=short)
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.NOT_IN_TRAINING_SET
    assert result.gates[-1].name == "rest_is_possible"


def test_samples_that_were_never_trained_on_are_refused():
    few = TinyProblem.draw(SPECS["mlp-2"], 6)
    statistics = few.sketch(rank=25)
    strangers = TinyProblem.draw(SPECS["mlp-2"], 30, seed=0).but(linearisation=few.linearisation)
    model = dataclasses.replace(few.model, jacobian_norm_bound=1e3)
    result = run(strangers, statistics, [20], model=model)
    assert isinstance(result, Refused)
    assert result.cause is RefusalCause.NOT_IN_TRAINING_SET
    assert result.gates[-1].name == "downdate_is_possible"


def test_a_core_without_a_factor_is_refused_and_never_padded():
    statistics = MLP.sketch(rank=8)
    core = statistics.core.clone()
    # Positive semidefinite as a whole up to the downdate's tolerance, but not where A needs it.
    core[0, :] = core[:, 0] = 0.0
    core[0, 0] = -1e-11 * float(core.diagonal().max())
    broken = dataclasses.replace(statistics, core=core)
    with pytest.raises(CoreError):
        SketchedCurvature.of(broken, MLP.ridge)


def test_the_tier_itself_takes_no_other_statistics():
    with pytest.raises(InvalidOptionError, match="needs a sketch, and none is stored"):
        sketched.run(deletion(MLP, MLP.gram(), [1]))
