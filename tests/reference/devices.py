"""One deletion by every method and loss, to be run on one device and on another."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from core.options import PerturbationOptions, UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy, sigma_for
from core.problem import LinearModel, Ridge, SampleSet, Surrogate
from core.statistics import collect, collect_logistic
from core.training import fit_logistic
from core.vocabulary import Loss, Mechanism, Method, PerturbationLaw, RidgeConvention, Task
from tests.reference import ridge as reference

N, D, C, FORGET, HOLDOUT = 3000, 6, 3, 600, 90
RIDGE = Ridge(RidgeConvention.PER_SAMPLE, 1e-2)
NOISE_KEY = bytes(range(32))


@dataclasses.dataclass(frozen=True)
class Case:
    """What `unlearn` is given; tensors may be moved."""

    model: LinearModel
    forget: SampleSet
    statistics: Any
    surrogate: Surrogate
    holdout: SampleSet
    options: UnlearningOptions

    def run(self):
        return unlearn(
            self.model,
            self.forget,
            statistics=self.statistics,
            surrogate=self.surrogate,
            holdout=self.holdout,
            task=Task.CLASSIFICATION,
            options=self.options,
            noise_key=NOISE_KEY,
        )


def _paper(solver: str, law: PerturbationLaw) -> UnlearningOptions:
    return UnlearningOptions(
        Method.PAPER_SDP, solver=solver, perturbation=PerturbationOptions(law=law)
    )


# A case whose name ends so has a stored factor, and deletes few enough samples to use it.
PREPARED = "-factor"
CASES = {
    "stored-squared": (Loss.SQUARED, UnlearningOptions(Method.STORED)),
    "stored-factor": (Loss.SQUARED, UnlearningOptions(Method.STORED)),
    "stored-logistic": (Loss.LOGISTIC, UnlearningOptions(Method.STORED)),
    "surrogate-squared": (Loss.SQUARED, UnlearningOptions(Method.SURROGATE)),
    "surrogate-logistic": (Loss.LOGISTIC, UnlearningOptions(Method.SURROGATE)),
    "forget-curvature-squared": (Loss.SQUARED, UnlearningOptions(Method.FORGET_CURVATURE)),
    "forget-curvature-logistic": (Loss.LOGISTIC, UnlearningOptions(Method.FORGET_CURVATURE)),
    "paper-sdp-own": (Loss.SQUARED, _paper("FIRST_ORDER", PerturbationLaw.ANTITHETIC)),
    "paper-sdp-gaussian": (Loss.SQUARED, _paper("FIRST_ORDER", PerturbationLaw.GAUSSIAN)),
    "paper-sdp-clarabel": (Loss.SQUARED, _paper("CLARABEL", PerturbationLaw.ANTITHETIC)),
}


def build(name: str, *, privacy: bool = False) -> Case:
    """Draw data, train on it and collect statistics, on the CPU."""
    loss, options = CASES[name]
    prepared = name.endswith(PREPARED)
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(N + HOLDOUT, D, generator=generator, dtype=torch.float64)
    x /= x.norm(dim=1).max()
    teacher = torch.randn(D, C, generator=generator, dtype=torch.float64)
    labels = (x @ teacher).argmax(dim=1)
    data = SampleSet(x, torch.nn.functional.one_hot(labels, C).to(torch.float64))
    train, holdout = _rows(data, slice(0, N)), _rows(data, slice(N, None))
    if loss is Loss.SQUARED:
        found = reference.retrain(train.features.numpy(), train.targets.numpy(), RIDGE.shift(N))
        weights, statistics = torch.from_numpy(found), collect([train])
    else:
        weights = fit_logistic(train, RIDGE).weights
        statistics = collect_logistic([train], weights)
    if prepared:
        statistics = statistics.prepare(RIDGE)
    hidden = Privacy(Mechanism.OUTPUT, 1.0, 1e-4, sigma_for(1.0, 1e-4, 1.0)) if privacy else None
    return Case(
        LinearModel(weights, RIDGE, N, 1.0, loss=loss, privacy=hidden),
        _rows(train, slice(0, 2 if prepared else FORGET)),
        statistics,
        Surrogate(holdout.features),
        holdout,
        options,
    )


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor in a result."""
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def _rows(data: SampleSet, rows: slice) -> SampleSet:
    return SampleSet(data.features[rows], data.targets[rows])
