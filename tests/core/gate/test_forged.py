import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core import gate
from core.gate import GateFailedError
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import SampleSet
from core.results import Refused, Unlearned
from core.vocabulary import Method, RefusalCause, Task
from tests.reference.problems import Problem, make, problems, samples


def delete(problem: Problem, forget: SampleSet, task: Task = Task.CLASSIFICATION):
    return unlearn(
        problem.model,
        forget,
        statistics=problem.statistics,
        task=task,
        options=UnlearningOptions(method=Method.STORED),
    )


def unit(problem: Problem) -> Problem:
    problem.x[:] /= np.linalg.norm(problem.x, axis=1, keepdims=True)
    return problem


@given(problems(), st.sampled_from(list(Task)))
def test_true_members_always_pass(problem: Problem, task: Task):
    before = problem.statistics
    rest = before.downdate(problem.forget)
    bound = problem.model.feature_norm_bound * (1 + 1e-6)
    assert gate.require_possible_rest(before, rest, feature_norm_bound=bound, task=task).passed


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_shrunk_members_leave_too_much_behind(factor):
    problem = unit(make(0, 300, 5, 3, 40, one_hot=True))
    answer = delete(problem, samples(factor * problem.x[:40], problem.y[:40]))
    assert isinstance(answer, Refused)
    assert answer.cause is RefusalCause.NOT_IN_TRAINING_SET
    assert answer.gates[-1].name == "rest_is_possible"
    assert "norms" in answer.detail


def test_a_class_cannot_lose_more_samples_than_it_has_nor_half_a_label():
    problem = unit(make(1, 300, 5, 3, 10, one_hot=True))
    count = int(problem.y[:, 0].sum())
    other = np.flatnonzero(problem.y[:, 0] == 0)[: count + 1]
    relabelled = samples(problem.x[other], np.tile(np.eye(3)[0], (len(other), 1)))
    soft = samples(problem.x[:10], np.full((10, 3), 1 / 3))
    for forget in (relabelled, soft):
        answer = delete(problem, forget)
        assert isinstance(answer, Refused)
        assert answer.cause is RefusalCause.NOT_IN_TRAINING_SET


def test_real_targets_have_no_class_counts():
    problem = make(2, 300, 5, 3, 10)
    assert isinstance(delete(problem, problem.forget, Task.REGRESSION), Unlearned)


def test_both_findings_are_named():
    problem = unit(make(3, 300, 5, 3, 10, one_hot=True))
    before = problem.statistics
    rest = before.downdate(samples(0.1 * problem.x[:10], np.full((10, 3), 0.2)))
    with pytest.raises(GateFailedError, match=r"norms.*; .*class counts"):
        gate.require_possible_rest(before, rest, feature_norm_bound=1.0, task=Task.CLASSIFICATION)


def test_a_strangers_single_record_passes_which_is_why_digests_exist():
    # What sums cannot show, no test of sums finds.
    problem = unit(make(4, 300, 5, 3, 10, one_hot=True))
    stranger = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.0]], dtype=torch.float64)
    label = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert isinstance(delete(problem, SampleSet(stranger, label)), Unlearned)
