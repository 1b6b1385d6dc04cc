"""Certified deletion from logistic models: do the bounds hold, how tight, how long do budgets last?

`python -m benchmarks.certificates [--json FILE] [--quick]`. Every deletion is that of
`core.pipeline.unlearn` with stored statistics; the truth beside it is computed in numpy from the
retain data, which the service never has. Data: random subsets of Fashion-MNIST features (digits
where its files are missing; rows say which), of the digits, and synthetic ReLU and Gaussian
features, one-vs-rest and binary; a fifth each with the noise of objective perturbation and with
weights that are no optimum.

Rows, by `kind`:
* `single`: one deletion of one record, 1, 5 or 10 %: bound, true residual, literature's bound.
* `control`: doing nothing, the certified step and retraining on the same retain set.
* `stream`: 50 deletions of one record each, with either anchor; every step is checked.
* `capacity`: deletions of one record until the bound exceeds what noise b ~ N(0, σ²) hides at
  ε = 1, δ = 1e-5.

The literature (Guo et al. 2020, arXiv:1911.03030, corollary 1) gets every honest advantage: its
bound ¼‖X_r‖₂‖v‖‖X_rv‖ with the exact spectral norm of the retain data, outputs in quadrature,
no round-off, and in streams the exact Hessian at the current weights, recomputed from the retain
data before every deletion, so that it has no drift at all; bounds add up, as there. Ours never sees
the data again. `capacity_gain` is the median with `Anchor.KEEP`, over all settings; a setting where
the literature's budget does not last for one deletion counts as if it did. KEEP is tried at sizes
5 % apart (its bound depends on the set alone, not on the order), and the last that fits counts.
"""

import argparse
import dataclasses
import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import expit
from torch import Tensor

from benchmarks import _data, _report
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy, covered_norm
from core.problem import LinearModel, Ridge, SampleSet
from core.results import Unlearned
from core.statistics import LogisticStatistics, collect_logistic
from core.training import Fitted, fit_logistic
from core.vocabulary import Anchor, Loss, Mechanism, Method, RidgeConvention, Task
from demo.data import Dataset, DatasetName

LAMBDAS = (1e-4, 1e-3, 1e-2)
SHARES = (0.01, 0.05, 0.1)  # beside one record
STREAM = 50
EPSILON, DELTA = 1.0, 1e-5
SIGMAS = (1.0, 10.0)
LITERATURE_LIPSCHITZ = 0.25
WIDTHS = (16, 32, 48)
COUNTS = (500, 1000, 2000)
# Lengths without a common factor, so that every source meets every way of training and outputs.
SOURCES = (*["fashion-mnist"] * 3, *["digits"] * 2, "synthetic ReLU", "synthetic Gaussian")
TRAINED = (*["optimum"] * 3, "perturbed", "sloppy")
Array = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        problems: Trained models for each λ; four deletions each.
        streams: Of `problems`, how many also meet a stream with either anchor.
        capacities: Of `problems`, how many spend a budget.
        sigmas: Noise of those budgets.
    """

    problems: int
    streams: int
    capacities: int
    sigmas: tuple[float, ...]


FULL = Effort(problems=90, streams=10, capacities=6, sigmas=SIGMAS)
QUICK = Effort(problems=12, streams=2, capacities=2, sigmas=SIGMAS[:1])


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A trained model with the data that the service does not have."""

    labels: Row
    data: SampleSet
    noise: Tensor
    model: LinearModel
    statistics: LogisticStatistics
    order: Tensor

    def rows(self, rows: Tensor) -> SampleSet:
        """Return some of the samples."""
        return _data.rows_of(self.data, rows)

    def gradient(self, weights: Tensor, kept: Tensor) -> Array:
        """Return ∇L(W; D_kept) from the data, in numpy."""
        x, y = self.data.features[kept].numpy(), self.data.targets[kept].numpy()
        w = weights.numpy()
        shift = self.model.ridge.shift(len(kept))
        return x.T @ (expit(x @ w) - y) + shift * w + self.noise.numpy()


# --- Problems ----------------------------------------------------------------------------------


def problem(strength: float, index: int) -> Case:
    """Return a trained model; its index in the round of all kinds is its seed."""
    generator = torch.Generator().manual_seed(1000 * index + LAMBDAS.index(strength))
    name, features, labels = _features(index, generator)
    classes = int(labels.max()) + 1
    if index % 2:
        targets = _data.one_hot(labels, classes)
    else:
        positive = torch.randperm(classes, generator=generator)[: 1 + index % (classes // 2)]
        targets = torch.isin(labels, positive).to(torch.float64)[:, None]
    ridge = Ridge(RidgeConvention.PER_SAMPLE, strength)
    shape = (features.shape[1], targets.shape[1])
    kind = TRAINED[index % len(TRAINED)]
    noise = torch.zeros(shape, dtype=torch.float64)
    if kind == "perturbed":
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    data = SampleSet(features, targets)
    weights = fit_logistic(data, ridge, objective_noise=noise).weights
    if kind == "sloppy":
        weights = weights + 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    collected = collect_logistic([data], weights, objective_noise=noise)
    return Case(
        labels={
            "dataset": name,
            "seed": index,
            "trained": kind,
            "lambda": strength,
            "n": len(features),
            "d": shape[0],
            "outputs": shape[1],
        },
        data=data,
        noise=noise,
        model=LinearModel(weights, ridge, len(features), 1.0, loss=Loss.LOGISTIC),
        statistics=collected,
        order=torch.randperm(len(features), generator=generator),
    )


def _features(index: int, generator: torch.Generator) -> tuple[str, Tensor, Tensor]:
    # Norms at most 1, as the literature has them.
    count, width = COUNTS[index % 3], WIDTHS[(index // 3) % 3]
    source = SOURCES[index % len(SOURCES)]
    if source == "fashion-mnist":
        return _subset(_data.narrow(_data.features(), width), count, generator)
    if source == "digits":
        return _subset(_data.features(DatasetName.DIGITS), min(count, 1400), generator)
    inputs = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    layer = torch.randn(12, width, generator=generator, dtype=torch.float64)
    teacher = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    labels = (inputs @ teacher + torch.randn(count, 6, generator=generator)).argmax(dim=1)
    hidden = inputs @ layer
    if source == "synthetic ReLU":
        hidden = torch.relu(hidden)
    lengths = torch.linalg.vector_norm(hidden, dim=1, keepdim=True).clamp(min=1e-9)
    return source, hidden / lengths, labels


def _subset(dataset: Dataset, count: int, generator: torch.Generator) -> tuple[str, Tensor, Tensor]:
    rows = torch.randperm(len(dataset.train_labels), generator=generator)[:count]
    return dataset.name, dataset.train_features[rows], dataset.train_labels[rows]


# --- Deletions ---------------------------------------------------------------------------------


def delete(
    model: LinearModel, collected: LogisticStatistics, forget: SampleSet, anchor: Anchor
) -> tuple[Unlearned, LinearModel, LogisticStatistics]:
    """Delete through the pipeline; return also what the next deletion starts from."""
    result = unlearn(
        model,
        forget,
        statistics=collected,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(method=Method.STORED, anchor=anchor),
    )
    if not isinstance(result, Unlearned) or not isinstance(result.statistics, LogisticStatistics):
        raise TypeError(f"the deletion was refused: {result}")
    after = dataclasses.replace(model, weights=result.weights, n_samples=result.n_samples)
    return result, after, result.statistics


def value_of(result: Unlearned, name: str) -> float:
    """Return a bound by name."""
    (value,) = (bound.value for bound in result.bounds if bound.name == name)
    assert value is not None  # noqa: S101 - of a certified deletion it has one
    return value


def literature_bound(change: Tensor, features: Tensor) -> float:
    """Return ¼‖X_r‖₂‖v‖‖X_rv‖, outputs in quadrature, from the retain data."""
    spectral = torch.linalg.eigvalsh(features.T @ features)[-1].sqrt()
    lengths = torch.linalg.vector_norm(change, dim=0)
    images = torch.linalg.vector_norm(features @ change, dim=0)
    return float(LITERATURE_LIPSCHITZ * spectral * torch.linalg.norm(lengths * images))


def singles(case: Case) -> Iterator[Row]:
    """Yield one deletion of each size, with its controls."""
    sizes = [1, *(round(share * len(case.data)) for share in SHARES)]
    for size in sizes:
        forgotten, kept = case.order[:size], case.order[size:]
        result, _, _ = delete(case.model, case.statistics, case.rows(forgotten), Anchor.KEEP)
        bound = value_of(result, "residual_gradient_norm")
        true = float(np.linalg.norm(case.gradient(result.weights, kept)))
        change = result.weights - case.model.weights
        literature = literature_bound(change, case.data.features[kept])
        retrained = fit_logistic(case.rows(kept), case.model.ridge, objective_noise=case.noise)
        distance = _distance(result.weights, retrained, case.model.ridge, len(kept))
        distance_bound = value_of(result, "distance_to_retraining")
        labels = case.labels | {"n_forget": size, "share": "one record" if size == 1 else None}
        if size > 1:
            labels["share"] = f"{100 * SHARES[sizes.index(size) - 1]:g} %"
        yield labels | {
            "kind": "single",
            "bound": bound,
            "true": true,
            "ratio": bound / true,
            "literature": literature,
            "literature_ratio": literature / true,
            "distance_bound": distance_bound,
            "distance": distance,
            "violated": true > bound or distance > distance_bound,
        }
        yield from _controls(case, labels, result.weights, retrained, kept)


def _distance(weights: Tensor, retrained: Fitted, ridge: Ridge, count: int) -> float:
    # Retraining ends within its own distance of the optimum: that much less is proved.
    own = retrained.gradient_norm_bound / ridge.shift(count)
    return max(float(torch.linalg.norm(weights - retrained.weights)) - own, 0.0)


def _controls(
    case: Case, labels: Row, weights: Tensor, retrained: Fitted, kept: Tensor
) -> Iterator[Row]:
    before = case.model.weights
    size_g = float(np.linalg.norm(case.gradient(before, kept)))
    size_w = float(torch.linalg.norm(before - retrained.weights))
    for name, found in (
        ("no-op", before),
        ("certified step", weights),
        ("retrain", retrained.weights),
    ):
        yield labels | {
            "kind": "control",
            "control": name,
            "rho_g": float(np.linalg.norm(case.gradient(found, kept))) / size_g,
            "rho_w": float(torch.linalg.norm(found - retrained.weights)) / size_w,
        }


def stream(case: Case, anchor: Anchor) -> Iterator[Row]:
    """Yield every step of 50 deletions of one record."""
    model, collected = case.model, case.statistics
    for step in range(STREAM):
        forget = case.rows(case.order[step : step + 1])
        result, model, collected = delete(model, collected, forget, anchor)
        bound = value_of(result, "residual_gradient_norm")
        true = float(np.linalg.norm(case.gradient(model.weights, case.order[step + 1 :])))
        yield case.labels | {
            "kind": "stream",
            "anchor": anchor.value,
            "deletions": step + 1,
            "bound": bound,
            "true": true,
            "ratio": bound / true,
            "violated": true > bound,
        }


# --- Budgets -----------------------------------------------------------------------------------


def capacity(case: Case, sigma: float) -> Row:
    """Count deletions of one record until a budget is spent, by either anchor and as published."""
    limit = covered_norm(Privacy(Mechanism.OBJECTIVE, EPSILON, DELTA, sigma))
    found = {
        "keep": _kept_capacity(case, limit),
        "move": _moved_capacity(case, limit),
        "literature": _literature_capacity(case, limit),
    }
    divisor = max(found["literature"], 1)
    return case.labels | {
        "kind": "capacity",
        "sigma": sigma,
        "limit": limit,
        **{f"deletions_{name}": count for name, count in found.items()},
        "capped": found["keep"] >= _most(case),
        "gain_keep": found["keep"] / divisor,
        "gain_move": found["move"] / divisor,
    }


def _most(case: Case) -> int:
    return len(case.data) // 2


def _kept_capacity(case: Case, limit: float) -> int:
    model, collected, gone = case.model, case.statistics, 0
    while gone < _most(case):
        step = min(max(gone // 20, 1), _most(case) - gone)
        forget = case.rows(case.order[gone : gone + step])
        result, model, collected = delete(model, collected, forget, Anchor.KEEP)
        if value_of(result, "residual_gradient_norm") > limit:
            break
        gone += step
    return gone


def _moved_capacity(case: Case, limit: float) -> int:
    model, collected = case.model, case.statistics
    for gone in range(_most(case)):
        forget = case.rows(case.order[gone : gone + 1])
        result, model, collected = delete(model, collected, forget, Anchor.MOVE)
        if value_of(result, "residual_gradient_norm") > limit:
            return gone
    return _most(case)


def _literature_capacity(case: Case, limit: float) -> int:
    # Guo et al., algorithm 2: Newton on the removed record's gradient, exact Hessian every time.
    weights, spent = case.model.weights, 0.0
    strength = case.model.ridge.strength
    for gone in range(_most(case)):
        x, y = (part[case.order[gone]] for part in (case.data.features, case.data.targets))
        kept = case.data.features[case.order[gone + 1 :]]
        forgotten = torch.outer(x, torch.sigmoid(x @ weights) - y) + strength * weights
        probability = torch.sigmoid(kept @ weights)
        change = torch.zeros_like(weights)
        for output in range(weights.shape[1]):
            share = (probability * (1 - probability))[:, output : output + 1]
            hessian = (kept * share).T @ kept
            hessian.diagonal().add_(case.model.ridge.shift(len(kept)))
            change[:, output] = torch.linalg.solve(hessian, forgotten[:, output])
        spent += literature_bound(change, kept)
        if spent > limit:
            return gone
        weights = weights + change
    return _most(case)


# --- All of it ---------------------------------------------------------------------------------


def run(effort: Effort) -> list[Row]:
    """Return all rows."""
    found: list[Row] = []
    settings = list(itertools.product(LAMBDAS, range(effort.problems)))
    for strength, index in track(settings, description="deletions"):
        case = problem(strength, index)
        found += singles(case)
        if index < effort.streams:
            for anchor in Anchor:
                found += stream(case, anchor)
        if index < effort.capacities:
            found += [capacity(case, sigma) for sigma in effort.sigmas]
    return found


def summarise(found: list[Row]) -> dict[str, Any]:
    """Return the summary."""
    single = _kind(found, "single")
    spent = _kind(found, "capacity")
    return {
        "cases": len(single),
        "violations": sum(row["violated"] for row in single),
        "stream_steps": len(_kind(found, "stream")),
        "stream_violations": sum(row["violated"] for row in _kind(found, "stream")),
        "ratio_median": _by_strength(single, "ratio"),
        "literature_ratio_median": _by_strength(single, "literature_ratio"),
        "capacity_gain": statistics.median(row["gain_keep"] for row in spent),
        "capacity_gain_least": min(row["gain_keep"] for row in spent),
        "capacity_gain_move": statistics.median(row["gain_move"] for row in spent),
    }


def _kind(found: list[Row], kind: str) -> list[Row]:
    return [row for row in found if row["kind"] == kind]


def _by_strength(found: list[Row], key: str) -> dict[str, float]:
    return {
        f"{strength:g}": statistics.median(row[key] for row in found if row["lambda"] == strength)
        for strength in LAMBDAS
    }


def _print(found: list[Row], summary: dict[str, Any]) -> None:
    print("λ        n_f         bound/true: median (least … most)   literature/true: median")
    for strength, share in itertools.product(LAMBDAS, _shares(found)):
        some = [
            row
            for row in _kind(found, "single")
            if row["lambda"] == strength and row["share"] == share
        ]
        ratios = [row["ratio"] for row in some]
        literature = statistics.median(row["literature_ratio"] for row in some)
        print(
            f"{strength:<8g} {share:11} {statistics.median(ratios):8.2f} "
            f"({min(ratios):.2f} … {max(ratios):.1f}) {literature:24.0f}"
        )
    print("\ncontrol          λ        ρ_g median   ρ_w median")
    for name, strength in itertools.product(("no-op", "certified step", "retrain"), LAMBDAS):
        some = [
            row
            for row in _kind(found, "control")
            if row["control"] == name and row["lambda"] == strength
        ]
        middle = [statistics.median(row[key] for row in some) for key in ("rho_g", "rho_w")]
        print(f"{name:16} {strength:<8g} {middle[0]:10.2e} {middle[1]:12.2e}")
    print("\nstreams: bound/true after 1, 10 and 50 deletions, median")
    for anchor, strength in itertools.product(Anchor, LAMBDAS):
        middle = [
            statistics.median(
                row["ratio"]
                for row in _kind(found, "stream")
                if (row["anchor"], row["lambda"], row["deletions"]) == (anchor, strength, step)
            )
            for step in (1, 10, STREAM)
        ]
        print(f"{anchor:6} {strength:<8g} " + "  ".join(f"{ratio:.1f}" for ratio in middle))
    print(f"\nbudget at ε = {EPSILON:g}, δ = {DELTA:g}: deletions keep / move / literature")
    for row in _kind(found, "capacity"):
        print(
            f"{row['dataset'][:30]:30} C={row['outputs']:<2} λ={row['lambda']:<7g} "
            f"σ={row['sigma']:<4g} {row['deletions_keep']:5}{'+' if row['capped'] else ' '} / "
            f"{row['deletions_move']:4} / {row['deletions_literature']:4}"
        )
    print()
    for key, value in summary.items():
        print(f"{key}: {value}")


def _shares(found: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["share"] for row in _kind(found, "single")))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="fewer models: within 50 s")
    arguments = parser.parse_args()
    # Matrices this small are slower on several threads.
    torch.set_num_threads(1)
    found = run(QUICK if arguments.quick else FULL)
    summary = summarise(found)
    _print(found, summary)
    _report.write(arguments.json, found, summary)


if __name__ == "__main__":
    main()
