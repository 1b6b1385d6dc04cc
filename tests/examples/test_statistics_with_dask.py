"""The example as it stands, and its tree of sums against a single pass."""

import itertools
import runpy
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.problem import SampleSet
from core.statistics import collect, collect_logistic

EXAMPLE = Path(__file__).parents[2] / "examples" / "statistics_with_dask.py"


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_example_runs_word_for_word_and_agrees_with_a_single_pass(scheduler, capsys):
    with dask.config.set(scheduler=scheduler):
        runpy.run_path(str(EXAMPLE), run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "13 shards, 20000 samples"
    differences = [float(line.rsplit(" ", 1)[1]) for line in lines[1:4]]
    assert max(differences) < 1e-10
    assert float(lines[4].rsplit(" ", 1)[1]) < 1e-10


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(1, 59), unique=True, max_size=12), seed=st.integers(0, 1000))
def test_any_split_into_shards_adds_up_to_the_same_statistics(cuts, seed):
    add_up = runpy.run_path(str(EXAMPLE))["add_up"]
    rng = np.random.default_rng(seed)
    x, y = torch.tensor(rng.standard_normal((60, 4))), torch.tensor(rng.integers(0, 2, (60, 1)))
    y = y.to(torch.float64)
    edges = [0, *sorted(cuts), 60]
    shards = [SampleSet(x[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    weights = torch.tensor(rng.standard_normal((4, 1)))
    for gather in (collect, lambda batches: collect_logistic(batches, weights)):
        parts = [dask.delayed(gather)([shard]) for shard in shards]
        total = add_up(parts).compute(scheduler="synchronous")
        whole = gather([SampleSet(x, y)])
        assert total.n_samples == 60
        torch.testing.assert_close(total.gram, whole.gram, rtol=1e-10, atol=1e-10)
