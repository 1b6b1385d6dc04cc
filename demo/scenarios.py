"""The five requests of the demo."""

import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.vocabulary import Loss, Method
from demo.data import Dataset, DatasetName, reduce_by_pca
from demo.training import TrainedModel, train

_RIDGE_STRENGTH = {DatasetName.DIGITS: 3e-3, DatasetName.FASHION_MNIST: 1e-3}
_PAPER_DIMENSION = 20
_PAPER_PERTURBATIONS = 500
_CHOICE_SEED = 11


@dataclass(frozen=True, slots=True)
class Registration:
    """A model as it is registered: once with statistics, once without."""

    name: str
    trained: TrainedModel
    with_statistics: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """One unlearning request.

    Attributes:
        name: Stable name in the JSON report.
        title: What the table calls it.
        registration: The model that it is sent to.
        forget: Indices of the training samples to forget, int64.
        method: Method asked for; the service's default if None.
        options: Further fields of the request.
    """

    name: str
    title: str
    registration: Registration
    forget: Tensor
    method: Method | None = None
    options: dict[str, object] = field(default_factory=dict)

    def request_body(self, model_id: str) -> str:
        """Return the JSON part of the request."""
        body: dict[str, object] = {
            "model_id": model_id,
            "subject_reference": f"demo-{self.name}",
            **self.options,
        }
        if self.method is not None:
            body["method"] = self.method.value
        return json.dumps(body)


def build(dataset: Dataset, name: DatasetName) -> list[Scenario]:
    """Train the models and choose what each request forgets."""
    strength = _RIDGE_STRENGTH[name]
    full = train(dataset, strength)
    reduced = reduce_by_pca(dataset, _PAPER_DIMENSION)
    small = train(reduced, strength)
    logistic = train(reduced, strength, Loss.LOGISTIC)
    n = len(dataset.train_labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(_CHOICE_SEED))
    tenth = order[: n // 10]
    with_statistics = Registration(f"{name} with statistics", full, with_statistics=True)
    bare = Registration(f"{name} without statistics", full, with_statistics=False)
    certified = Registration(f"{name} logistic", logistic, with_statistics=True)
    paper = Registration(f"{name} for paper-sdp", small, with_statistics=False)
    return [
        Scenario("one-record-exact", "one record, statistics stored", with_statistics, order[-1:]),
        Scenario(
            "ten-percent-estimated",
            "10 % random, no statistics",
            bare,
            tenth,
            Method.FORGET_CURVATURE,
        ),
        Scenario("one-record-refused", "one record, no statistics", bare, order[-2:-1]),
        Scenario(
            "ten-percent-paper-sdp",
            f"10 % random, the paper's program, d={_PAPER_DIMENSION}",
            paper,
            tenth,
            Method.PAPER_SDP,
            {"perturbation": {"count": _PAPER_PERTURBATIONS}},
        ),
        Scenario(
            "one-record-certified",
            f"one record, logistic loss, statistics stored, d={_PAPER_DIMENSION}",
            certified,
            order[-3:-2],
        ),
    ]
