import dataclasses

import numpy as np
import pytest
import torch

from core import noise
from core.errors import InvalidTensorError
from core.evaluation.membership import loss_threshold
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy
from core.problem import LinearModel, Ridge
from core.results import Metrics, Unlearned
from core.statistics import StoredStatistics
from core.vocabulary import Loss, Mechanism, Method, RidgeConvention, Task
from tests.reference.problems import Problem, make, samples


def metrics_of(problem: Problem, method: Method, **inputs) -> Metrics:
    options = UnlearningOptions(method=method, seed=7)
    result = unlearn(problem.model, problem.forget, task=Task.REGRESSION, options=options, **inputs)
    assert isinstance(result, Unlearned)
    return result.metrics


def test_what_cannot_be_measured_is_named():
    found = metrics_of(make(2, 200, 3, 2, 60), Method.FORGET_CURVATURE)
    assert found.holdout_before is None
    assert found.retain_loss_after is None
    assert set(found.missing) >= {"holdout", "membership", "retain_loss", "reference_models"}
    assert found.forget_before != found.forget_after


def test_with_a_holdout_and_statistics_only_reference_models_are_missing():
    problem = make(3, 20, 3, 2, 5)
    found = metrics_of(
        problem,
        Method.STORED,
        statistics=problem.statistics,
        holdout=samples(problem.x[:2], problem.y[:2]),
    )
    assert set(found.missing) == {"reference_models"}
    assert found.holdout_after is not None
    assert found.holdout_after.n_samples == 2
    assert found.retain_loss_before is not None
    assert found.retain_loss_after is not None
    # Retraining minimises the retain loss.
    assert found.retain_loss_after < found.retain_loss_before
    moved = problem.retrained()
    errors = problem.x[5:] @ moved - problem.y[5:]
    wanted = 0.5 * (errors**2).sum() + 0.5 * 1e-2 * 15 * (moved**2).sum()
    assert found.retain_loss_after == pytest.approx(wanted, rel=1e-10)
    assert found.weight_change == pytest.approx(
        float(np.linalg.norm(moved - problem.model.weights.numpy()))
    )


# --- membership and reconstruction, of what is released -----------------------------------------


def private(problem: Problem) -> Problem:
    declared = Privacy(Mechanism.OUTPUT, epsilon=1.0, delta=1e-5, sigma=10.0)
    return _Private(problem.x, problem.y, problem.n_forget, problem.ridge, declared)


@dataclasses.dataclass(frozen=True)
class _Private(Problem):
    declared: Privacy

    @property
    def model(self) -> LinearModel:
        return dataclasses.replace(super().model, privacy=self.declared)


def test_membership_is_measured_against_the_holdout_before_and_after():
    problem = make(4, 40, 10, 2, 10)
    rng = np.random.default_rng(9)
    holdout = samples(rng.standard_normal((200, 10)), rng.standard_normal((200, 2)))
    found = metrics_of(problem, Method.STORED, statistics=problem.statistics, holdout=holdout)
    after = torch.from_numpy(problem.retrained())
    assert found.membership_before == loss_threshold(
        problem.model.weights, problem.forget, holdout, Loss.SQUARED
    )
    assert found.membership_after is not None
    wanted = loss_threshold(after, problem.forget, holdout, Loss.SQUARED)
    assert found.membership_after.auc == pytest.approx(wanted.auc)
    assert found.membership_before is not None
    assert found.membership_before.auc > found.membership_after.auc


def test_the_weights_of_one_deletion_reveal_the_record():
    problem = make(5, 60, 5, 2, 1)
    found = metrics_of(problem, Method.STORED, statistics=problem.statistics)
    assert found.reconstruction is not None
    assert found.reconstruction.cosine_with_statistics == pytest.approx(1.0, abs=1e-2)
    assert "reconstruction" not in found.missing


def test_weights_that_do_not_change_reveal_nothing():
    # A sample of zeros with a target of zeros: the ridge, a constant here, is not split.
    problem = make(6, 60, 5, 2, 1, ridge=Ridge(RidgeConvention.TOTAL, 1.0))
    problem.x[0], problem.y[0] = 0.0, 0.0
    still = Problem(problem.x, problem.y, 1, problem.ridge)
    statistics = still.statistics
    zero = torch.zeros(5, 2, dtype=torch.float64)
    model = dataclasses.replace(still.model, weights=zero)
    empty = StoredStatistics.from_arrays(
        statistics.gram, zero, torch.zeros(2, 2, dtype=torch.float64), 60, 0.0
    )
    result = unlearn(
        model,
        still.forget,
        statistics=empty,
        task=Task.REGRESSION,
        options=UnlearningOptions(method=Method.STORED),
    )
    assert isinstance(result, Unlearned)
    assert result.metrics.reconstruction is None
    assert "did not change" in result.metrics.missing["reconstruction"]


def test_with_output_perturbation_only_the_releases_can_be_compared():
    problem = private(make(7, 60, 5, 2, 1))
    inputs = {"statistics": problem.statistics, "noise_key": bytes(range(32))}
    unknown = metrics_of(problem, Method.STORED, **inputs)
    assert unknown.reconstruction is None
    assert "not at hand" in unknown.missing["reconstruction"]
    first = torch.from_numpy(
        noise.perturbed(problem.model.weights.numpy(), 10.0, bytes(range(1, 33)))
    )
    known = metrics_of(problem, Method.STORED, released_before=first, **inputs)
    assert known.reconstruction is not None
    assert known.reconstruction.cosine_with_statistics is not None
    assert known.reconstruction.cosine_with_statistics < 0.99
    assert known.weight_change > 1.0
    assert known.forget_before.mean_loss > 5 * unknown.forget_before.mean_loss


def test_what_was_released_before_has_the_shape_of_the_weights():
    problem = make(8, 60, 5, 2, 1)
    with pytest.raises(InvalidTensorError, match="released_before"):
        metrics_of(
            problem, Method.STORED, statistics=problem.statistics, released_before=torch.zeros(2, 5)
        )
