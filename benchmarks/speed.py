"""Exact and certified deletion from stored statistics against retraining from the data.

`python -m benchmarks.speed [--json FILE] [--quick]`: both on this machine, in one run, in blocks
that take turns. The data are synthetic (random ReLU features of random inputs, 10 classes): time
depends on the shapes only. The time of a deletion is that of the whole `core.pipeline.unlearn`,
with downdate, membership test, solve, bounds and scores. Deletions form a stream: each starts from
the weights, statistics and factor that the one before left, and forgets other records.

Between two blocks the process rests: scikit-learn's BLAS and torch have threads of their own, which
wait for more work in a loop for some milliseconds. A deletion right behind a retraining shares two
cores with four threads and takes up to ten times as long, which says nothing about either. The
headline is the ratio of the medians; that of the best times stands beside it.

Every deletion is timed with one thread of torch and with as many as torch takes by default, in
blocks that take turns; scikit-learn keeps its own threads. `delete_seconds` is the smaller one of
the two medians, as an operator would set it; `delete_threads` says which, and
`delete_seconds_by_threads` has both. `speedup_by_threads` likewise, also in the summary.

`floor` is what no exact deletion by a stored Cholesky factor can do without: two triangular solves
with C + 1 columns and the Woodbury correction, timed in the same blocks. torch has two ways of
solving; `over_floor` is over the faster one, and the other stands beside it.

Memory is counted twice: what torch allocated, and the growth of the peak resident memory of a
fresh process, which also sees the BLAS library. Both for a deletion that finds a factor, and for
the first one, which builds it.

Rows: `one-record`, `batch`, `logistic`, and for plots `growth-d`, `growth-n_f` and `growth-C`, each
with `delete_seconds`, `retrain_seconds`, `speedup` and what it depends on.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as ScikitRidge
from torch import Tensor

from benchmarks import _data, _report
from core import newton
from core.factorisation import factorise
from core.losses import logistic
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Unlearned
from core.statistics import Statistics, StoredStatistics, collect, collect_logistic
from core.vocabulary import Loss, Method, RidgeConvention, Task

NUM_SAMPLES = 60_000
# Of `--quick`, whose speedups are smaller for it: retraining has less to do.
QUICK_SAMPLES = 20_000
NUM_FEATURES = 512
NUM_OUTPUTS = 10
LAMBDA = 1e-3
# Growth with d: as many numbers of data whatever d is.
NUM_NUMBERS = NUM_SAMPLES * NUM_FEATURES
# Resident memory is counted by page and by heap: only a large matrix stands out.
RESIDENT_FEATURES = 2048
BLOCK = 5
REST_SECONDS = 0.5
_BYTES = 8
_SEED = 0

console = Console()


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A trained model with its data and statistics."""

    data: SampleSet
    model: LinearModel
    statistics: Statistics

    def retrain(self, kept: SampleSet) -> Tensor:
        """Retrain on the rest with scikit-learn."""
        alpha = self.model.ridge.shift(len(kept))
        features, targets = kept.features.numpy(), kept.targets.numpy()
        if self.model.loss is Loss.LOGISTIC:
            columns = [
                LogisticRegression(C=1 / alpha, fit_intercept=False).fit(features, column).coef_[0]
                for column in targets.T
            ]
            return torch.stack([torch.from_numpy(column) for column in columns], dim=1)
        ridge = ScikitRidge(alpha=alpha, solver="cholesky", fit_intercept=False)
        # One output comes back as a vector.
        return torch.from_numpy(ridge.fit(features, targets).coef_).reshape(targets.shape[1], -1).T

    def prepared(self) -> "Case":
        """Return the case with a factor, which the owner or the service builds beforehand."""
        if not isinstance(self.statistics, StoredStatistics):
            return self
        return dataclasses.replace(self, statistics=self.statistics.prepare(self.model.ridge))


class Stream:
    """Deletions of records in random order, each from where the last one led."""

    def __init__(self, case: Case, count: int = 1, seed: int = _SEED) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.case = case
        self.model = case.model
        self.statistics: Statistics = case.statistics
        order = torch.randperm(len(case.data), generator=generator)
        self._parts = iter(torch.split(order, count))
        self._gone: list[Tensor] = []
        self.result: Unlearned | None = None

    def step(self) -> Unlearned:
        """Delete the next records."""
        rows = next(self._parts)
        forget = SampleSet(self.case.data.features[rows], self.case.data.targets[rows])
        result = delete(dataclasses.replace(self.case, model=self.model), forget, self.statistics)
        self._gone.append(rows)
        self.model = dataclasses.replace(
            self.model,
            weights=result.weights,
            n_samples=result.n_samples,
            gradient_norm_bound=result.gradient_norm_bound,
        )
        assert result.statistics is not None  # noqa: S101 - the exact and certified tiers have them
        self.statistics = result.statistics
        self.result = result
        return result

    def rest(self) -> SampleSet:
        """Return what has not been deleted."""
        kept = torch.ones(len(self.case.data), dtype=torch.bool)
        for rows in self._gone:
            kept[rows] = False
        return SampleSet(self.case.data.features[kept], self.case.data.targets[kept])

    def rho(self) -> float:
        """Return ρ_w of the whole stream against a retraining in float64."""
        rest, ridge = self.rest(), self.model.ridge
        sums = collect([rest])
        reference = torch.linalg.solve(sums.hessian(ridge), sums.cross)
        moved = torch.linalg.norm(self.case.model.weights - reference)
        return float(torch.linalg.norm(self.model.weights - reference) / moved)


def delete(case: Case, forget: SampleSet, kept: Statistics) -> Unlearned:
    """Delete records from stored statistics."""
    result = unlearn(
        case.model,
        forget,
        statistics=kept,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method=Method.STORED),
    )
    if not isinstance(result, Unlearned):
        raise TypeError(f"the deletion was refused: {result.detail}")
    return result


@lru_cache(maxsize=1)
def draw(count: int, num_features: int, num_outputs: int) -> tuple[SampleSet, StoredStatistics]:
    """Draw seeded random ReLU features of norm at most 1, and collect their statistics."""
    generator = torch.Generator().manual_seed(_SEED)
    inputs = torch.randn(count, 64, generator=generator, dtype=torch.float64)
    layer = torch.randn(64, num_features, generator=generator, dtype=torch.float64)
    features = torch.relu(inputs @ layer)
    features /= torch.linalg.vector_norm(features, dim=1).max()
    teacher = torch.randn(64, num_outputs, generator=generator, dtype=torch.float64)
    labels = (inputs @ teacher).argmax(dim=1)
    targets = torch.nn.functional.one_hot(labels, num_outputs).to(torch.float64)
    data = SampleSet(features, targets)
    return data, collect([data])


def build(
    count: int,
    convention: RidgeConvention,
    num_features: int = NUM_FEATURES,
    num_outputs: int = NUM_OUTPUTS,
) -> Case:
    """Train a ridge regression."""
    data, collected = draw(count, num_features, num_outputs)
    strength = LAMBDA if convention is RidgeConvention.PER_SAMPLE else LAMBDA * count
    ridge = Ridge(convention, strength)
    weights = torch.linalg.solve(collected.hessian(ridge), collected.cross)
    return Case(data, LinearModel(weights, ridge, count, feature_norm_bound=1.0), collected)


def build_logistic(count: int) -> Case:
    """Train a logistic regression, one class against the rest, to a small gradient."""
    data, _ = draw(count, NUM_FEATURES, NUM_OUTPUTS)
    ridge = Ridge(RidgeConvention.TOTAL, LAMBDA * count)
    model = LinearModel(
        torch.zeros(NUM_FEATURES, NUM_OUTPUTS, dtype=torch.float64),
        ridge,
        count,
        feature_norm_bound=1.0,
        loss=Loss.LOGISTIC,
    )
    for _ in range(4):  # Newton steps
        sums = collect_logistic([data], model.weights)
        gradient = logistic.gradient(model.weights, data, ridge.shift(count))
        # Not torch.linalg.solve: its batched LU fails after a change of torch's thread count.
        moved = model.weights - newton.solve(sums.hessian(ridge), gradient)
        model = dataclasses.replace(model, weights=moved)
    return Case(data, model, collect_logistic([data], model.weights))


def floors(case: Case) -> dict[str, Callable[[], object]]:
    """Return the bare solves of one record's deletion, in torch's two ways."""
    assert isinstance(case.statistics, StoredStatistics)  # noqa: S101 - squared loss only
    record, weights = case.data.features[:1], case.model.weights
    hessian = case.statistics.hessian(case.model.ridge)
    factor, lower = factorise(hessian), torch.linalg.cholesky(hessian)
    misfit = record @ weights - case.data.targets[:1]
    right_side = torch.cat([record.T @ misfit, record.T], dim=1)

    def correct(solved: Tensor) -> Tensor:
        step, image = solved[:, :-1], solved[:, -1:]
        return weights + step + image @ ((record @ step) / (1 - record @ image))

    return {
        "triangular": lambda: correct(factor.solve(right_side)),
        "cholesky_solve": lambda: correct(torch.cholesky_solve(right_side, lower)),
    }


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def timed_block(action: Callable[[], object], count: int = BLOCK) -> list[float]:
    """Return the seconds of each of some calls, once other threads have gone to sleep."""
    time.sleep(REST_SECONDS)
    action()  # wakes its own threads
    return [timed(action) for _ in range(count)]


def thread_counts() -> list[int]:
    """Return one thread and torch's default."""
    return sorted({1, torch.get_num_threads()})


def by_threads(retraining: list[float], deleting: dict[int, list[float]]) -> dict[str, Any]:
    """Return the times of deletions by thread count; the headline is that of the best median."""
    retrain = statistics.median(retraining)
    medians = {threads: statistics.median(times) for threads, times in deleting.items()}
    best = min(medians, key=medians.__getitem__)
    return {
        "delete_seconds": medians[best],
        "delete_seconds_best": min(deleting[best]),
        "delete_threads": best,
        "delete_seconds_by_threads": {str(key): value for key, value in medians.items()},
        "speedup": retrain / medians[best],
        "speedup_by_threads": {str(key): retrain / value for key, value in medians.items()},
        "speedup_of_best": min(retraining) / min(deleting[best]),
    }


def compare_times(
    case: Case, stream: Stream, blocks: int, count: int = BLOCK, **dependence: Any
) -> dict[str, Any]:
    """Time deletion and retraining in blocks that take turns, so that both meet the same load."""
    rest = SampleSet(case.data.features[1:], case.data.targets[1:])
    retraining: list[float] = []
    deleting: dict[int, list[float]] = {threads: [] for threads in thread_counts()}
    for _ in range(blocks):
        retraining += timed_block(lambda: case.retrain(rest), count)
        for threads, times in deleting.items():
            with _data.torch_threads(threads):
                # As many of each: with more tries, a minimum would favour the deletion.
                times.extend(timed_block(stream.step, count))
    return (
        dependence
        | by_threads(retraining, deleting)
        | {
            "convention": case.model.ridge.convention.value,
            "n": case.model.n_samples,
            "d": case.model.weights.shape[0],
            "outputs": case.model.weights.shape[1],
            "retrain_seconds": statistics.median(retraining),
            "retrain_seconds_best": min(retraining),
            "load_average": os.getloadavg()[0],
        }
    )


def one_record(
    convention: RidgeConvention, blocks: int, count: int, size: int = NUM_SAMPLES
) -> dict[str, Any]:
    """Compare the deletion of one record, with a factor, with retraining and with bare solves."""
    case = build(size, convention)
    first = statistics.median(timed(Stream(case, seed=seed).step) for seed in range(3))
    case = case.prepared()
    stream = Stream(case)
    bare: dict[tuple[str, int], list[float]] = {
        (name, threads): [] for name in floors(case) for threads in thread_counts()
    }
    # The floor, too, is the better one of all thread counts, so `over_floor` is not flattered.
    for _ in range(blocks):
        for threads in thread_counts():
            with _data.torch_threads(threads):
                for name, solve in floors(case).items():
                    bare[name, threads] += timed_block(solve, 4 * BLOCK)
    row = compare_times(case, stream, blocks, count, table="one-record", n_f=1)
    medians = {
        name: min(statistics.median(bare[name, threads]) for threads in thread_counts())
        for name in floors(case)
    }
    assert stream.result is not None  # noqa: S101 - it has deleted records
    return row | {
        "first_seconds": first,
        "floor_seconds": min(medians.values()),
        "floor_seconds_by_solver": medians,
        "over_floor": row["delete_seconds"] / min(medians.values()),
        "over_floor_by_solver": {k: row["delete_seconds"] / v for k, v in medians.items()},
        "rho_w": stream.rho(),
        "residual_bound": stream.result.bounds[0].value,
        "solver": stream.result.solvers[1].name,
        "peak_floats_per_d2": allocated_floats(Stream(case)),
        "peak_floats_per_d2_first": allocated_floats(Stream(build(size, convention))),
    }


def batch(blocks: int, count: int, size: int = NUM_SAMPLES) -> dict[str, Any]:
    """Compare the deletion of 1,000 records at once with retraining."""
    case = build(size, RidgeConvention.PER_SAMPLE).prepared()
    stream = Stream(case, count=1000)
    row = compare_times(case, stream, blocks, count, table="batch", n_f=1000)
    return row | {"rho_w": stream.rho()}


def one_logistic(count: int) -> dict[str, Any]:
    """Compare the deletion of one record from a logistic model with retraining, one block each."""
    case = build_logistic(count)
    rest = SampleSet(case.data.features[1:], case.data.targets[1:])
    retraining = [timed(lambda: case.retrain(rest))]
    stream = Stream(case)
    deleting: dict[int, list[float]] = {}
    for threads in thread_counts():
        with _data.torch_threads(threads):
            deleting[threads] = timed_block(stream.step, 3)
    return by_threads(retraining, deleting) | {
        "table": "logistic",
        "n_f": 1,
        "convention": case.model.ridge.convention.value,
        "n": count,
        "d": NUM_FEATURES,
        "outputs": NUM_OUTPUTS,
        "retrain_seconds": statistics.median(retraining),
        "load_average": os.getloadavg()[0],
    }


def growth(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield how times grow with d, with n_f and with C; with d the data keep their size."""
    total = RidgeConvention.TOTAL
    numbers = NUM_NUMBERS // 10 if quick else NUM_NUMBERS
    for width in (64, 256) if quick else (64, 128, 256, 512, 1024, 2048, 4096):
        case = build(min(NUM_SAMPLES, numbers // width), total, width)
        first = timed(Stream(case, seed=1).step)
        case = case.prepared()
        bare = min(statistics.median(timed_block(solve)) for solve in floors(case).values())
        row = compare_times(case, Stream(case), 1, 3, table="growth-d", n_f=1)
        yield row | {"first_seconds": first, "floor_seconds": bare}
    count = 6_000 if quick else NUM_SAMPLES
    case = build(count, total).prepared()
    for n_f in (1, 256) if quick else (1, 4, 16, 64, 128, 256, 1000):
        yield compare_times(case, Stream(case, n_f), 1, 3, table="growth-n_f", n_f=n_f)
    for outputs in (1, 100) if quick else (1, 10, 100, 1000):
        case = build(count, total, num_outputs=outputs).prepared()
        yield compare_times(case, Stream(case), 1, 3, table="growth-C", n_f=1)


def allocated_floats(stream: Stream) -> float:
    """Return the peak of what torch allocated during a deletion, in units of d² float64."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = stream.step()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    # Kept until here: what the result holds counts as well.
    return peak / (_BYTES * result.weights.shape[0] ** 2)


def measure_resident(which: str) -> float:
    """Measure in this process; Linux alone lets a process set its peak back."""
    case = build(2 * RESIDENT_FEATURES, RidgeConvention.PER_SAMPLE, RESIDENT_FEATURES)
    if which == "prepared":
        case = case.prepared()
    # The first calls map code and allocate buffers of the BLAS library, whatever d is.
    Stream(build(200, RidgeConvention.PER_SAMPLE, 64)).step()
    growth = _report.resident_growth(Stream(case).step)
    return growth / (_BYTES * RESIDENT_FEATURES**2)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="fewer blocks, smaller growth")
    parser.add_argument("--resident", choices=("first", "prepared"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident is not None:
        print(json.dumps(measure_resident(options.resident)))
        return
    rows = list(_measure(quick=options.quick))
    resident = {
        which: None if options.quick else _report.in_fresh_process("benchmarks.speed", which)
        for which in ("prepared", "first")
    }
    for which, floats in resident.items():
        print(f"peak resident memory, d={RESIDENT_FEATURES}, {which}: {floats or math.nan:.2f} d²")
    _report.write(options.json, rows, summarise(rows, resident))


def summarise(
    rows: list[dict[str, Any]], resident: dict[str, float | None]
) -> dict[str, float | None]:
    """Return the figures that stand in the issue."""
    total = _row(rows, "one-record", RidgeConvention.TOTAL)
    per_sample = _row(rows, "one-record", RidgeConvention.PER_SAMPLE)
    return {
        "speedup_retrain_total": total["speedup"],
        "speedup_retrain_per_sample": per_sample["speedup"],
        "speedup_of_best_total": total["speedup_of_best"],
        "speedup_of_best_per_sample": per_sample["speedup_of_best"],
        "speedup_by_threads_total": total["speedup_by_threads"],
        "speedup_by_threads_per_sample": per_sample["speedup_by_threads"],
        "over_floor": total["over_floor"],
        "over_floor_cholesky_solve": total["over_floor_by_solver"]["cholesky_solve"],
        "over_floor_per_sample": per_sample["over_floor"],
        "batch_1000_speedup": _row(rows, "batch", RidgeConvention.PER_SAMPLE)["speedup"],
        "speedup_logistic": _row(rows, "logistic", RidgeConvention.TOTAL)["speedup"],
        "first_over_prepared": total["first_seconds"] / total["delete_seconds"],
        "peak_floats_per_d2": max(total["peak_floats_per_d2"], per_sample["peak_floats_per_d2"]),
        "peak_floats_per_d2_first": total["peak_floats_per_d2_first"],
        "peak_resident_floats_per_d2": resident["prepared"],
        "peak_resident_floats_per_d2_first": resident["first"],
        "rho_w_max": max(row["rho_w"] for row in rows if "rho_w" in row),
    }


def _measure(*, quick: bool) -> Iterator[dict[str, Any]]:
    blocks = (1, 2) if quick else (4, BLOCK)
    size = QUICK_SAMPLES if quick else NUM_SAMPLES
    steps: list[Callable[[], dict[str, Any]]] = [
        *(
            lambda convention=convention: one_record(convention, *blocks, size)
            for convention in RidgeConvention
        ),
        lambda: batch(1 if quick else 3, blocks[1], size),
        lambda: one_logistic(2_000 if quick else NUM_SAMPLES),
    ]
    for step in steps:
        with console.status("timing deletions against retraining"):
            row = step()
        yield _told(row)
    for row in growth(quick=quick):
        yield _told(row)


def told_by_threads(row: dict[str, Any]) -> str:
    """Return the times of a deletion with each thread count, in words."""
    times = row["delete_seconds_by_threads"].items()
    return ", ".join(f"threads {threads}: {1e3 * value:.2f} ms" for threads, value in times)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{row['table']} ({row['convention']}): n={row['n']} d={row['d']} C={row['outputs']} "
        f"n_f={row['n_f']}: retraining {1e3 * row['retrain_seconds']:.1f} ms, deletion "
        f"{1e3 * row['delete_seconds']:.2f} ms, {row['speedup']:.0f}x faster "
        f"({told_by_threads(row)}); "
        f"load {row['load_average']:.1f}"
    )
    if "over_floor" in row:
        print(
            f"  best times: {row['speedup_of_best']:.0f}x; {row['over_floor']:.1f} times the bare "
            f"solves ({1e3 * row['floor_seconds']:.2f} ms); first deletion, without a factor: "
            f"{1e3 * row['first_seconds']:.1f} ms; rho_w {row['rho_w']:.1e}; peak "
            f"{row['peak_floats_per_d2']:.2f} d² floats, {row['peak_floats_per_d2_first']:.2f} "
            "first"
        )
    return row


def _row(rows: list[dict[str, Any]], table: str, convention: RidgeConvention) -> dict[str, Any]:
    return next(row for row in rows if row["table"] == table and row["convention"] == convention)


if __name__ == "__main__":
    main()
