import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from core.errors import IllConditionedError
from core.linearised import sketched_curvature as module
from core.linearised.sketch import SketchStatistics
from core.linearised.sketched_curvature import FAILURE_PROBABILITY, SketchedCurvature, quantile
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from tests.reference.networks import SPECS, TinyProblem, explicit_sketch

PROBLEM = TinyProblem.draw(SPECS["mlp-2"], 40)
RIDGES = pytest.mark.parametrize(
    "ridge", [Ridge(RidgeConvention.PER_SAMPLE, 1e-2), Ridge(RidgeConvention.TOTAL, 3.0)]
)


def sketch(rank: int, problem: TinyProblem = PROBLEM, **options: int) -> SketchStatistics:
    """Sketch by explicit products, which many seeds can afford."""
    given = {"error_probes": 80, "seed": 5} | options
    anchor = problem.weights.numpy()
    return explicit_sketch(problem.jacobians, problem.misfit, anchor, rank=rank, **given)


def gram(problem: TinyProblem = PROBLEM) -> torch.Tensor:
    return torch.from_numpy(problem.gauss_newton(slice(None)))


def dense(statistics: SketchStatistics, curvature: SketchedCurvature) -> torch.Tensor:
    """A by a pseudo-inverse: Nyström's approximation and what stands for the rest."""
    spanned = statistics.directions(0, statistics.rank)
    found = gram()
    inner = torch.linalg.pinv(spanned @ found @ spanned.T, hermitian=True)
    nystrom = (spanned @ found).T @ inner @ (spanned @ found)
    return nystrom + (curvature.shift + curvature.tail) * torch.eye(len(found))


def draw(seed: int, width: int = 57) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(width, 1, generator=rng, dtype=torch.float64)


@RIDGES
@pytest.mark.parametrize("rank", [1, 8, 40, 57])
def test_the_estimate_is_nystroms_with_the_ridge_and_what_stands_for_the_rest(rank, ridge):
    statistics = sketch(rank)
    curvature = SketchedCurvature.of(statistics, ridge)
    assert curvature.shift == ridge.shift(40)
    explicit = dense(statistics, curvature)
    nystrom = float(explicit.trace()) - 57 * (curvature.shift + curvature.tail)
    # What regularises the core costs 1e-12 of it, times how singular it is.
    assert curvature.captured == pytest.approx(nystrom / float(gram().trace()), rel=1e-6)
    for seed in range(3):
        vector = draw(seed)
        image = explicit @ vector
        close = {"rtol": 0, "atol": 1e-6 * float(image.norm())}
        assert_close(curvature.times(vector), image, **close)
        solution, report = curvature.solve(image)
        assert_close(solution, vector, rtol=0, atol=1e-5 * float(vector.norm()))
        assert report.figures["relative_residual"] < 1e-9
        assert report.figures["rank"] == rank
        assert report.figures["captured"] == curvature.captured
        assert report.figures["tail_over_shift"] == curvature.tail / curvature.shift
        rough = curvature.precondition(image)
        assert_close(rough, vector, rtol=0, atol=1e-4 * float(vector.norm()))


@pytest.mark.parametrize(("samples", "rank"), [(5, 15), (5, 16), (5, 57), (40, 57), (40, 90)])
@pytest.mark.parametrize("strength", [1e-5, 1e-2, 10.0])
def test_with_as_many_directions_as_rows_nystroms_approximation_is_exact(samples, rank, strength):
    # Also with more, where the core is singular.
    ridge = Ridge(RidgeConvention.PER_SAMPLE, strength)
    problem = TinyProblem.draw(SPECS["mlp-2"], samples, ridge=ridge)
    curvature = SketchedCurvature.of(sketch(rank, problem), ridge)
    assert curvature.captured == pytest.approx(1.0, abs=1e-6)
    assert curvature.tail <= 1e-6 * float(gram(problem).trace())
    step, _ = curvature.solve(draw(0))
    hessian = gram(problem) + curvature.shift * torch.eye(57)
    left = float((hessian @ step - draw(0)).norm())
    assert left < 1e-4 * float(draw(0).norm())
    assert left <= curvature.error(step) + 1e-6 * float(draw(0).norm())


def test_a_little_curvature_that_is_lacking_is_spread_over_all_directions():
    ridge = Ridge(RidgeConvention.PER_SAMPLE, 1e-2)
    tails = [SketchedCurvature.of(sketch(rank), ridge).tail for rank in (1, 20, 50, 57)]
    # Half of the mean of what a direction of the rest lacks, tr R²/tr R, up to the spread of a
    # few probes.
    for rank, tail in zip((1, 20), tails[:2], strict=True):
        statistics = sketch(rank)
        curvature = SketchedCurvature.of(statistics, ridge)
        rest = gram() - dense(statistics, curvature)
        rest += (curvature.shift + curvature.tail) * torch.eye(57)
        assert 0.5 < tail / (0.5 * float(rest.square().sum() / rest.trace())) < 2.0
    assert tails[-1] < 1e-6 * tails[0]


# --- The bound (8) --------------------------------------------------------------------------------


def test_the_quantile_is_that_of_scipys_distribution():
    for degrees in (1, 2, 8, 16, 64, 80, 500):
        expected = stats.chi2.ppf(FAILURE_PROBABILITY, degrees)
        assert quantile(degrees) == pytest.approx(expected, rel=1e-9)
        assert stats.chi2.cdf(quantile(degrees), degrees) == pytest.approx(1e-12, rel=1e-6)


def test_the_bound_is_the_misfit_along_the_probes_that_the_estimate_has_not_seen():
    statistics, ridge = sketch(8), PROBLEM.ridge
    curvature = SketchedCurvature.of(statistics, ridge)
    vector = draw(1)
    # E = H − A with Ĥ = G + shift·I.
    error = gram() + curvature.shift * torch.eye(57) - dense(statistics, curvature)
    # 80 probes, of which a fifth has set the tail.
    seen = statistics.directions(8 + 16, 88) @ error @ vector
    expected = float(seen.norm()) / math.sqrt(stats.chi2.ppf(1e-12, 64))
    assert curvature.error(vector) == pytest.approx(expected, rel=1e-5)
    assert curvature.error(vector) > expected
    assert curvature.error(torch.zeros_like(vector)) == 0.0


def test_squares_along_the_probes_have_the_law_that_the_bound_rests_on():
    ridge, statistic = PROBLEM.ridge, []
    for seed in range(400):
        statistics = sketch(8, seed=seed)
        curvature = SketchedCurvature.of(statistics, ridge)
        step, _ = curvature.solve(draw(seed))
        hessian = gram() + curvature.shift * torch.eye(57)
        true = float((hessian @ step - curvature.times(step)).norm())
        statistic.append((curvature.error(step) / true) ** 2 * quantile(64))
    # It would not be, were V to depend on the probes or a few of them to be counted twice.
    assert stats.kstest(statistic, stats.chi2(64).cdf).pvalue > 1e-3
    ratio = np.sqrt(np.array(statistic) / quantile(64))
    assert ratio.min() > 1.0
    assert 2.0 < np.median(ratio) < 2.5


@pytest.mark.parametrize("rank", [3, 20])
def test_estimate_and_step_do_not_depend_on_the_probes_that_bound_them(rank):
    statistics, right_side = sketch(rank), draw(3)
    first = rank + statistics.error_probes // 5
    rng = torch.Generator().manual_seed(1)
    rows, core = statistics.sketch.clone(), statistics.core.clone()
    rows[first:] = torch.randn(rows[first:].shape, generator=rng, dtype=torch.float64)
    core[first:] = torch.randn(core[first:].shape, generator=rng, dtype=torch.float64)
    core[:, first:] = core[first:].T
    changed = dataclasses.replace(statistics, sketch=rows, core=core)
    curvatures = [SketchedCurvature.of(each, PROBLEM.ridge) for each in (statistics, changed)]
    steps = [curvature.solve(right_side)[0] for curvature in curvatures]
    assert torch.equal(*steps)
    assert torch.equal(*(curvature.times(right_side) for curvature in curvatures))
    assert curvatures[0].error(steps[0]) != curvatures[1].error(steps[0])


def test_a_step_that_was_chosen_by_the_probes_escapes_the_bound_which_is_why_they_are_secret():
    # Not a property to keep, but what the assumption in the certificate is about.
    statistics = sketch(1, error_probes=10)
    curvature = SketchedCurvature.of(statistics, Ridge(RidgeConvention.PER_SAMPLE, 1e-2))
    error = gram() + curvature.shift * torch.eye(57) - dense(statistics, curvature)
    seen = statistics.directions(3, 11) @ error
    hidden = torch.linalg.svd(seen).Vh[-1:].T
    assert curvature.error(hidden) < 1e-3 * float((error @ hidden).norm())


def test_parts_of_the_sketch_that_are_worked_on_at_a_time_change_nothing(monkeypatch):
    whole = SketchedCurvature.of(sketch(8), PROBLEM.ridge)
    monkeypatch.setattr(module, "_COLUMNS", 5)
    parts = SketchedCurvature.of(sketch(8), PROBLEM.ridge)
    assert parts.captured == pytest.approx(whole.captured, rel=1e-13)
    assert_close(parts.solve(draw(0))[0], whole.solve(draw(0))[0], rtol=1e-9, atol=1e-12)


def test_a_sketch_of_nothing_has_no_curvature_to_solve_with():
    statistics = sketch(8)
    empty = dataclasses.replace(
        statistics,
        sketch=torch.zeros_like(statistics.sketch),
        core=torch.zeros_like(statistics.core),
        trace=0.0,
    )
    with pytest.raises(IllConditionedError):
        SketchedCurvature.of(empty, PROBLEM.ridge)


def test_no_right_side_is_solved_by_no_step():
    step, report = SketchedCurvature.of(sketch(8), PROBLEM.ridge).solve(torch.zeros_like(draw(0)))
    assert not step.any()
    assert report.figures["relative_residual"] == 0.0


def test_inputs_are_not_changed():
    statistics, vector = sketch(8), draw(0)
    held = [statistics.sketch, statistics.core, statistics.anchor, vector]
    copies = [tensor.clone() for tensor in held]
    curvature = SketchedCurvature.of(statistics, PROBLEM.ridge)
    curvature.error(vector)
    curvature.solve(vector)
    curvature.times(vector)
    assert all(map(torch.equal, held, copies))
