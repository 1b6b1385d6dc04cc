import numpy as np
import pytest
from torch.testing import assert_close

from core.hessian.forget_curvature import forget_curvature
from core.hessian.stored import stored
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from tests.reference.problems import make

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))


@CONVENTIONS
def test_stored_statistics_give_the_hessian_of_the_rest(convention):
    problem = make(0, 30, 4, 2, 7, ridge=Ridge(convention, 0.3))
    remaining = problem.statistics.downdate(problem.forget)
    x = problem.x[7:]
    shift = 0.3 * 23 if convention is RidgeConvention.PER_SAMPLE else 0.3
    found = stored(remaining, problem.ridge)
    assert_close(found.matrix.numpy(), x.T @ x + shift * np.eye(4))
    assert found.report.figures["statistics_round_off"] == remaining.round_off


@CONVENTIONS
def test_forget_curvature_scales_the_forget_sets_mean_to_the_rest_but_not_the_ridge(convention):
    problem = make(1, 30, 4, 2, 7, ridge=Ridge(convention, 0.3))
    x = problem.x[:7]
    shift = 0.3 * 23 if convention is RidgeConvention.PER_SAMPLE else 0.3
    found = forget_curvature(problem.model, problem.forget, 23)
    assert_close(found.matrix.numpy(), 23 / 7 * x.T @ x + shift * np.eye(4))
    assert found.report.figures["rank_at_most"] == 4.0


def test_forget_curvature_of_many_samples_comes_near_the_rest():
    problem = make(2, 20_000, 4, 2, 10_000)
    found = forget_curvature(problem.model, problem.forget, 10_000).matrix
    true = stored(problem.statistics.downdate(problem.forget), problem.ridge).matrix
    assert_close(found, true, rtol=0.1, atol=500)
