import numpy as np
import pytest
import torch

from core import gate
from core.errors import IllConditionedError, SolverError, StatisticsMismatchError
from core.gate import GateFailedError
from core.hessian.forget_curvature import forget_curvature
from core.losses import squared as losses
from core.options import GatePolicy
from core.problem import Ridge
from core.vocabulary import RefusalCause, RidgeConvention
from tests.reference.problems import Problem, make


def estimate(problem: Problem, seed: int = 0, splits: int = 8) -> float:
    return gate.cross_fitted_residual(
        problem.model,
        problem.forget,
        forget_gradient(problem),
        problem.n_remaining,
        splits=splits,
        seed=seed,
    )


def forget_gradient(problem: Problem) -> torch.Tensor:
    share = problem.ridge.forgotten_shift(problem.n_forget)
    return losses.gradient(problem.model.weights, problem.forget, share)


def true_residual(problem: Problem) -> float:
    gradient = forget_gradient(problem)
    curvature = forget_curvature(problem.model, problem.forget, problem.n_remaining).matrix
    moved = problem.model.weights + torch.linalg.solve(curvature, gradient)
    x, y = problem.x[problem.n_forget :], problem.y[problem.n_forget :]
    shift = problem.ridge.shift(problem.n_remaining)
    left = x.T @ (x @ moved.numpy() - y) + shift * moved.numpy()
    return float(np.linalg.norm(left) / torch.linalg.norm(gradient))


def test_the_estimate_is_equation_7_of_the_drawn_halves():
    problem = make(0, 60, 4, 2, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5)).numpy()
    gradient = forget_gradient(problem).numpy()
    n_r, shift = problem.n_remaining, problem.ridge.shift(problem.n_remaining)
    first, second = (
        n_r * problem.x[rows].T @ problem.x[rows] / len(rows) + shift * np.eye(4)
        for rows in (order[:5], order[5:])
    )
    wanted = 0.5 * (
        np.linalg.norm((second - first) @ np.linalg.solve(first, gradient))
        + np.linalg.norm((first - second) @ np.linalg.solve(second, gradient))
    )
    assert estimate(problem, seed=5, splits=1) == pytest.approx(
        wanted / np.linalg.norm(gradient), rel=1e-10
    )


@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_random_forget_sets_leave_less_than_the_estimate_says(convention):
    strength = 1e-2 if convention is RidgeConvention.PER_SAMPLE else 10.0
    cases = [make(s, 1000, 8, 3, 200, ridge=Ridge(convention, strength)) for s in range(20)]
    covered = [true_residual(case) <= estimate(case) for case in cases]
    assert sum(covered) >= 19


def test_a_small_forget_set_is_estimated_to_be_hopeless():
    assert estimate(make(1, 2000, 30, 3, 4, ridge=Ridge(RidgeConvention.PER_SAMPLE, 1e-3))) > 1


def test_the_same_seed_gives_the_same_estimate_and_another_seed_another():
    problem = make(2, 100, 5, 2, 20)
    assert estimate(problem, seed=1) == estimate(problem, seed=1)
    assert estimate(problem, seed=1) != estimate(problem, seed=2)


def test_without_a_gradient_there_is_nothing_left_over():
    problem = make(3, 30, 3, 1, 6)
    zero = torch.zeros_like(problem.model.weights)
    found = gate.cross_fitted_residual(problem.model, problem.forget, zero, 24, splits=2, seed=0)
    assert found == 0.0
    eye = torch.eye(3, dtype=torch.float64)
    deviation = gate.estimate_deviation(
        forget_hessian=eye, estimate=2 * eye, change=zero, forget_gradient=zero
    )
    assert deviation == 0.0


def test_the_deviation_of_another_estimate_is_measured_along_the_step():
    eye = torch.eye(2, dtype=torch.float64)
    deviation = gate.estimate_deviation(
        forget_hessian=3 * eye,
        estimate=eye,
        change=torch.tensor([[3.0], [4.0]], dtype=torch.float64),
        forget_gradient=torch.tensor([[0.0], [5.0]], dtype=torch.float64),
    )
    assert deviation == pytest.approx(2.0)


@pytest.mark.parametrize("n_forget", [10, 11])
def test_nothing_would_remain(n_forget):
    assert gate.require_remainder(9, 10).passed
    with pytest.raises(GateFailedError) as failure:
        gate.require_remainder(n_forget, 10)
    assert failure.value.cause is RefusalCause.NOTHING_WOULD_REMAIN
    assert failure.value.result.value == n_forget
    assert not failure.value.result.passed


def test_a_single_sample_cannot_be_halved():
    assert gate.require_halves(2).passed
    with pytest.raises(GateFailedError) as failure:
        gate.require_halves(1)
    assert failure.value.cause is RefusalCause.FORGET_SET_TOO_SMALL
    assert "statistics" in failure.value.remedy


def test_fewer_equations_than_unknowns_identify_nothing():
    assert gate.require_identified(10, 4).passed
    with pytest.raises(GateFailedError, match="9 equations for 10 unknowns") as failure:
        gate.require_identified(9, 4)
    assert failure.value.cause is RefusalCause.ESTIMATE_NOT_IDENTIFIED


@pytest.mark.parametrize("value", [0.5, 0.7, float("nan"), float("inf")])
def test_an_estimate_from_the_threshold_on_is_refused(value):
    policy = GatePolicy(threshold=0.5)
    assert gate.require_reliable("name", 0.4999, policy).threshold == 0.5
    with pytest.raises(GateFailedError) as failure:
        gate.require_reliable("name", value, policy)
    assert failure.value.cause is RefusalCause.ESTIMATE_UNRELIABLE
    # What is not a finite number is not JSON either.
    assert failure.value.result.value == (value if np.isfinite(value) else None)


def test_errors_of_the_core_become_refusals_with_their_message():
    forged = gate.downdate_failed(StatisticsMismatchError("never seen"))
    singular = gate.unsolvable(IllConditionedError("no factor"))
    assert (forged.cause, forged.result.detail) == (RefusalCause.NOT_IN_TRAINING_SET, "never seen")
    assert (singular.cause, singular.result.detail) == (RefusalCause.ILL_CONDITIONED, "no factor")
    stuck = gate.unsolvable(SolverError("ended with status infeasible"))
    assert stuck.result.name == singular.result.name == "solution_exists"
    assert not forged.result.passed
    assert gate.downdate_passed().passed
