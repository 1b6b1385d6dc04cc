"""Deletion from the last layers of networks, against retraining their linear part from the data.

`python -m benchmarks.mixed_linear [--json FILE] [--quick]`: Fashion-MNIST. One split of it trains a
network (public, here), another the linear part in the parameters of its last two layers, squared
loss with a ridge: D ≈ 5·10³ and 5·10⁴ (`mlp`), and 10⁶ (`small-cnn`). λ is relative to the mean
squared length of a row of J, as if rows had length 1. Three seeds, each with an initialisation,
splits and forget sets of its own.

Every deletion is a whole `core.linearised.pipeline.unlearn`, gates, bounds and scores included.
Where a gate refuses, `refused` says why, and the row shows what the step would have been, without a
time. Retraining is conjugate gradients from zero on the retain set, to a gradient of 1e-8 of the
first one, timed; the reference is brought on to 1e-10. Truth (ρ_w, ρ_g, gap) is measured on the
retain data, which no deletion sees.

Rows, by `table`: `deletions` (with the controls `no-op` and `retrained`), `training` and `memory`.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TimeElapsedColumn
from torch import Tensor

from benchmarks import _data, _report
from benchmarks._networks import Case, Size, Trained, build, train
from core.linearised.architectures import NetworkSpec, feature_shape, num_parameters
from core.linearised.forget_curvature import ForgetCurvature
from core.linearised.linearisation import Linearisation
from core.linearised.networks import initialise, load_network
from core.linearised.options import HeadSolver
from core.linearised.pipeline import unlearn
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.linearised.rows import MOST_PARAMETERS, collect_gram, row_ridge
from core.linearised.sketch import SketchStatistics, collect_sketch, public_basis
from core.linearised.sketched_curvature import SketchedCurvature
from core.options import GatePolicy, UnlearningOptions
from core.problem import Ridge
from core.results import AnyStatistics, Refused, Unlearned
from core.statistics import StoredStatistics
from core.vocabulary import Method, Task
from demo.data import Images, load_images

SEEDS = (0, 1, 2)
PUBLIC_SAMPLES = 2000
ERROR_PROBES = 80
_BYTES = 8
Row = dict[str, Any]

MLP = NetworkSpec("mlp", (1, 28, 28), 10, layers=2, widths=(64,))
DEEP_MLP = NetworkSpec("mlp", (1, 28, 28), 10, layers=2, widths=(64, 64))
SMALL_MLP = NetworkSpec("mlp", (1, 28, 28), 10, layers=2, widths=(64, 16))
CNN = NetworkSpec("small-cnn", (1, 28, 28), 10, layers=2, widths=(320,), channels=(32, 64))


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of one size.

    Attributes:
        size: Which network.
        ridges: λ, relative.
        shares: Of the user split that are forgotten, in percent; 0 is one record.
        sketch_shares: Those of them that are forgotten by sketches.
        ranks: Of sketches along random directions.
        basis_ranks: Of sketches along directions from the core split.
        gram: Whether a Gram matrix is stored.
        dear_ranks: Ranks that only the first seed is measured at, and only with `--dear`: a sketch
            of 9 GB, twice in memory.
    """

    size: Size
    ridges: tuple[float, ...]
    shares: tuple[float, ...]
    sketch_shares: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    basis_ranks: tuple[int, ...] = ()
    gram: bool = False
    dear_ranks: tuple[int, ...] = ()


PLANS = (
    Plan(Size("D=5k", DEEP_MLP, 10_000, 3_000, 10_000), (1e-3,), (0, 1, 10, 20), gram=True),
    Plan(
        Size("D=50k", MLP, 10_000, 5_000, 10_000),
        (1e-3, 1e-2),
        (0, 10, 20),
        sketch_shares=(0, 10, 20),
        ranks=(64, 256, 1024),
        basis_ranks=(64, 256, 1024),
    ),
    Plan(
        Size("D=1M", CNN, 5_000, 2_000, 5_000),
        (1e-2,),
        (0, 10, 20),
        sketch_shares=(0, 10),
        ranks=(64, 256),
        basis_ranks=(64, 256),
        dear_ranks=(1024,),
    ),
)
QUICK_PLANS = (
    Plan(Size("D=1k", SMALL_MLP, 2_000, 1_000, 2_000, 1), (1e-3,), (0, 10), gram=True),
    Plan(
        Size("D=50k", MLP, 2_000, 1_000, 2_000, 1),
        (1e-2,),
        (0, 10),
        sketch_shares=(0, 10),
        ranks=(64, 256),
        basis_ranks=(64,),
    ),
    Plan(Size("D=1M", CNN, 500, 200, 500, 1), (1e-1,), (10,)),
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Deletion:
    """One forget set of a trained case, and what retraining without it gives."""

    case: Case
    relative: float
    ridge: Ridge
    whole: Trained
    forget: FeatureSamples
    kept: FeatureSamples
    share: float
    retrained: Trained
    noop_distance: float
    forget_gradient_norm: float
    accuracy: float

    @classmethod
    def of(cls, case: Case, relative: float, whole: Trained, share: float) -> "Deletion":
        """Draw a forget set and retrain without it."""
        ridge = case.ridge(relative)
        count = max(1, round(share / 100 * len(case.data)))
        generator = torch.Generator().manual_seed(case.seed + 1000)
        order = torch.randperm(len(case.data), generator=generator)
        forget, kept = case.data.take(order[:count]), case.data.take(order[count:])
        retrained = train(case, kept, ridge)
        gradient = case.model(whole.weights, ridge).data_gradient(forget)
        gradient.add_(whole.weights, alpha=ridge.forgotten_shift(count))
        return cls(
            case,
            relative,
            ridge,
            whole,
            forget,
            kept,
            share,
            retrained,
            float((whole.weights - retrained.weights).norm()),
            float(gradient.norm()),
            case.accuracy(retrained.weights),
        )

    @property
    def name(self) -> Row:
        """Return what every row says of its deletion."""
        return {
            "table": "deletions",
            "size": self.case.size.name,
            "D": self.case.linearisation.num_parameters,
            "n": len(self.case.data),
            "lambda": self.relative,
            "seed": self.case.seed,
            "forget_set": "one record" if self.share == 0 else f"{self.share:g} %",
            "n_forget": len(self.forget),
            "retrain_seconds": self.retrained.seconds,
        }

    def judge(self, weights: Tensor, residual_bound: float | None = None) -> Row:
        """Measure weights against retraining, on the retain data."""
        residual = float(self.case.retain_gradient(weights, self.kept, self.ridge).norm())
        accuracy = self.case.accuracy(weights)
        return {
            "rho_w": float((weights - self.retrained.weights).norm()) / self.noop_distance,
            "rho_g": residual / self.forget_gradient_norm,
            "test": accuracy,
            "gap_points": self.accuracy - accuracy,
            "bound_over_truth": None if residual_bound is None else residual_bound / residual,
            "bound_over_forget_gradient": None
            if residual_bound is None
            else residual_bound / self.forget_gradient_norm,
        }

    def ask(
        self, method: Method, statistics: AnyStatistics | None, **options: Any
    ) -> tuple[Unlearned | Refused, float]:
        """Ask the pipeline, and time it."""
        model = self.case.model(self.whole.weights, self.ridge)
        started = time.perf_counter()
        answer = unlearn(
            model,
            self.forget,
            statistics=statistics,
            task=Task.CLASSIFICATION,
            options=UnlearningOptions(method, seed=self.case.seed),
            **options,
        )
        return answer, time.perf_counter() - started


# --- One deletion --------------------------------------------------------------------------------


def controls(deletion: Deletion) -> Iterator[Row]:
    """Yield doing nothing and retraining."""
    for method, weights in (
        ("no-op", deletion.whole.weights),
        ("retrained", deletion.retrained.weights),
    ):
        row = {"method": method, "estimator": method, "refused": None}
        yield deletion.name | row | deletion.judge(weights)


def by_gram(deletion: Deletion, gram: AnyStatistics) -> Row:
    """Delete exactly."""
    answer, seconds = deletion.ask(Method.STORED, gram)
    return _row(deletion, "stored", answer, seconds, otherwise=lambda: deletion.whole.weights)


def by_sketch(deletion: Deletion, sketch: SketchStatistics) -> Row:
    """Delete by a sketch; what the gate refuses is computed beside it."""
    answer, seconds = deletion.ask(Method.SKETCH, sketch)

    def refused_step() -> Tensor:
        rest = sketch.downdate(deletion.case.linearisation, deletion.forget)
        step, _ = SketchedCurvature.of(rest, deletion.ridge).solve(-rest.gradient(deletion.ridge))
        return deletion.whole.weights + step

    row = _row(deletion, "stored-sketch", answer, seconds, otherwise=refused_step)
    return row | {
        "rank": sketch.rank,
        "basis": "random" if sketch.basis is None else "public",
        "estimator": f"sketch {sketch.rank}{'' if sketch.basis is None else ', public basis'}",
    }


def by_forget_set(deletion: Deletion, solver: HeadSolver) -> Row:
    """Delete by the forget set's own curvature."""
    answer, seconds = deletion.ask(Method.FORGET_CURVATURE, None, solver=solver)

    def refused_step() -> Tensor:
        linearisation, forget = deletion.case.linearisation, deletion.forget
        model = deletion.case.model(deletion.whole.weights, deletion.ridge)
        gradient = model.data_gradient(forget)
        gradient.add_(model.weights, alpha=deletion.ridge.forgotten_shift(len(forget)))
        kept = len(deletion.kept)
        curvature = ForgetCurvature.of(
            linearisation, forget.features, kept, deletion.ridge.shift(kept), solver=solver
        )
        return model.weights + curvature.solve(gradient).change

    name = "diagonal" if solver is HeadSolver.DIAGONAL else "forget-curvature"
    return _row(deletion, name, answer, seconds, otherwise=refused_step)


def _row(
    deletion: Deletion,
    method: str,
    answer: Unlearned | Refused,
    seconds: float,
    *,
    otherwise: Callable[[], Tensor],
) -> Row:
    row = deletion.name | {"method": method, "estimator": method}
    if isinstance(answer, Refused):
        failed = answer.gates[-1]
        return (
            row
            | {"refused": answer.cause.value, "gate": failed.name, "gate_value": failed.value}
            | deletion.judge(otherwise())
        )
    certifying = [bound.value for bound in answer.bounds if bound.certifies]
    estimate = [b.value for b in answer.bounds if b.name == "cross_fitted_residual"]
    return (
        row
        | {
            "refused": None,
            "seconds": seconds,
            "speedup": deletion.retrained.seconds / seconds,
            "solver": answer.solvers[-1].name,
            "solver_figures": dict(answer.solvers[-1].figures),
            "rho_g_estimate": estimate[0] if estimate else None,
        }
        | deletion.judge(answer.weights, certifying[0] if certifying else None)
    )


# --- One network ---------------------------------------------------------------------------------


def measure(plan: Plan, images: Images, seed: int, *, dear: bool = False) -> Iterator[Row]:
    """Yield the rows of one size and seed."""
    case = build(plan.size, images, seed)
    gram = _gram(case, plan.ridges[0]) if plan.gram else None
    trained = {relative: train(case, case.data, case.ridge(relative)) for relative in plan.ridges}
    yield from (_training(case, relative, whole) for relative, whole in trained.items())
    deletions = [
        Deletion.of(case, relative, whole, share)
        for relative, whole in trained.items()
        for share in plan.shares
    ]
    for deletion in deletions:
        yield from controls(deletion)
        yield by_forget_set(deletion, HeadSolver.AUTO)
        if gram is not None:
            yield by_gram(deletion, gram)
        if plan.gram and deletion.share == max(plan.shares):
            yield by_forget_set(deletion, HeadSolver.DIAGONAL)
    yield from _sketched(plan, case, deletions, dear=dear)


def _gram(case: Case, relative: float) -> StoredStatistics:
    # With its factor, which a service has built at the deletion before.
    outputs = case.linearisation.num_outputs
    gram = collect_gram(case.linearisation, [case.data])
    return gram.prepare(row_ridge(case.ridge(relative), outputs))


def _training(case: Case, relative: float, whole: Trained) -> Row:
    return {
        "table": "training",
        "size": case.size.name,
        "seed": case.seed,
        "lambda": relative,
        "seconds": whole.seconds,
        "iterations": whole.iterations,
        "gradient_norm": whole.gradient_norm,
        "test": case.accuracy(whole.weights),
        "test_of_centre": case.accuracy(torch.zeros_like(whole.weights)),
        "row_square": case.row_square,
    }


def _sketched(plan: Plan, case: Case, deletions: list[Deletion], *, dear: bool) -> Iterator[Row]:
    random_ranks = (*plan.ranks, *plan.dear_ranks) if dear else plan.ranks
    for basis, ranks in ((False, random_ranks), (True, plan.basis_ranks)):
        if not ranks:
            continue
        whole = _collect(case, max(ranks), public=basis)
        for rank in ranks:
            sketch = whole if rank == whole.rank else _of_rank(whole, rank)
            for deletion in (each for each in deletions if each.share in plan.sketch_shares):
                at = dataclasses.replace(
                    sketch,
                    anchor=deletion.whole.weights,
                    data_gradient=_data_gradient(deletion),
                )
                yield by_sketch(deletion, at)


def _collect(case: Case, rank: int, *, public: bool) -> SketchStatistics:
    basis = None
    if public:
        basis = public_basis(
            case.linearisation, case.public[:PUBLIC_SAMPLES], rank=rank, seed=case.seed + 7
        )
    return collect_sketch(
        case.linearisation,
        [case.data],
        weights=case.data.features.new_zeros(case.linearisation.num_parameters, 1),
        rank=rank,
        seed=case.seed + 17,
        error_probes=ERROR_PROBES,
        basis=basis,
    )


def _of_rank(sketch: SketchStatistics, rank: int) -> SketchStatistics:
    # Directions are numbered, so that the first ones alone are the sketch of that rank.
    kept = torch.cat([torch.arange(rank), torch.arange(sketch.rank, len(sketch.sketch))])
    return dataclasses.replace(
        sketch,
        sketch=sketch.sketch[kept],
        core=sketch.core[kept][:, kept],
        basis=None if sketch.basis is None else sketch.basis[:rank],
    )


def _data_gradient(deletion: Deletion) -> Tensor:
    # Sums over the samples do not depend on the weights, but the gradient does.
    model = deletion.case.model(deletion.whole.weights, deletion.ridge)
    return model.data_gradient(deletion.case.data)


# --- Memory --------------------------------------------------------------------------------------


def measure_resident(which: str) -> float:
    """Return the growth of the peak memory by a deletion, in units of D float64; D ≈ 10⁶.

    Few samples, so that a batch hardly counts.
    """
    solver = HeadSolver.DUAL if which == "dual" else HeadSolver.CONJUGATE_GRADIENTS
    count = 200 if which == "dual" else 20
    # The first calls map code and allocate buffers, whatever D is.
    _deletion_of_shape(SMALL_MLP, count, solver)()
    run = _deletion_of_shape(CNN, count, solver)
    return _report.resident_growth(run) / (_BYTES * num_parameters(CNN))


def _deletion_of_shape(spec: NetworkSpec, count: int, solver: HeadSolver) -> Callable[[], None]:
    # What it takes depends on shapes only, so that nothing has to be trained.
    linearisation = Linearisation(load_network(spec, initialise(spec, 0)))
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(count, *feature_shape(spec), generator=generator, dtype=torch.float64)
    targets = torch.eye(10, dtype=torch.float64)[torch.arange(count) % 10]
    weights = torch.zeros(num_parameters(spec), 1, dtype=torch.float64)
    norm = float(linearisation.norms(features).max())
    model = MixedLinearModel(linearisation, weights, _data.per_sample(norm**2), 50 * count, norm)
    options = UnlearningOptions(Method.FORGET_CURVATURE, gate=GatePolicy(skew_level=0.0))

    def run() -> None:
        forget = FeatureSamples(features, targets)
        task = Task.CLASSIFICATION
        answer = unlearn(model, forget, task=task, options=options, solver=solver)
        if isinstance(answer, Refused):
            raise TypeError(f"the deletion that is measured was refused: {answer.detail}")

    return run


# --- The summary ---------------------------------------------------------------------------------


_PLACE = ("size", "lambda", "estimator", "forget_set")


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Return the figures that stand in the issue, and those that explain them."""
    found = [row for row in rows if row["table"] == "deletions"]
    answered = [row for row in found if row.get("seconds") is not None]
    sketched = [row for row in found if row["method"] == "stored-sketch"]
    one_record = [row for row in sketched if row["forget_set"] == "one record"]
    estimates = [row for row in found if row["method"] in {"forget-curvature", "stored-sketch"}]
    large = [row for row in estimates if row["forget_set"] in {"10 %", "20 %"}]
    done = [row for row in large if row["refused"] is None]
    certified = [row for row in found if row.get("bound_over_truth") is not None]
    of_sketches = [row for row in certified if row["method"] == "stored-sketch"]
    best = _medians(one_record, "rho_w", "size", "lambda", "estimator")
    speedups = _medians(answered, "speedup", *_PLACE)
    memory = {row["solver"]: row["floats_per_D"] for row in rows if row["table"] == "memory"}
    return {
        "rho_w_exact_max": _largest(row["rho_w"] for row in found if row["method"] == "stored"),
        "gap_points_max": _largest(_medians(done, "gap_points", *_PLACE).values()),
        "sketch_one_record_rho_w": _worst_of_best(one_record),
        "speedup_retrain": _worst_speedup(estimates),
        "peak_floats_per_D": memory.get("conjugate-gradients"),
        "peak_floats_per_D_dual": memory.get("dual"),
        "gap_points_max_with_refused": _largest(_medians(large, "gap_points", *_PLACE).values()),
        "noop_gap_points_max": _largest(
            row["gap_points"] for row in found if row["method"] == "no-op"
        ),
        "bounds": len(certified),
        "violations": sum(row["bound_over_truth"] < 1 for row in certified),
        "sketch_bound_over_truth_median": _median(row["bound_over_truth"] for row in of_sketches),
        "sketch_bound_over_truth_least": min(
            (row["bound_over_truth"] for row in of_sketches), default=None
        ),
        "refused": _shares(estimates, *_PLACE),
        "sketch_one_record_rho_w_by": best,
        "rho_w_by": _medians(estimates, "rho_w", *_PLACE),
        "speedup_by": speedups,
    }


def _worst_of_best(rows: list[Row]) -> float | None:
    # At each size and ridge the best sketch there is, in the median; the worst of these.
    best: dict[tuple[str, float], float] = {}
    for (size, relative, _), group in _groups(rows, "size", "lambda", "estimator").items():
        found = statistics.median(row["rho_w"] for row in group)
        best[size, relative] = min(found, best.get((size, relative), found))
    return max(best.values(), default=None)


def _worst_speedup(rows: list[Row]) -> float | None:
    # At each size and forget set the fastest way that most seeds were not refused; the slowest of
    # these. A Gram matrix is for exactness: where D² numbers fit, retraining takes a second or two.
    fastest: dict[tuple[str, str], float] = {}
    large = [row for row in rows if row["D"] > MOST_PARAMETERS]
    for (size, share, _, _), group in _groups(
        large, "size", "forget_set", "estimator", "lambda"
    ).items():
        answered = [row["speedup"] for row in group if row["refused"] is None]
        if 2 * len(answered) > len(group):
            found = statistics.median(answered)
            fastest[size, share] = max(found, fastest.get((size, share), found))
    return min(fastest.values(), default=None)


def _groups(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _medians(rows: Iterable[Row], figure: str, *keys: str) -> dict[str, float]:
    return {
        ", ".join(map(str, place)): statistics.median(row[figure] for row in group)
        for place, group in _groups(rows, *keys).items()
    }


def _shares(rows: Iterable[Row], *keys: str) -> dict[str, float]:
    return {
        ", ".join(map(str, place)): share
        for place, group in _groups(rows, *keys).items()
        if (share := sum(row["refused"] is not None for row in group) / len(group)) > 0
    }


def _largest(values: Iterable[float]) -> float | None:
    return max(values, default=None)


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="one seed, less data, lower ranks")
    parser.add_argument("--dear", action="store_true", help="rank 1,024 at D ≈ 10⁶ too, one seed")
    parser.add_argument("--resident", choices=("cg", "dual"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident is not None:
        print(json.dumps(measure_resident(options.resident)))
        return
    images = load_images()
    plans, seeds = (QUICK_PLANS, SEEDS[:1]) if options.quick else (PLANS, SEEDS)
    rows: list[Row] = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn()) as bars:
        task = bars.add_task("", total=len(plans) * len(seeds))
        for plan in plans:
            for seed in seeds:
                bars.update(task, description=f"{plan.size.name}, seed {seed}")
                rows += measure(plan, images, seed, dear=options.dear and seed == seeds[0])
                bars.advance(task)
    for which, solver in (("cg", "conjugate-gradients"), ("dual", "dual")):
        floats = _report.in_fresh_process("benchmarks.mixed_linear", which)
        rows.append({"table": "memory", "solver": solver, "floats_per_D": floats})
    summary = summarise(rows)
    for name, value in summary.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
    _report.write(options.json, rows, summary)


if __name__ == "__main__":
    main()
