"""Exact deletion of one record from stored statistics against retraining from the data.

`python -m benchmarks.speed [--json FILE] [--quick]`: both on this machine, in one run, in blocks
that take turns. The data are synthetic (random ReLU features of random inputs, 10 classes): time
depends on the shapes only. The time of a deletion is that of the whole `core.pipeline.unlearn`,
with downdate, membership test, solve, bounds and scores.

Between two blocks the process rests: scikit-learn's BLAS and torch have threads of their own, which
wait for more work in a loop for some milliseconds. A deletion right behind a retraining shares two
cores with four threads and takes up to ten times as long, which says nothing about either. The
headline is the ratio of the medians; that of the best times stands beside it.
Memory is counted twice: what torch allocated, and the growth of the peak resident memory of a
fresh process, which also sees the BLAS library.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import Ridge as ScikitRidge

from benchmarks import _report
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Unlearned
from core.statistics import StoredStatistics, collect
from core.vocabulary import Method, RidgeConvention, Task

NUM_FEATURES = 512
NUM_OUTPUTS = 10
LAMBDA = 1e-3
# Resident memory is counted by page and by heap: only a large matrix stands out.
RESIDENT_FEATURES = 2048
BLOCK = 5
REST_SECONDS = 0.5
_BYTES = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A trained model with its data and statistics."""

    data: SampleSet
    model: LinearModel
    statistics: StoredStatistics
    forget: SampleSet

    def delete(self) -> Unlearned:
        """Delete one record exactly."""
        result = unlearn(
            self.model,
            self.forget,
            statistics=self.statistics,
            task=Task.CLASSIFICATION,
            options=UnlearningOptions(method=Method.STORED),
        )
        if not isinstance(result, Unlearned):
            raise TypeError(f"the deletion was refused: {result.detail}")
        return result

    def retrain(self) -> Any:
        """Retrain on the rest with scikit-learn."""
        alpha = self.model.ridge.shift(self.model.n_samples - 1)
        features, targets = self.data.features[1:].numpy(), self.data.targets[1:].numpy()
        ridge = ScikitRidge(alpha=alpha, solver="cholesky", fit_intercept=False)
        return ridge.fit(features, targets).coef_.T


def build(count: int, convention: RidgeConvention, num_features: int = NUM_FEATURES) -> Case:
    """Train on seeded random ReLU features of norm at most 1."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 64, generator=generator, dtype=torch.float64)
    layer = torch.randn(64, num_features, generator=generator, dtype=torch.float64)
    features = torch.relu(inputs @ layer)
    features /= torch.linalg.vector_norm(features, dim=1).max()
    teacher = torch.randn(64, NUM_OUTPUTS, generator=generator, dtype=torch.float64)
    labels = (inputs @ teacher).argmax(dim=1)
    targets = torch.nn.functional.one_hot(labels, NUM_OUTPUTS).to(torch.float64)
    data = SampleSet(features, targets)
    collected = collect([data])
    ridge = Ridge(
        convention, LAMBDA if convention is RidgeConvention.PER_SAMPLE else LAMBDA * count
    )
    weights = torch.linalg.solve(collected.hessian(ridge), collected.cross)
    model = LinearModel(weights, ridge, count, feature_norm_bound=1.0)
    return Case(data, model, collected, SampleSet(features[:1], targets[:1]))


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def timed_block(action: Callable[[], object]) -> list[float]:
    """Return the seconds of each of some calls, once other threads have gone to sleep."""
    time.sleep(REST_SECONDS)
    action()  # wakes its own threads
    return [timed(action) for _ in range(BLOCK)]


def compare_times(case: Case, blocks: int) -> dict[str, Any]:
    """Time deletion and retraining in blocks that take turns, so that both meet the same load."""
    retraining: list[float] = []
    deleting: list[float] = []
    for _ in range(blocks):
        retraining += timed_block(case.retrain)
        # As many of each: with more tries, a minimum would favour the deletion.
        deleting += timed_block(case.delete)
    retrain, delete = statistics.median(retraining), statistics.median(deleting)
    result, reference = case.delete(), torch.from_numpy(case.retrain())
    moved = torch.linalg.norm(case.model.weights - reference)
    return {
        "convention": case.model.ridge.convention.value,
        "n": case.model.n_samples,
        "d": case.model.weights.shape[0],
        "outputs": NUM_OUTPUTS,
        "retrain_seconds": retrain,
        "retrain_seconds_best": min(retraining),
        "delete_seconds": delete,
        "delete_seconds_best": min(deleting),
        "speedup": retrain / delete,
        "speedup_of_best": min(retraining) / min(deleting),
        "load_average": os.getloadavg()[0],
        "rho_w": float(torch.linalg.norm(result.weights - reference) / moved),
        "residual_bound": result.bounds[0].value,
    }


def allocated_floats(case: Case) -> float:
    """Return the peak of what torch allocated during a deletion, in units of d² float64."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = case.delete()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    # Kept until here: what the result holds counts as well.
    return peak / (_BYTES * result.weights.shape[0] ** 2)


def resident_floats() -> float:
    """Return the growth of the peak resident memory by a first deletion, in units of d² float64."""
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", "--resident"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(answer.stdout))


def measure_resident() -> float:
    """Measure in this process; Linux alone lets a process set its peak back."""
    case = build(2 * RESIDENT_FEATURES, RidgeConvention.PER_SAMPLE, RESIDENT_FEATURES)
    # The first calls map code and allocate buffers of the BLAS library, whatever d is.
    build(200, RidgeConvention.PER_SAMPLE, 64).delete()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    case.delete()
    return (_status("VmHWM") - before) / (_BYTES * RESIDENT_FEATURES**2)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident:
        print(json.dumps(measure_resident()))
        return
    rows = []
    for convention in RidgeConvention:
        case = build(60_000, convention)
        row = compare_times(case, blocks=2 if options.quick else 6)
        rows.append(row | {"peak_floats_per_d2": allocated_floats(case)})
        print(
            f"{convention}: medians: retraining {1e3 * row['retrain_seconds']:.0f} ms, deletion "
            f"{1e3 * row['delete_seconds']:.2f} ms, {row['speedup']:.0f}x faster; best times: "
            f"{1e3 * row['retrain_seconds_best']:.0f} ms, {1e3 * row['delete_seconds_best']:.2f} "
            f"ms, {row['speedup_of_best']:.0f}x; load {row['load_average']:.1f}; "
            f"rho_w {row['rho_w']:.1e}; peak {rows[-1]['peak_floats_per_d2']:.2f} d² floats"
        )
    resident = resident_floats() if Path("/proc/self/clear_refs").exists() else math.nan
    print(f"peak resident memory, d={RESIDENT_FEATURES}: {resident:.2f} d² floats")
    summary = {
        "speedup_retrain_total": _of(rows, RidgeConvention.TOTAL)["speedup"],
        "speedup_retrain_per_sample": _of(rows, RidgeConvention.PER_SAMPLE)["speedup"],
        "speedup_of_best_total": _of(rows, RidgeConvention.TOTAL)["speedup_of_best"],
        "speedup_of_best_per_sample": _of(rows, RidgeConvention.PER_SAMPLE)["speedup_of_best"],
        "peak_floats_per_d2": max(row["peak_floats_per_d2"] for row in rows),
        "peak_resident_floats_per_d2": None if math.isnan(resident) else resident,
        "rho_w_max": max(row["rho_w"] for row in rows),
    }
    _report.write(options.json, rows, summary)


def _of(rows: list[dict[str, Any]], convention: RidgeConvention) -> dict[str, Any]:
    return next(row for row in rows if row["convention"] == convention)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status: has no {name}")


if __name__ == "__main__":
    main()
