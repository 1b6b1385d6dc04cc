"""Heads of torch as registrations, checked by retraining with numpy and L-BFGS."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from app.registry.schemas import Manifest
from core.errors import InvalidOptionError, InvalidTensorError
from core.options import UnlearningOptions
from core.pipeline import unlearn
from core.privacy import Privacy
from core.problem import Ridge, SampleSet
from core.registration import from_torch
from core.results import Unlearned
from core.statistics import LogisticStatistics, collect
from core.training import fit_logistic
from core.vocabulary import Loss, Mechanism, Method, RidgeConvention, Task
from tests.reference import ridge as reference

N, D, C, FORGET = 200, 5, 3, 20
GENERATOR = torch.Generator().manual_seed(7)
X = torch.randn(N, D, generator=GENERATOR, dtype=torch.float64) / 3
LABELS = (X @ torch.randn(D, C, generator=GENERATOR, dtype=torch.float64)).argmax(dim=1)
ROWS = nn.functional.one_hot(LABELS, C).to(torch.float64)
PER_SAMPLE = Ridge(RidgeConvention.PER_SAMPLE, 1e-2)


def loader(features=X, targets=LABELS, size=64):
    return DataLoader(TensorDataset(features, targets), batch_size=size)


def with_ones(features):
    return np.hstack([features, np.ones((len(features), 1))])


def head(weights, *, bias, dtype=torch.float64) -> nn.Linear:
    """Return the module whose weights, and bias as their last row, are these."""
    weights = torch.as_tensor(weights)
    module = nn.Linear(weights.shape[0] - bias, weights.shape[1], bias=bias, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(weights[: module.in_features].T)
        if bias:
            module.bias.copy_(weights[-1])
    return module


def trained_squared(ridge=PER_SAMPLE, *, bias=True):
    x = with_ones(X.numpy()) if bias else X.numpy()
    return head(reference.retrain(x, ROWS.numpy(), ridge.shift(N)), bias=bias)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("convention", list(RidgeConvention))
def test_deletion_equals_retraining_on_the_rest(bias, convention):
    ridge = Ridge(convention, 0.05)
    module = trained_squared(ridge, bias=bias)
    registration = from_torch(module, loader(), name="m", loss="squared", ridge=ridge)
    result = unlearn(
        registration.model,
        registration.samples(X[:FORGET], LABELS[:FORGET]),
        statistics=registration.statistics,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(Method.STORED),
    )
    assert isinstance(result, Unlearned)
    x = with_ones(X.numpy()) if bias else X.numpy()
    retrained = reference.retrain(x[FORGET:], ROWS[FORGET:].numpy(), ridge.shift(N - FORGET))
    np.testing.assert_allclose(result.weights.numpy(), retrained, rtol=1e-9, atol=1e-12)


def test_the_service_accepts_the_manifest():
    registration = from_torch(
        trained_squared(), loader(), name="head", loss="squared", ridge=PER_SAMPLE
    )
    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])
    assert (manifest.num_features, manifest.num_outputs) == (D + 1, C)
    assert (manifest.loss, manifest.task) == (Loss.SQUARED, Task.CLASSIFICATION)
    assert manifest.feature_norm_bound >= float(X.norm(dim=1).max())


@pytest.mark.parametrize("size", [1, 64, N])
def test_the_size_of_the_batches_does_not_matter(size):
    registration = from_torch(
        trained_squared(), loader(size=size), name="m", loss="squared", ridge=PER_SAMPLE
    )
    expected = collect([SampleSet(torch.hstack([X, torch.ones(N, 1)]), ROWS)])
    torch.testing.assert_close(registration.statistics.gram, expected.gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(registration.statistics.cross, expected.cross, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layout", ["labels", "rows", "narrow-rows"])
def test_labels_and_one_hot_rows_mean_the_same(layout):
    targets = {"labels": LABELS, "rows": ROWS, "narrow-rows": ROWS.to(torch.float32)}[layout]
    plain = from_torch(trained_squared(), loader(), name="m", loss="squared", ridge=PER_SAMPLE)
    other = from_torch(
        trained_squared(), loader(targets=targets), name="m", loss="squared", ridge=PER_SAMPLE
    )
    assert other.files() == plain.files()


def test_regression_takes_numbers():
    targets = X @ torch.ones(D, dtype=torch.float64)
    module = head(
        reference.retrain(X.numpy(), targets[:, None].numpy(), PER_SAMPLE.shift(N)), bias=False
    )
    registration = from_torch(
        module,
        loader(targets=targets),
        name="m",
        loss="squared",
        ridge=PER_SAMPLE,
        task=Task.REGRESSION,
    )
    assert registration.manifest["task"] == "regression"
    with pytest.raises(InvalidTensorError, match="none of the classes"):
        from_torch(module, loader(targets=targets), name="m", loss="squared", ridge=PER_SAMPLE)


def train(module, targets, ridge):
    """Minimise the objective with torch's own optimiser, as a user would."""
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=5000,
        tolerance_grad=1e-13,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(module(X), targets, reduction="sum")
        penalty = sum(part.square().sum() for part in module.parameters())
        value = value + 0.5 * ridge.shift(N) * penalty
        value.backward()
        return value

    optimizer.step(closure)
    return module


@pytest.mark.parametrize("outputs", [1, C])
def test_a_logistic_head_trained_by_torch_is_registered(outputs):
    targets = ROWS[:, :outputs]
    module = train(nn.Linear(D, outputs, dtype=torch.float64), targets, PER_SAMPLE)
    before = module.weight.detach().clone()
    labels = (LABELS == 0).long() if outputs == 1 else LABELS

    registration = from_torch(
        module,
        loader(targets=labels),
        name="m",
        loss="logistic",
        ridge=PER_SAMPLE,
        tolerance=1e-7,
    )

    assert isinstance(registration.statistics, LogisticStatistics)
    assert torch.equal(module.weight, before)
    assert torch.equal(registration.statistics.anchor, registration.weights)
    fitted = fit_logistic(registration.samples(X, labels), PER_SAMPLE)
    torch.testing.assert_close(registration.weights, fitted.weights, rtol=0, atol=1e-5)
    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])
    assert (manifest.loss, manifest.num_outputs) == (Loss.LOGISTIC, outputs)


def test_objective_noise_is_part_of_the_objective():
    noise = torch.randn(D, C, generator=GENERATOR, dtype=torch.float64)
    fitted = fit_logistic(SampleSet(X, ROWS), PER_SAMPLE, objective_noise=noise)
    module = head(fitted.weights, bias=False)
    options = {"name": "m", "loss": "logistic", "ridge": PER_SAMPLE}
    hidden = {"mechanism": "objective-perturbation", "epsilon": 1.0, "delta": 1e-4, "sigma": 1.0}
    registration = from_torch(
        module, loader(), objective_noise=noise, declared={"privacy": hidden}, **options
    )
    assert registration.relative_gradient < 1e-12
    assert registration.model.privacy == Privacy(Mechanism.OBJECTIVE, 1.0, 1e-4, 1.0)
    manifest = Manifest.model_validate_json(registration.multipart()["manifest"][1])
    assert manifest.privacy.to_core() == registration.model.privacy
    with pytest.raises(InvalidOptionError, match="no optimum of the logistic loss"):
        from_torch(module, loader(), **options)
    with pytest.raises(InvalidOptionError, match="objective_noise: belongs to the logistic loss"):
        from_torch(
            module, loader(), objective_noise=noise, name="m", loss="squared", ridge=PER_SAMPLE
        )


def test_a_head_that_is_not_at_its_optimum_is_refused_with_the_remedy():
    module = nn.Linear(D, C)
    with pytest.raises(InvalidOptionError, match=r"no optimum of the squared loss .*core.training"):
        from_torch(module, loader(), name="m", loss="squared", ridge=PER_SAMPLE)


def test_a_head_in_float32_needs_a_tolerance():
    module = trained_squared().to(torch.float32)
    with pytest.raises(InvalidOptionError, match="above the tolerance 1e-09"):
        from_torch(module, loader(), name="m", loss="squared", ridge=PER_SAMPLE, tolerance=1e-9)
    registration = from_torch(
        module,
        loader(X.to(torch.float32)),
        name="m",
        loss="squared",
        ridge=PER_SAMPLE,
        tolerance=1e-5,
    )
    assert registration.weights.dtype == torch.float64


def test_bad_arguments_are_refused():
    module = trained_squared()
    with pytest.raises(InvalidOptionError, match="loss: expected one of"):
        from_torch(module, loader(), name="m", loss="hinge", ridge=PER_SAMPLE)
    with pytest.raises(InvalidOptionError, match="got Sequential; pass the linear head"):
        from_torch(nn.Sequential(module), loader(), name="m", loss="squared", ridge=PER_SAMPLE)
    with pytest.raises(InvalidTensorError, match=r"loader: expected batches \(x, y\)"):
        from_torch(module, [X], name="m", loss="squared", ridge=PER_SAMPLE)
    with pytest.raises(InvalidTensorError, match=r"X: expected shape \(n, 5\)"):
        from_torch(module, [(X[:, 1:], LABELS)], name="m", loss="squared", ridge=PER_SAMPLE)
    with pytest.raises(InvalidTensorError, match="batches: none were given"):
        from_torch(module, [], name="m", loss="squared", ridge=PER_SAMPLE)
