import numpy as np
import pytest
import torch
from torch.testing import assert_close

from core.errors import InvalidTensorError, SolverError
from core.linearised.training import fit, largest_jacobian_norm
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from tests.reference.networks import SPECS, TinyProblem

CONVENTIONS = pytest.mark.parametrize("convention", list(RidgeConvention))


@CONVENTIONS
@pytest.mark.parametrize("name", ["linear", "mlp-1", "mlp-3", "cnn-2", "cnn-4"])
def test_training_finds_what_choleskys_method_finds_on_explicit_rows(name, convention):
    problem = TinyProblem.draw(SPECS[name], 30, ridge=Ridge(convention, 0.1))
    found = fit(problem.linearisation, [problem.data], problem.ridge, tolerance=1e-12)
    assert_close(found.weights, problem.weights, rtol=1e-8, atol=1e-9)


@CONVENTIONS
@pytest.mark.parametrize("tolerance", [1e-3, 1e-10])
def test_the_recorded_gradient_norm_is_the_one_that_was_reached(convention, tolerance):
    problem = TinyProblem.draw(SPECS["mlp-2"], 40, ridge=Ridge(convention, 0.05))
    found = fit(problem.linearisation, [problem.data], problem.ridge, tolerance=tolerance)
    true = problem.gradient_norm(found.weights, slice(None))
    start = problem.gradient_norm(torch.zeros_like(found.weights), slice(None))
    figures = found.report.figures
    assert true <= tolerance * start
    # Both are computed from w, each with its own rounding of sums that cancel.
    assert figures["gradient_norm"] == pytest.approx(true, rel=1e-3, abs=1e-13 * start)
    assert figures["relative_residual"] == pytest.approx(true / start, rel=1e-3, abs=1e-13)
    assert found.report.status == "converged"


@pytest.mark.parametrize("size", [11, 40])
def test_the_optimum_does_not_depend_on_batches(size):
    problem = TinyProblem.draw(SPECS["cnn-3"], 40)
    batches = [problem.take(part) for part in torch.split(torch.arange(40), size)]
    found = fit(problem.linearisation, batches, problem.ridge, tolerance=1e-12)
    assert_close(found.weights, problem.weights, rtol=1e-8, atol=1e-9)


def test_an_interrupted_training_resumes_to_the_same_optimum():
    problem = TinyProblem.draw(SPECS["mlp-3"], 40)
    kept, seen = [], []

    def interrupt(iteration: int, relative: float, weights: torch.Tensor) -> None:
        seen.append((iteration, relative))
        if iteration == 20:
            kept.append(weights.clone())
            raise KeyboardInterrupt

    def fitted(**options):
        return fit(problem.linearisation, [problem.data], problem.ridge, tolerance=1e-12, **options)

    with pytest.raises(KeyboardInterrupt):
        fitted(progress=interrupt)
    assert [iteration for iteration, _ in seen] == list(range(1, 21))
    whole = fitted()
    resumed = fitted(start=kept[0])
    assert_close(resumed.weights, whole.weights, rtol=1e-8, atol=1e-9)
    assert resumed.report.figures["iterations"] < whole.report.figures["iterations"]


def test_a_tolerance_out_of_reach_is_an_error():
    problem = TinyProblem.draw(SPECS["mlp-2"], 20)
    with pytest.raises(SolverError, match="after 5 iterations"):
        fit(problem.linearisation, [problem.data], problem.ridge, most_iterations=5)


def test_without_batches_there_is_nothing_to_train_on():
    problem = TinyProblem.draw(SPECS["linear"], 3)
    with pytest.raises(InvalidTensorError, match="batches: there is none"):
        fit(problem.linearisation, [], problem.ridge)


@pytest.mark.parametrize("name", ["mlp-2", "cnn-4"])
def test_the_largest_norm_is_that_of_an_explicit_jacobian(name):
    problem = TinyProblem.draw(SPECS[name], 12)
    halves = [problem.take(slice(6)), problem.take(slice(6, 12))]
    longest = np.linalg.norm(problem.jacobians, 2, axis=(1, 2)).max()
    assert largest_jacobian_norm(problem.linearisation, halves) == pytest.approx(longest, rel=1e-12)


def test_training_changes_no_sample_and_no_network():
    problem = TinyProblem.draw(SPECS["mlp-2"], 20)
    held = [problem.features, problem.targets, *problem.linearisation.network.state.values()]
    copies = [tensor.clone() for tensor in held]
    fit(problem.linearisation, [problem.data], problem.ridge)
    assert all(map(torch.equal, held, copies))
