"""Logistic statistics at the border: what a training set can have passes, all else is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from app.errors import InvalidInputError
from app.registry import checks, service
from app.registry.models import Model
from app.registry.schemas import Manifest
from core.problem import LinearModel, Ridge, SampleSet
from core.serialization import dump_statistics, load_statistics
from core.statistics import collect_logistic, require_fit
from core.vocabulary import Loss, RidgeConvention

URL = "/v1/unlearning-requests"


def tensors(**named):
    return safetensors.numpy.save(named)


@pytest.fixture(params=["three classes", "two classes"])
def some(request, logistic, binary):
    return {"three classes": logistic, "two classes": binary}[request.param]


@pytest.fixture
def refuse(api, written):
    def send(parts, field):
        before = written()
        answer = api.register(parts)
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["field"] == field, problem
        assert problem["remedy"]
        assert written() == before
        return problem

    return send


def test_a_logistic_model_is_registered_and_says_what_it_has(api, some):
    answer = api.register(some.parts())
    assert answer.status_code == 201, answer.text
    model = answer.json()
    assert (model["loss"], model["has_statistics"]) == ("logistic", True)
    assert model["policy"]["methods"] == ["stored", "forget-curvature", "paper-sdp"]


def test_the_gradient_norm_is_computed_at_the_anchor(api, logistic):
    model = api.register(logistic.parts()).json()["id"]
    (revision,) = api.get(f"/v1/models/{model}/revisions").json()["items"]
    gradient = logistic.statistics()["gradient"] + 0.01 * 40 * logistic.weight
    norm = np.linalg.norm(gradient)
    assert norm <= revision["gradient_norm_bound"] <= norm + 1e-10


def test_what_is_stored_is_what_the_core_loads(api, session, services, some):
    identifier = api.register(some.parts()).json()["id"]
    model = session.get_one(Model, identifier)
    revision = service.current_revision(session, model)
    stored = load_statistics(service.load_statistics(session, services.store, revision))
    require_fit(
        stored,
        LinearModel(
            torch.from_numpy(some.weight),
            Ridge(RidgeConvention.PER_SAMPLE, 0.01),
            40,
            1.0,
            loss=Loss.LOGISTIC,
        ),
    )
    collected = collect_logistic(
        [SampleSet(torch.from_numpy(some.x), torch.from_numpy(some.y))],
        torch.from_numpy(some.weight),
    )
    torch.testing.assert_close(stored.hessians, collected.hessians)
    torch.testing.assert_close(stored.gradient, collected.gradient)
    # The worst case that stands in for what was left out is no better than what was counted.
    for name in ("largest_norm", "hessian_round_off", "gram_round_off", "gradient_round_off"):
        assert getattr(stored, name) >= getattr(collected, name)
    assert stored.relative_round_off < 1e-12


def test_what_the_core_collects_is_taken_as_it_is(api, some):
    collected = collect_logistic(
        [SampleSet(torch.from_numpy(some.x), torch.from_numpy(some.y))],
        torch.from_numpy(some.weight),
    )
    parts = some.parts() | {"statistics": dump_statistics(collected)}
    assert api.register(parts).status_code == 201


def test_a_perturbed_objective_has_its_noise_in_the_gradient(refuse, logistic):
    # At weights that were trained without the noise, the gradient with it is no zero.
    noise = np.random.default_rng(0).normal(size=logistic.weight.shape)
    parts = logistic.parts(statistics={"gradient": logistic.statistics()["gradient"] + noise})
    problem = refuse(parts, "statistics.gradient")
    assert "with b" in problem["remedy"]


def skewed(matrix):
    changed = matrix.copy()
    changed[..., 0, 1] += 1e-6
    return changed


def nudged(matrix):
    changed = matrix.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.inf)
    return changed


WRONG = {
    "anchor one bit off": (lambda m: {"anchor": nudged(m.weight)}, "anchor"),
    "anchor of another shape": (lambda _: {"anchor": np.zeros((4, 2))}, "anchor"),
    "one Hessian too few": (lambda m: {"hessians": m.statistics()["hessians"][:2]}, "hessians"),
    "Hessians of another d": (lambda _: {"hessians": np.zeros((3, 5, 5))}, "hessians"),
    "Hessians not symmetric": (
        lambda m: {"hessians": skewed(m.statistics()["hessians"])},
        "hessians",
    ),
    "Hessians negative": (lambda m: {"hessians": -m.statistics()["hessians"]}, "hessians"),
    "Hessians above a quarter of G": (
        lambda m: {"hessians": np.stack([m.x.T @ m.x] * 3)},
        "hessians",
    ),
    "Hessians with the ridge": (
        lambda m: {"hessians": m.statistics()["hessians"] + 40 * np.eye(4)},
        "hessians",
    ),
    "gram not symmetric": (lambda m: {"gram": skewed(m.x.T @ m.x)}, "gram"),
    "gram above n R_x^2": (lambda m: {"gram": m.x.T @ m.x + 20 * np.eye(4)}, "gram"),
    "gram indefinite": (lambda m: {"gram": m.x.T @ m.x - 15 * np.eye(4)}, "gram"),
    "feature sums too long": (lambda _: {"feature_sums": np.full(4, 39.0)}, "gram"),
    "feature sums NaN": (lambda _: {"feature_sums": np.full(4, np.nan)}, "feature_sums"),
    "target sums negative": (lambda _: {"target_sums": np.array([-1.0, 20, 21])}, "target_sums"),
    "target sums above n": (lambda _: {"target_sums": np.array([41.0, 0, 0])}, "target_sums"),
    "target sums broken": (lambda _: {"target_sums": np.array([0.5, 19.5, 20])}, "target_sums"),
    "target sums not n": (lambda _: {"target_sums": np.array([10.0, 10, 10])}, "target_sums"),
    "gradient of other weights": (lambda _: {"gradient": np.ones((4, 3))}, "gradient"),
    "gradient infinite": (lambda _: {"gradient": np.full((4, 3), np.inf)}, "gradient"),
    "gradient overflows": (lambda _: {"gradient": np.full((4, 3), 1.7e308)}, "gradient"),
    "another n": (lambda _: {"n_samples": np.array([39])}, "n_samples"),
    "n as float": (lambda _: {"n_samples": np.array([40.0])}, "n_samples"),
    "drift": (lambda _: {"drift": np.array([0.0, 1e-9, 0.0])}, "drift"),
    "residual": (lambda _: {"residual": np.array([1e-300, 0.0, 0.0])}, "residual"),
    "n_drifted": (lambda _: {"n_drifted": np.array([1])}, "n_drifted"),
    "n_drifted as float": (lambda _: {"n_drifted": np.array([0.0])}, "n_drifted"),
    "round-off too large": (lambda _: {"hessian_round_off": np.array([1.0])}, "hessian_round_off"),
    "round-off negative": (lambda _: {"gram_round_off": np.array([-1e-20])}, "gram_round_off"),
    "round-off NaN": (lambda _: {"gradient_round_off": np.array([np.nan])}, "gradient_round_off"),
    "norm above R_x": (lambda _: {"largest_norm": np.array([2.0])}, "largest_norm"),
    "norm below the mean": (lambda _: {"largest_norm": np.array([0.1])}, "largest_norm"),
    "Hessians overflow": (lambda _: {"hessians": np.stack([np.diag([1.7e308] * 4)] * 3)}, None),
    "gram overflows": (lambda _: {"gram": np.diag([1.7e308] * 4)}, None),
    "a factor of the client's": (lambda _: {"factor.hessians": np.zeros((3, 4, 4))}, None),
    "of the squared loss": (lambda m: {"cross": m.x.T @ m.y}, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_statistics_that_no_training_set_of_these_weights_has_are_refused(refuse, logistic, name):
    change, field = WRONG[name]
    parts = logistic.parts(statistics=change(logistic))
    refuse(parts, "statistics" if field is None else f"statistics.{field}")


def test_statistics_of_the_other_loss_are_refused(refuse, logistic, trained):
    refuse(logistic.parts() | {"statistics": trained.statistics_file()}, "statistics")
    content = tensors(**logistic.statistics())
    refuse(trained.parts(statistics=content), "statistics")


@pytest.mark.parametrize("name", ["factor.gram", "factor.shift"])
def test_a_factor_of_a_squared_loss_is_refused(refuse, trained, name):
    parts = trained.parts(statistics=trained.statistics_file(**{name: np.eye(4)}))
    assert name in refuse(parts, "statistics")["detail"]


def test_weights_so_large_that_nothing_is_known_are_refused(logistic):
    manifest = Manifest.model_validate(logistic.manifest())
    stored = logistic.statistics() | {"anchor": np.full((4, 3), 1e300)}
    with pytest.raises(InvalidInputError, match="nothing is known"):
        checks.read_statistics(tensors(**stored), manifest)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", ["tall", "wide", "repeated", "badly scaled", "zero", "saturated"])
def test_statistics_of_real_data_always_pass(seed, shape):
    rng = np.random.default_rng(seed)
    n, d = (5, 30) if shape == "wide" else (300, 30)
    x, w = rng.normal(size=(n, d)), rng.normal(size=(d, 1))
    if shape == "repeated":
        x[:, 10:] = x[:, :1]
    if shape == "badly scaled":
        x *= np.logspace(-8, 2, d)
    if shape == "zero":
        x[:] = 0
    if shape == "saturated":
        w *= 100
    y = rng.integers(0, 2, size=(n, 1)).astype(float)
    p = 1 / (1 + np.exp(-np.clip(x @ w, -700, 700)))
    stored = {
        "anchor": w,
        "hessians": ((x.T * (p * (1 - p))[:, 0]) @ x)[None],
        "gram": x.T @ x,
        "gradient": x.T @ (p - y),
        "feature_sums": x.sum(axis=0),
        "target_sums": y.sum(axis=0),
        "n_samples": np.array([n]),
    }
    manifest = Manifest.model_validate(
        {
            "name": "m",
            "task": "classification",
            "loss": "logistic",
            "num_features": d,
            "num_outputs": 1,
            "ridge": {"convention": "total", "strength": 1.0},
            "n_samples": n,
            "feature_norm_bound": float(np.linalg.norm(x, axis=1).max()) or 1.0,
            "training_gradient_tolerance": 1e9,
        }
    )
    read = checks.read_statistics(tensors(**stored), manifest)
    exact = np.linalg.norm(stored["gradient"] + w)
    assert exact <= read.training_gradient_norm(w, manifest) <= exact * (1 + 1e-6) + 1e-6


def test_labels_of_two_classes_are_zero_and_one(api, binary):
    model = api.register(binary.parts()).json()["id"]
    body = {"model_id": model, "samples": {"x": binary.x[:2].tolist(), "y": [0, 1]}}
    assert api.post(URL, json=body).status_code == 202
    body["samples"]["y"] = [[0.0], [1.0]]
    assert api.post(URL, json=body).status_code == 202
    for wrong in ([0, 2], [-1, 1], [[0.5], [1.0]], [[-1.0], [1.0]], [[0.0, 1.0], [1.0, 0.0]]):
        body["samples"]["y"] = wrong
        answer = api.post(URL, json=body)
        assert answer.status_code == 422, wrong
        assert answer.json()["field"] == "samples.y"


def test_a_logistic_deletion_is_certified_if_stored_and_else_estimated(api, logistic):
    parts = logistic.parts()
    model = api.register(parts).json()["id"]
    body = {
        "model_id": model,
        "samples": {"x": logistic.x[:2].tolist(), "y": logistic.labels[:2].tolist()},
    }
    shown = api.post(URL, json=body).json()
    assert (shown["method"], shown["tier"]) == ("stored", "certified")
    del parts["statistics"]
    bare = api.register(parts).json()["id"]
    shown = api.post(URL, json=body | {"model_id": bare}).json()
    assert (shown["method"], shown["tier"]) == ("forget-curvature", "estimated")


def test_the_logistic_loss_is_for_classification(refuse, logistic):
    parts = logistic.parts(task="regression")
    problem = refuse(parts, "manifest.loss")
    assert "regression" in problem["detail"]


def test_a_manifest_of_before_is_still_one(trained):
    old = trained.manifest(loss="squared", training_gradient_norm=0.0)
    manifest = Manifest.model_validate(json.loads(json.dumps(old)))
    assert (manifest.privacy, manifest.policy.methods) == (None, None)


def test_weights_of_a_perturbed_objective_are_at_its_optimum(api, logistic):
    # b = −(∇L(W) of the plain objective) makes any W the optimum of the perturbed one.
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(4, 3))
    p = 1 / (1 + np.exp(-logistic.x @ weight))
    plain = logistic.x.T @ (p - logistic.y)
    noise = -(plain + 0.01 * 40 * weight)
    stored = {
        "anchor": weight,
        "hessians": np.stack([(logistic.x.T * s) @ logistic.x for s in (p * (1 - p)).T]),
        "gradient": plain + noise,
    }
    privacy = {"mechanism": "objective-perturbation", "epsilon": 1.0, "delta": 1e-3, "sigma": 2.0}
    parts = logistic.parts(statistics=stored, privacy=privacy)
    parts["weights"] = tensors(weight=weight)
    assert api.register(parts).status_code == 201
