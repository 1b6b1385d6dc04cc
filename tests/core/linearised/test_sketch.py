import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from core.device import to_device
from core.errors import InvalidOptionError, InvalidTensorError, StatisticsMismatchError
from core.linearised import sketch as module
from core.linearised.problem import FeatureSamples
from core.linearised.sketch import (
    SketchStatistics,
    collect_sketch,
    merge_sketches,
    public_basis,
)
from tests.reference.far_device import FAR, FarTensor, far_device
from tests.reference.networks import SPECS, TinyProblem

N = 14
PROBLEMS = {
    name: TinyProblem.draw(SPECS[name], N) for name in ("linear", "mlp-2", "cnn-2", "cnn-4")
}
PROBLEM = PROBLEMS["mlp-2"]
SKETCH = PROBLEM.sketch(error_probes=12)
NAMES = ("sketch", "core", "data_gradient")


def assert_same_sketch(first: SketchStatistics, second: SketchStatistics) -> None:
    """Sums of the same terms in another order, relative to the largest of each."""
    for name in NAMES:
        found, expected = getattr(first, name), getattr(second, name)
        scale = 1e-10 * float(getattr(SKETCH, name).abs().max())
        assert_close(found, expected, rtol=1e-10, atol=max(scale, 1e-10))
    assert first.trace == pytest.approx(second.trace, rel=1e-10)
    assert first.n_samples == second.n_samples
    assert torch.equal(first.anchor, second.anchor)
    # Every sample that came or went has left some.
    assert first.gradient_uncertainty >= second.gradient_uncertainty * (1 - 1e-10)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_sketch_is_what_explicit_rows_make_of_its_directions(problem):
    sketch = problem.sketch(rank=5, error_probes=11, weights=0.5 * problem.weights)
    gram = torch.from_numpy(problem.gauss_newton(slice(None)))
    directions = sketch.directions(0, 16)
    assert directions.shape == (16, len(gram))
    scale = float(gram.abs().max()) * len(gram)
    close = {"rtol": 1e-10, "atol": 1e-12 * scale}
    assert_close(sketch.sketch, directions @ gram, **close)
    assert_close(sketch.core, directions @ gram @ directions.T, **close)
    assert sketch.trace == pytest.approx(float(gram.trace()), rel=1e-12)
    assert (sketch.n_samples, sketch.rank, sketch.num_parameters) == (N, 5, len(gram))
    # Half of the way to the optimum: the gradient is half of what it was at 0.
    expected = torch.from_numpy(problem.gradient(0.5 * problem.weights, slice(None)).astype(float))
    assert_close(sketch.gradient(problem.ridge), expected, rtol=1e-8, atol=1e-9)
    assert float(sketch.gradient(problem.ridge).norm()) > 0.1


def test_the_uncertainty_of_the_gradient_is_the_rounding_of_every_samples_share():
    errors = PROBLEM.misfit[:, :, None] - PROBLEM.jacobians @ PROBLEM.weights.numpy()
    lengths = np.linalg.norm(PROBLEM.jacobians, axis=(1, 2))
    shares = lengths * np.linalg.norm(errors, axis=(1, 2)) * 2.0**-30
    assert SKETCH.gradient_uncertainty == pytest.approx(shares.sum(), rel=1e-9)
    rest = SKETCH.downdate(PROBLEM.linearisation, PROBLEM.take([0, 4]))
    gone = shares[0] + shares[4]
    assert rest.gradient_uncertainty == pytest.approx(shares.sum() + gone, rel=1e-9)
    true = PROBLEM.gradient(PROBLEM.weights, PROBLEM.rest([0, 4]))
    told = rest.gradient(PROBLEM.ridge).numpy()
    assert np.linalg.norm((told - true).astype(float)) <= rest.gradient_uncertainty


def test_at_an_optimum_the_gradient_is_round_off():
    gradient = SKETCH.gradient(PROBLEM.ridge)
    assert float(gradient.norm()) < 1e-10 * float(SKETCH.data_gradient.norm())


def test_directions_are_the_same_in_pieces():
    whole = SKETCH.directions(0, 20)
    pieces = [SKETCH.directions(*ends) for ends in ((0, 3), (3, 8), (8, 8 + 1), (9, 20))]
    assert torch.equal(torch.cat(pieces), whole)
    # Signs for the estimate, a normal law for its error.
    assert set(whole[:8].unique().tolist()) == {-1.0, 1.0}
    assert not whole[8:].abs().eq(1.0).any()


def test_error_directions_do_not_depend_on_how_many_span_the_estimate():
    fewer = PROBLEM.sketch(rank=3, error_probes=12)
    assert torch.equal(fewer.directions(3, 15), SKETCH.directions(8, 20))


def test_a_seed_gives_the_same_sketch_and_another_seed_another():
    assert_same_sketch(PROBLEM.sketch(error_probes=12), SKETCH)
    other = PROBLEM.sketch(error_probes=12, seed=6)
    assert not torch.allclose(other.sketch, SKETCH.sketch)
    assert other.trace == SKETCH.trace


@settings(max_examples=30)
@given(st.integers(1, N - 1), st.permutations(range(N)))
def test_sketches_of_disjoint_shards_add_up_to_that_of_the_whole(size, order):
    first, second = PROBLEM.take(order[:size]), PROBLEM.take(order[size:])
    parts = [collect(part) for part in (first, second)]
    assert_same_sketch(merge_sketches(*parts), SKETCH)
    assert_same_sketch(merge_sketches(*parts[::-1]), SKETCH)
    # Or in batches of one pass.
    assert_same_sketch(collect(first, second), SKETCH)


@settings(max_examples=40)
@given(st.permutations(range(N)), st.integers(1, N - 1), st.integers(1, 4))
def test_downdated_in_any_order_and_batching_a_sketch_is_that_of_the_rest(order, count, largest):
    gone, kept = order[:count], order[count:]
    rest = SKETCH
    for at in range(0, count, largest):
        rest = rest.downdate(PROBLEM.linearisation, PROBLEM.take(gone[at : at + largest]))
    assert_same_sketch(rest, collect(PROBLEM.take(kept)))


def test_a_downdate_changes_nothing_but_returns_a_new_sketch():
    forget = PROBLEM.take([1, 2])
    held = [*(getattr(SKETCH, name) for name in (*NAMES, "anchor")), forget.features]
    copies = [tensor.clone() for tensor in held]
    rest = SKETCH.downdate(PROBLEM.linearisation, forget)
    assert all(map(torch.equal, held, copies))
    assert (SKETCH.n_samples, rest.n_samples) == (N, N - 2)
    assert rest.trace < SKETCH.trace


def test_a_convolutional_heads_sketch_is_downdated_too():
    problem = PROBLEMS["cnn-4"]
    whole = problem.sketch(error_probes=12)
    rest = whole.downdate(problem.linearisation, problem.take([0, 5]))
    expected = collect_sketch(
        problem.linearisation,
        [problem.take(problem.rest([0, 5]))],
        weights=problem.weights,
        rank=8,
        seed=5,
        error_probes=12,
    )
    for name in NAMES:
        scale = float(getattr(whole, name).abs().max())
        assert_close(getattr(rest, name), getattr(expected, name), rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_nothing_depends_on_how_many_directions_are_worked_on_at_a_time(most, monkeypatch):
    monkeypatch.setattr(module, "_MOST_DIRECTIONS", most)
    shares = []
    sketch = PROBLEM.sketch(error_probes=12, progress=shares.append)
    assert_same_sketch(sketch, SKETCH)
    assert len(shares) == -(-20 // most)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# --- What was never in the training set -----------------------------------------------------------


def refuses(forget: FeatureSamples) -> bool:
    try:
        SKETCH.downdate(PROBLEM.linearisation, forget)
    except StatisticsMismatchError as error:
        return "never in the training set" in str(error)
    return False


def test_samples_that_were_scaled_up_are_refused():
    for row in range(N):
        member = PROBLEM.take([row])
        assert not refuses(member)
        assert refuses(dataclasses.replace(member, features=10.0 * member.features))


def test_strangers_are_refused_where_the_sketch_sees_that_they_leave_a_negative_rest():
    # Every direction that the rest has no curvature in shows it: 15 rows of 57 parameters.
    few = TinyProblem.draw(SPECS["mlp-2"], 5)
    sketch = few.sketch(rank=20, error_probes=12)
    strangers = TinyProblem.draw(SPECS["mlp-2"], 40, seed=9)
    for row in range(40):
        forget = FeatureSamples(
            few.linearisation.network.frozen(strangers.inputs[row : row + 1]),
            strangers.targets[row : row + 1],
        )
        with pytest.raises(StatisticsMismatchError, match="have the eigenvalue -"):
            sketch.downdate(few.linearisation, forget)


def test_a_sample_cannot_be_removed_twice_where_the_sketch_sees_it():
    few = TinyProblem.draw(SPECS["mlp-2"], 5)
    rest = few.sketch(rank=20, error_probes=12).downdate(few.linearisation, few.take([0]))
    with pytest.raises(StatisticsMismatchError, match="were removed before"):
        rest.downdate(few.linearisation, few.take([0]))


def test_more_curvature_than_there_is_cannot_be_removed_whatever_directions_see():
    # Orthogonal to every direction, so that only the trace tells.
    forged = dataclasses.replace(
        SKETCH, trace=0.5 * float(PROBLEM.linearisation.blocks(PROBLEM.features)[0].trace())
    )
    with pytest.raises(StatisticsMismatchError, match="the trace -"):
        forged.downdate(PROBLEM.linearisation, PROBLEM.take([0]))


@pytest.mark.parametrize("name", ["features", "targets"])
def test_samples_that_overflow_are_refused(name):
    member = PROBLEM.take([1])
    forged = dataclasses.replace(member, **{name: 1e200 * (1.0 + getattr(member, name))})
    with pytest.raises(StatisticsMismatchError, match="overflow float64"):
        SKETCH.downdate(PROBLEM.linearisation, forged)


@pytest.mark.parametrize("count", [N, N + 1])
def test_a_forget_set_that_leaves_nothing_is_refused(count):
    data = PROBLEM.take([row % N for row in range(count)])
    with pytest.raises(StatisticsMismatchError, match=f"{count} samples cannot leave a rest of"):
        SKETCH.downdate(PROBLEM.linearisation, data)


# --- A basis of one's own -------------------------------------------------------------------------


def test_a_basis_takes_the_place_of_random_directions():
    basis = torch.randn(4, 57, generator=torch.Generator().manual_seed(0))
    sketch = PROBLEM.sketch(rank=4, error_probes=12, basis=basis)
    assert torch.equal(sketch.directions(0, 4), basis.to(torch.float64))
    assert torch.equal(sketch.directions(4, 16), SKETCH.directions(8, 20))
    rest = sketch.downdate(PROBLEM.linearisation, PROBLEM.take([3]))
    assert rest.basis is basis
    gram = torch.from_numpy(PROBLEM.gauss_newton(PROBLEM.rest([3])))
    expected = sketch.directions(0, 16) @ gram
    assert_close(rest.sketch, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_a_public_basis_is_orthonormal_and_holds_more_curvature_than_random_directions():
    problem = TinyProblem.draw(SPECS["mlp-2"], 60)
    public = TinyProblem.draw(SPECS["mlp-2"], 60, seed=0)
    features = problem.linearisation.network.frozen(public.inputs + 0.1)
    basis = public_basis(problem.linearisation, features, rank=10, seed=5)
    assert (basis.dtype, basis.shape) == (torch.float32, (10, 57))
    assert_close(basis @ basis.T, torch.eye(10), rtol=0, atol=1e-5)
    assert torch.equal(public_basis(problem.linearisation, features, rank=10, seed=5), basis)
    gram = torch.from_numpy(problem.gauss_newton(slice(None)))

    def held(directions: torch.Tensor) -> float:
        span = torch.linalg.qr(directions.to(torch.float64).T).Q
        return float((span.T @ gram @ span).trace() / gram.trace())

    best = torch.linalg.eigvalsh(gram)[-10:].sum() / gram.trace()
    assert held(basis) > 0.9 * float(best)
    assert held(problem.sketch(rank=10).directions(0, 10)) < 0.5 * held(basis)


@pytest.mark.parametrize("rank", [0, 7])
def test_a_public_basis_cannot_have_more_directions_than_its_data_has_rows(rank):
    with pytest.raises(InvalidOptionError, match=f"rank: expected 1 to 6, .* got {rank}"):
        public_basis(PROBLEM.linearisation, PROBLEM.features[:2], rank=rank, seed=0)


def test_a_public_basis_does_not_depend_on_how_many_directions_are_worked_on(monkeypatch):
    whole = public_basis(PROBLEM.linearisation, PROBLEM.features, rank=6, seed=0)
    monkeypatch.setattr(module, "_MOST_DIRECTIONS", 4)
    pieces = public_basis(PROBLEM.linearisation, PROBLEM.features, rank=6, seed=0)
    assert_close(pieces, whole, rtol=1e-5, atol=1e-5)


# --- What does not fit ----------------------------------------------------------------------------


def collect(*batches: FeatureSamples, **changes: object) -> SketchStatistics:
    options = {"weights": PROBLEM.weights, "rank": 8, "seed": 5, "error_probes": 12} | changes
    return collect_sketch(PROBLEM.linearisation, batches, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rank": 0}, InvalidOptionError, "rank: expected at least 1, got 0"),
        ({"error_probes": 9}, InvalidOptionError, "error_probes: expected at least 10 .* got 9"),
        ({"seed": -1}, InvalidOptionError, r"seed: expected a number in \[0, 2\^53\), got -1"),
        ({"seed": 2**53}, InvalidOptionError, "seed: expected"),
        ({"weights": torch.ones(3, 1, dtype=torch.float64)}, InvalidTensorError, "weights: exp"),
        ({"basis": torch.ones(7, 57)}, InvalidTensorError, r"basis: .* shape \(8, 57\), got"),
        (
            {"basis": torch.ones(8, 57, dtype=torch.float64)},
            InvalidTensorError,
            "basis: expected float32 .* got torch.float64",
        ),
        ({"basis": torch.full((8, 57), math.nan)}, InvalidTensorError, "basis: contains NaN"),
        ({"basis": torch.full((8, 57), math.inf)}, InvalidTensorError, "basis: contains NaN"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        collect(PROBLEM.data, **changes)


def test_a_wrong_seed_is_refused_before_the_pass_over_the_data():
    def unread():
        raise AssertionError
        yield

    for seed in (-1, 2**53):
        with pytest.raises(InvalidOptionError, match="seed: expected"):
            collect_sketch(
                PROBLEM.linearisation, unread(), weights=PROBLEM.weights, rank=8, seed=seed
            )
        with pytest.raises(InvalidOptionError, match="seed: expected"):
            public_basis(PROBLEM.linearisation, PROBLEM.features, rank=1, seed=seed)


def test_without_batches_there_is_nothing_to_collect():
    with pytest.raises(InvalidTensorError, match="batches: there is none"):
        collect()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sketch": SKETCH.sketch.float()}, InvalidTensorError, "sketch: expected float64"),
        ({"core": SKETCH.core[:5]}, InvalidTensorError, r"core: expected shape \(20, 20\)"),
        ({"anchor": SKETCH.anchor.T}, InvalidTensorError, r"anchor: expected shape \(57, 1\)"),
        ({"data_gradient": SKETCH.anchor[:5]}, InvalidTensorError, "data_gradient: expected"),
        ({"sketch": SKETCH.sketch * math.nan}, InvalidTensorError, "sketch: contains NaN"),
        ({"error_probes": 20}, InvalidOptionError, "fewer than the 20 directions, got 20"),
        ({"error_probes": 9}, InvalidOptionError, "error_probes: expected at least 10"),
        ({"seed": 2**53}, InvalidOptionError, "seed: expected a number"),
        ({"n_samples": 0}, InvalidOptionError, "n_samples: expected at least 1, got 0"),
        ({"trace": -1.0}, InvalidOptionError, "trace: expected a number >= 0, got -1.0"),
        ({"trace": math.inf}, InvalidOptionError, "trace: expected"),
        ({"gradient_uncertainty": math.nan}, InvalidOptionError, "gradient_uncertainty: expect"),
        ({"gradient_uncertainty": -1e-9}, InvalidOptionError, "gradient_uncertainty: expected"),
        ({"basis": torch.ones(12, 57)}, InvalidTensorError, r"basis: .* shape \(8, 57\)"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(SKETCH, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 6},
        {"rank": 7, "error_probes": 13},
        {"rank": 9},
        {"basis": torch.ones(8, 57)},
        {"weights": torch.zeros(57, 1, dtype=torch.float64)},
    ],
)
def test_sketches_along_different_directions_or_at_different_anchors_do_not_add_up(changes):
    other = collect(PROBLEM.data, **changes)
    for pair in ((SKETCH, other), (other, SKETCH)):
        with pytest.raises(InvalidOptionError, match="expected the same seed, rank, probes"):
            merge_sketches(*pair)


def test_sketches_along_the_same_basis_add_up_with_their_uncertainties():
    basis = torch.randn(8, 57, generator=torch.Generator().manual_seed(0))
    first, second = (
        dataclasses.replace(collect(PROBLEM.take(rows), basis=basis), gradient_uncertainty=size)
        for rows, size in (([0, 1], 0.25), ([2], 0.5))
    )
    both = merge_sketches(first, second)
    assert both.gradient_uncertainty == 0.75
    assert torch.equal(both.basis, basis)
    with pytest.raises(InvalidOptionError, match="the same seed"):
        merge_sketches(first, dataclasses.replace(second, basis=2 * basis))


# --- Elsewhere ------------------------------------------------------------------------------------


def test_a_sketch_goes_to_a_device_and_back():
    sketch = PROBLEM.sketch(error_probes=12, basis=torch.ones(8, 57))
    with far_device():
        there = to_device(sketch, FAR)
        for name in (*NAMES, "anchor", "basis"):
            assert isinstance(getattr(there, name), FarTensor), name
        assert isinstance(there.directions(0, 20), FarTensor)
        back = to_device(there, torch.device("cpu"))
    assert_same_sketch(back, sketch)
    assert torch.equal(back.basis, sketch.basis)
