"""Registrations that are refused: a clear answer, and nothing written."""

import json

import numpy as np
import pytest
import safetensors.numpy

from app.auth import Scope


def tensors(**named):
    return safetensors.numpy.save(named)


def refuse(api, written, parts, field, status=422, **options):
    """Send a registration that has to be refused; return the problem."""
    before = written()
    answer = api.register(parts, **options)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["field"] == field, problem
    assert problem["remedy"]
    assert written() == before
    return problem


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_features": 0}, "manifest.num_features"),
        ({"num_features": 4.5}, "manifest.num_features"),
        ({"num_features": True}, "manifest.num_features"),
        ({"num_outputs": "3"}, "manifest.num_outputs"),
        ({"n_samples": -1}, "manifest.n_samples"),
        ({"n_samples": 2**31}, "manifest.n_samples"),
        ({"n_samples": 10**400}, "manifest.n_samples"),
        ({"feature_norm_bound": 0}, "manifest.feature_norm_bound"),
        ({"ridge": {"convention": "total", "strength": -1}}, "manifest.ridge.strength"),
        ({"ridge": {"convention": "per_sample", "strength": 0}}, "manifest.ridge.strength"),
        ({"ridge": {"convention": "odd", "strength": 1}}, "manifest.ridge.convention"),
        ({"loss": "hinge"}, "manifest.loss"),
        ({"task": "ranking"}, "manifest.task"),
        ({"name": ""}, "manifest.name"),
        ({"name": "two\nlines"}, "manifest.name"),
        ({"name": "nul\x00"}, "manifest.name"),
        ({"name": "\ud800"}, "manifest.name"),
        ({"name": 7}, "manifest.name"),
        ({"surprise": 1}, "manifest.surprise"),
        ({"training_gradient_norm": -1}, "manifest.training_gradient_norm"),
        ({"backbone": {"provenance": "stolen"}}, "manifest.backbone.provenance"),
        ({"num_features": 8193}, "manifest.num_features"),
        ({"num_outputs": 4097}, "manifest.num_outputs"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_name(api, trained, written, change, field):
    refuse(api, written, trained.parts(**change), field)


@pytest.mark.parametrize("field", ["name", "task", "ridge", "n_samples", "feature_norm_bound"])
def test_a_manifest_without_a_field_is_refused_by_name(api, trained, written, field):
    manifest = trained.manifest()
    del manifest[field]
    parts = trained.parts() | {"manifest": json.dumps(manifest).encode()}
    refuse(api, written, parts, f"manifest.{field}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(api, trained, written, number):
    text = json.dumps(trained.manifest(feature_norm_bound=123.5)).replace("123.5", number)
    parts = trained.parts() | {"manifest": text.encode()}
    field = "manifest.feature_norm_bound" if number == "1e999" else "manifest"
    refuse(api, written, parts, field)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b"1" * 5000]
)
def test_a_manifest_that_is_no_json_object_is_refused(api, trained, written, content):
    refuse(api, written, trained.parts() | {"manifest": content}, "manifest")


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        (b"", "weights"),
        (b"not safetensors at all", "weights"),
        (b"\x80\x04\x95\x00", "weights"),  # a pickle
        (tensors(weight=np.ones((4, 3)))[:-1], "weights"),
        (tensors(weights=np.ones((4, 3))), "weights"),
        (tensors(weight=np.ones((4, 3)), bias=np.ones(3)), "weights"),
        (tensors(weight=np.ones((4, 3), np.float32)), "weights.weight"),
        (tensors(weight=np.ones((4, 3), np.int64)), "weights.weight"),
        (tensors(weight=np.ones((4, 3), np.float16)), "weights.weight"),
        (tensors(weight=np.ones((3, 4))), "weights.weight"),
        (tensors(weight=np.ones((5, 3))), "weights.weight"),
        (tensors(weight=np.ones((4, 2))), "weights.weight"),
        (tensors(weight=np.ones(12)), "weights.weight"),
        (tensors(weight=np.full((4, 3), np.nan)), "weights.weight"),
        (tensors(weight=np.full((4, 3), np.inf)), "weights.weight"),
    ],
)
def test_weights_of_another_kind_are_refused(api, trained, written, weights, field):
    refuse(api, written, trained.parts(weights=weights), field)


def skewed(gram):
    gram[0, 1] += 1e-6
    return gram


# What no training set of these weights can explain, and the field that the answer names.
WRONG_STATISTICS = {
    "gram is not symmetric": (lambda m: {"gram": skewed(m.x.T @ m.x)}, "gram"),
    "another n": (lambda _: {"n_samples": np.array([39])}, "n_samples"),
    "n twice": (lambda _: {"n_samples": np.array([40, 40])}, "n_samples"),
    "n as float": (lambda _: {"n_samples": np.array([40.0])}, "n_samples"),
    "another d": (lambda _: {"gram": np.eye(5)}, "gram"),
    "another C": (lambda _: {"target_gram": np.eye(2)}, "target_gram"),
    "NaN": (lambda _: {"cross": np.full((4, 3), np.nan)}, "cross"),
    "trace above n R_x^2": (lambda m: {"gram": m.x.T @ m.x + 20 * np.eye(4)}, "gram"),
    "classes overlap": (lambda m: {"target_gram": m.y.T @ m.y + 1.0}, "target_gram"),
    "more classes than n": (lambda m: {"target_gram": 2 * (m.y.T @ m.y)}, "target_gram"),
    "indefinite": (lambda m: {"gram": m.x.T @ m.x - 5 * np.eye(4)}, None),
    "cross too large": (lambda m: {"cross": 10 * (m.x.T @ m.y)}, None),
    "round-off that would let any sample pass": (
        lambda _: {"round_off": np.array([1e300])},
        "round_off",
    ),
    "negative round-off": (lambda _: {"round_off": np.array([-1.0])}, "round_off"),
}


@pytest.mark.parametrize("name", WRONG_STATISTICS)
def test_statistics_that_no_training_set_has_are_refused(api, trained, written, name):
    change, field = WRONG_STATISTICS[name]
    parts = trained.parts(statistics=trained.statistics_file(**change(trained)))
    refuse(api, written, parts, "statistics" if field is None else f"statistics.{field}")


def test_statistics_of_other_weights_are_refused_with_both_norms(api, trained, written):
    weights = tensors(weight=trained.weight + 0.01)
    parts = trained.parts(weights=weights, statistics=trained.statistics_file())
    problem = refuse(api, written, parts, "statistics")
    assert "no optimum" in problem["detail"]
    assert "training_gradient_tolerance" in problem["remedy"] + problem["detail"]


def test_statistics_under_another_ridge_convention_are_refused(api, trained, written):
    ridge = {"convention": "total", "strength": 0.01}
    parts = trained.parts(statistics=trained.statistics_file(), ridge=ridge)
    refuse(api, written, parts, "statistics")


def test_statistics_without_a_key_are_refused(api, trained, written):
    statistics = trained.statistics()
    del statistics["target_gram"]
    refuse(api, written, trained.parts(statistics=tensors(**statistics)), "statistics")


@pytest.mark.parametrize(
    ("holdout", "field"),
    [
        (b"no safetensors", "holdout"),
        (tensors(x=np.ones((2, 5)), y=np.array([0, 1])), "holdout.x"),
        (tensors(x=np.ones((2, 4)), y=np.array([0, 3])), "holdout.y"),
        (tensors(x=np.ones((2, 4)), y=np.array([0])), "holdout.y"),
        (tensors(x=np.ones((0, 4)), y=np.ones((0, 3))), "holdout.x"),
    ],
)
def test_a_wrong_holdout_is_refused(api, trained, written, holdout, field):
    refuse(api, written, trained.parts(holdout=holdout), field)


def test_a_missing_an_unknown_and_a_doubled_part_are_refused(api, trained, written):
    parts = trained.parts()
    refuse(api, written, {"manifest": parts["manifest"]}, "weights")
    refuse(api, written, parts | {"code": b"import os"}, "code")
    before = written()
    doubled = [("weights", ("w", parts["weights"]))] * 2 + [("manifest", ("m", parts["manifest"]))]
    answer = api.post("/v1/models", files=doubled)
    assert answer.status_code == 422
    assert answer.json()["field"] == "weights"
    assert written() == before


def test_json_and_other_bodies_are_refused_with_the_right_media_type(api, trained, written):
    before = written()
    assert api.post("/v1/models", json=trained.manifest()).status_code == 422
    answer = api.post("/v1/models", content=b"x", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415
    assert answer.json()["type"] == "urn:lethe:problem:unsupported-media-type"
    assert api.post("/v1/models").status_code == 415
    assert written() == before


def test_a_broken_multipart_body_is_refused(api, written):
    before = written()
    for media_type in ("multipart/form-data", "multipart/form-data; boundary=abc"):
        answer = api.post("/v1/models", content=b"--x", headers={"Content-Type": media_type})
        assert answer.status_code == 422, answer.text
        assert answer.json()["field"] in {"body", "manifest"}
    assert written() == before


def test_registering_needs_a_key_with_the_scope(api, trained, written, make_token):
    reader = make_token(Scope.READ, Scope.UNLEARNING_WRITE, Scope.AUDIT_READ)
    refuse(api.with_token(reader), written, trained.parts(), "Authorization", status=403)
    refuse(api.with_token(None), written, trained.parts(), "Authorization", status=401)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("feature_norm_bound", {"feature_norm_bound": 1e16}),
        ("feature_norm_bound", {"feature_norm_bound": 1e200}),
        ("ridge.strength", {"ridge": {"convention": "total", "strength": 1e300}}),
        ("training_gradient_norm", {"training_gradient_norm": 2.0**53}),
        ("training_gradient_tolerance", {"training_gradient_tolerance": 1e22}),
    ],
)
def test_a_number_that_no_record_can_state_is_refused(api, trained, written, field, change):
    # JSONB returns it as an integer, and RFC 8785 has none beyond 2^53: no request could ever end.
    parts = trained.parts(statistics=trained.statistics_file(), **change)
    refuse(api, written, parts, f"manifest.{field}")


@pytest.mark.parametrize(
    "change",
    [
        {"target_gram": np.diag([1.7e308] * 3)},
        {"target_gram": np.diag([1e300] * 3), "cross": np.full((4, 3), 1e160)},
        {"gram": np.diag([1e-300] * 4), "target_gram": np.diag([1.7e308] * 3)},
    ],
)
def test_statistics_that_overflow_are_refused(api, trained, written, change):
    content = trained.statistics_file(**change)
    refuse(api, written, trained.parts(statistics=content, task="regression"), "statistics")
