import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from core.errors import SolverError
from core.hessian import _cvxpy_program, _first_order
from core.hessian._program import Program
from tests.reference import semidefinite

PRIORS = pytest.mark.parametrize("weight", [0.0, 0.02], ids=["no prior", "prior"])


def make(seed: int, width: int, count: int, *, noise: float = 1.0, weight: float = 0.0) -> Program:
    """Draw a program: equations of a random Z ⪰ 0 of half rank, with noise."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, width))
    root = rng.standard_normal((width, max(width // 2, 1)))
    exact = 0.5 * ((directions @ root) ** 2).sum(axis=1)
    targets = exact + noise * exact.mean() * rng.standard_normal(count)
    centre = rng.standard_normal((width, width))
    return Program(
        torch.tensor(directions), torch.tensor(targets), torch.tensor(centre + centre.T), weight
    )


def slope_at(program: Program, excess: np.ndarray) -> np.ndarray:
    slope = semidefinite.gradient(excess, program.directions.numpy(), program.targets.numpy())
    return slope + 2 * program.weight * (excess - program.centre.numpy())


@st.composite
def programs(draw: st.DrawFn) -> Program:
    return make(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 40)),
        noise=draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0])),
        weight=draw(st.sampled_from([0.0, 1e-4, 1.0])),
    )


@given(programs())
def test_the_conditions_of_optimality_hold(program):
    solution = _first_order.solve(program)
    excess = solution.excess.numpy()
    slope = slope_at(program, excess)
    scale = np.abs(slope_at(program, np.zeros_like(excess))).sum() + 1e-300
    start = program.objective(torch.zeros_like(program.centre))
    assert solution.status == "optimal"
    assert np.linalg.eigvalsh(excess)[0] >= -1e-14 * np.abs(excess).max()
    assert np.linalg.eigvalsh(slope)[0] >= -1e-3 * scale
    assert abs((slope * excess).sum()) <= 1e-3 * start


@given(programs())
def test_no_feasible_matrix_is_better_by_more_than_the_gap(program):
    solution = _first_order.solve(program)
    bound = program.objective(solution.excess) - solution.figures["duality_gap"]
    best = semidefinite.solve(
        program.directions.numpy(),
        program.targets.numpy(),
        np.zeros(program.centre.shape),
        steps=200,
        centre=program.centre.numpy(),
        weight=program.weight,
    )
    start = program.objective(torch.zeros_like(program.centre))
    assert program.objective(torch.from_numpy(best)) >= bound - 1e-14 * start


@pytest.mark.parametrize("limit", [10, 50])
@PRIORS
def test_the_gap_is_true_before_the_optimum_is_reached(monkeypatch, limit, weight):
    program = make(0, 12, 60, weight=weight)
    optimum = program.objective(_first_order.solve(program).excess)
    monkeypatch.setattr(_first_order, "MAX_ITERATIONS", limit)
    monkeypatch.setattr(_first_order, "LARGEST_USABLE_GAP", 1.0)
    monkeypatch.setattr(_first_order, "RELATIVE_GAP", 1e-12)
    solution = _first_order.solve(program)
    assert solution.status == "iteration_limit"
    assert solution.figures["iterations"] == limit
    excess = program.objective(solution.excess) - optimum
    assert excess + 1e-7 * optimum >= 0
    assert excess <= solution.figures["duality_gap"]


def test_a_gap_beyond_use_is_an_error_with_its_size(monkeypatch):
    monkeypatch.setattr(_first_order, "MAX_ITERATIONS", 2)
    with pytest.raises(SolverError, match=r"iteration_limit after 2 iterations.*gap of 0\.\d+"):
        _first_order.solve(make(0, 12, 60))


@PRIORS
@pytest.mark.parametrize(
    ("width", "count"), [(8, 44), (8, 5), (12, 20)], ids=["identified", "few", "some"]
)
def test_the_objective_is_no_larger_than_that_of_cvxpy(width, count, weight):
    program = make(1, width, count, weight=weight)
    own = program.objective(_first_order.solve(program).excess)
    reference = program.objective(_cvxpy_program.solve(program, "CLARABEL").excess)
    # Fewer equations than dimensions are satisfied exactly where no target is negative.
    floor = 1e-12 * program.objective(torch.zeros_like(program.centre))
    assert own + floor <= (reference + floor) * (1 + 1e-6)


def test_equations_that_can_be_satisfied_are_satisfied():
    program = make(2, 10, 66, noise=0.0)
    solution = _first_order.solve(program)
    start = program.objective(torch.zeros_like(program.centre))
    assert program.objective(solution.excess) <= 1e-16 * start


@PRIORS
def test_the_solution_scales_with_the_targets(weight):
    program = make(3, 6, 30, weight=weight)
    for scale in (1e-30, 1e30):
        scaled = Program(
            program.directions, scale * program.targets, scale * program.centre, weight
        )
        found = _first_order.solve(scaled)
        wanted = _first_order.solve(program)
        assert_close(found.excess / scale, wanted.excess, rtol=1e-9, atol=1e-9)
        assert found.figures["duality_gap"] == pytest.approx(
            scale**2 * wanted.figures["duality_gap"], rel=0.1, abs=1e-9 * scale**2
        )


def test_directions_within_a_subspace_leave_the_rest_at_the_floor():
    # With fewer equations than dimensions, (2) says nothing beyond their span.
    program = make(4, 9, 4)
    excess = _first_order.solve(program).excess
    outside = torch.linalg.qr(program.directions.T, mode="complete").Q[:, 4:]
    assert float((excess @ outside).abs().max()) <= 1e-12 * float(excess.abs().max())


def test_repeated_directions_have_the_solution_of_their_mean():
    program = make(5, 3, 8)
    twice = Program(program.directions.repeat(2, 1), program.targets.repeat(2), program.centre, 0.0)
    assert_close(
        _first_order.solve(twice).excess, _first_order.solve(program).excess, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_floor_that_satisfies_everything_is_returned_at_once(weight):
    zero = torch.zeros(3, 3, dtype=torch.float64)
    program = Program(make(6, 3, 5).directions, torch.zeros(5, dtype=torch.float64), zero, weight)
    solution = _first_order.solve(program)
    assert torch.equal(solution.excess, zero)
    assert solution.figures["iterations"] == 0.0


@PRIORS
def test_targets_that_only_a_negative_matrix_would_satisfy_end_at_the_floor(weight):
    program = make(7, 5, 30, noise=0.0)
    negative = Program(
        program.directions, -program.targets, -program.targets.new_ones(5, 5), weight
    )
    solution = _first_order.solve(negative)
    assert float(solution.excess.abs().max()) <= 1e-6
    assert solution.status == "optimal"


def test_the_same_program_has_the_same_solution_to_the_last_bit():
    program = make(8, 6, 30)
    first, second = _first_order.solve(program), _first_order.solve(program)
    assert torch.equal(first.excess, second.excess)
    assert first.figures == second.figures


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@PRIORS
def test_a_gpu_finds_the_same_solution(weight):
    program = make(9, 8, 44, weight=weight)
    moved = Program(
        program.directions.cuda(), program.targets.cuda(), program.centre.cuda(), weight
    )
    found, wanted = _first_order.solve(moved), _first_order.solve(program)
    assert found.excess.is_cuda
    assert_close(found.excess.cpu(), wanted.excess, rtol=1e-6, atol=1e-6)
