"""Unlearning requests that are refused at the border: a clear answer, and nothing written."""

import json

import numpy as np
import pytest
import safetensors.numpy

from app.auth import Scope
from app.registry.models import Model, ModelState

URL = "/v1/unlearning-requests"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


def tensors(**named):
    return safetensors.numpy.save(named)


def expect(answer, status, code, field):
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"urn:lethe:problem:{code}"
    assert problem["status"] == status
    assert problem["field"] == field, problem
    assert problem["remedy"]
    return problem


@pytest.fixture
def refuse(api, written):
    """Return a function that sends a request, expects its refusal, and that nothing was written."""

    def send(*, status=422, code="invalid-input", field, sender=api, **options):
        before = written()
        problem = expect(sender.post(URL, **options), status, code, field)
        assert written() == before
        return problem

    return send


def test_an_unknown_model_is_not_found(refuse, trained):
    refuse(status=404, code="model-not-found", field="model_id", json=trained.request(UNKNOWN))


def test_no_key_or_an_unknown_one_is_unauthorized(refuse, api, trained, model_id):
    request = trained.request(model_id)
    for token in (
        None,
        "nonsense",
        f"lethe_{UNKNOWN.replace('-', '')}_{'x' * 43}",
        api.token + "x",
    ):
        refuse(
            status=401,
            code="authentication",
            field="Authorization",
            sender=api.with_token(token),
            json=request,
        )


def test_a_key_without_the_scope_is_forbidden(refuse, api, trained, model_id, make_token):
    reader = make_token(Scope.READ, Scope.MODELS_WRITE, Scope.AUDIT_READ)
    refuse(
        status=403,
        code="missing-scope",
        field="Authorization",
        sender=api.with_token(reader),
        json=trained.request(model_id),
    )


SAMPLES_IN_JSON = {
    "d too small": ({"x": [[0.1] * 3], "y": [0]}, "samples.x"),
    "d too large": ({"x": [[0.1] * 5], "y": [0]}, "samples.x"),
    "rows differ": ({"x": [[0.1] * 4, [0.1] * 3], "y": [0, 1]}, "samples.x"),
    "C too small": ({"x": [[0.1] * 4], "y": [[1.0, 0.0]]}, "samples.y"),
    "C too large": ({"x": [[0.1] * 4], "y": [[1.0, 0.0, 0.0, 0.0]]}, "samples.y"),
    "no targets": ({"x": [[0.1] * 4], "y": []}, "samples.y"),
    "more targets": ({"x": [[0.1] * 4], "y": [0, 1]}, "samples.y"),
    "empty": ({"x": [], "y": []}, "samples.x"),
    "empty row": ({"x": [[]], "y": [0]}, "samples.x"),
    "label below": ({"x": [[0.1] * 4], "y": [-1]}, "samples.y"),
    "label above": ({"x": [[0.1] * 4], "y": [3]}, "samples.y"),
    "label beyond int64": ({"x": [[0.1] * 4], "y": [2**63]}, "samples.y.labels.0"),
    "label as float": ({"x": [[0.1] * 4], "y": [1.0]}, "samples.y.labels.0"),
    "label as truth": ({"x": [[0.1] * 4], "y": [True]}, "samples.y.labels.0"),
    "not one-hot": ({"x": [[0.1] * 4], "y": [[0.5, 0.5, 0.0]]}, "samples.y"),
    "norm above R_x": ({"x": [[0.1] * 4, [0.6] * 4], "y": [0, 1]}, "samples.x"),
    "overflowing norm": ({"x": [[1e200] * 4], "y": [0]}, "samples.x"),
    "text": ({"x": [["a"] * 4], "y": [0]}, "samples.x.0.0"),
    "number as text": ({"x": [["0.1"] * 4], "y": [0]}, "samples.x.0.0"),
    "truth": ({"x": [[0.1, True, 0.1, 0.1]], "y": [0]}, "samples.x.0.1"),
    "null": ({"x": [[0.1, None, 0.1, 0.1]], "y": [0]}, "samples.x.0.1"),
    "huge integer": ({"x": [[10**400, 0, 0, 0]], "y": [0]}, "samples.x.0.0"),
    "not nested": ({"x": [0.1] * 4, "y": [0]}, "samples.x.0"),
    "too deep": ({"x": [[[0.1] * 4]], "y": [0]}, "samples.x.0.0"),
    "no y": ({"x": [[0.1] * 4]}, "samples.y"),
    "another key": ({"x": [[0.1] * 4], "y": [0], "z": 1}, "samples.z"),
}


@pytest.mark.parametrize("name", SAMPLES_IN_JSON)
def test_samples_in_json_that_do_not_fit_the_model_are_refused(refuse, trained, model_id, name):
    samples, field = SAMPLES_IN_JSON[name]
    refuse(field=field, json=trained.request(model_id, samples=samples))


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity"])
def test_tokens_that_json_does_not_have_are_refused(refuse, trained, model_id, token):
    text = json.dumps(trained.request(model_id, samples={"x": [[7.5, 0, 0, 0]], "y": [0]}))
    problem = refuse(
        field="body",
        content=text.replace("7.5", token),
        headers={"Content-Type": "application/json"},
    )
    assert token in problem["detail"]


def test_a_key_that_stands_twice_is_refused(refuse, trained, model_id):
    text = json.dumps(trained.request(model_id)).replace("{", f'{{"model_id": "{UNKNOWN}", ', 1)
    problem = refuse(field="body", content=text, headers={"Content-Type": "application/json"})
    assert "model_id" in problem["detail"]


def test_a_number_beyond_float64_is_refused(refuse, trained, model_id):
    text = json.dumps(trained.request(model_id, samples={"x": [[7.5, 0, 0, 0]], "y": [0]}))
    refuse(
        field="samples.x.0.0",
        content=text.replace("7.5", "1e999"),
        headers={"Content-Type": "application/json"},
    )


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(refuse, body):
    refuse(field="body", content=body, headers={"Content-Type": "application/json"})


ONE = np.full((1, 4), 0.1)
SAMPLES_IN_FILES = {
    "no safetensors": (b"PK\x03\x04 a torch file", "samples"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", "samples"),
    "nothing": (b"", "samples"),
    "other keys": (tensors(features=ONE, labels=np.array([0])), "samples"),
    "one key more": (tensors(x=ONE, y=np.array([0]), z=ONE), "samples"),
    "one key less": (tensors(x=ONE), "samples"),
    "x of integers": (tensors(x=ONE.astype(np.int64), y=np.array([0])), "samples.x"),
    "x of halves": (tensors(x=ONE.astype(np.float16), y=np.array([0])), "samples.x"),
    "y of int32": (tensors(x=ONE, y=np.array([0], np.int32)), "samples.y"),
    "x as a vector": (tensors(x=ONE[0], y=np.array([0])), "samples.x"),
    "x of three axes": (tensors(x=ONE[None], y=np.array([0])), "samples.x"),
    "x as a number": (tensors(x=np.array(1.0), y=np.array([0])), "samples.x"),
    "d too large": (tensors(x=np.ones((1, 5)), y=np.array([0])), "samples.x"),
    "C too large": (tensors(x=ONE, y=np.eye(4)[:1]), "samples.y"),
    "labels as floats": (tensors(x=ONE, y=np.array([0.0])), "samples.y"),
    "labels as a matrix": (tensors(x=ONE, y=np.array([[0]])), "samples.y"),
    "label outside": (tensors(x=ONE, y=np.array([3])), "samples.y"),
    "empty": (tensors(x=np.ones((0, 4)), y=np.ones(0, np.int64)), "samples.x"),
    "NaN": (tensors(x=np.array([[np.nan, 0, 0, 0]]), y=np.array([0])), "samples.x"),
    "infinite": (tensors(x=np.array([[-np.inf, 0, 0, 0]]), y=np.array([0])), "samples.x"),
    "infinite float32": (
        tensors(x=np.array([[np.inf, 0, 0, 0]], np.float32), y=np.array([0])),
        "samples.x",
    ),
    "NaN in y": (tensors(x=ONE, y=np.array([[np.nan, 0, 0]])), "samples.y"),
    "norm above R_x": (tensors(x=10 * ONE, y=np.array([0])), "samples.x"),
}


@pytest.mark.parametrize("name", SAMPLES_IN_FILES)
def test_samples_in_files_that_do_not_fit_the_model_are_refused(refuse, model_id, name):
    content, field = SAMPLES_IN_FILES[name]
    request = json.dumps({"model_id": model_id}).encode()
    refuse(field=field, files={"request": ("r", request), "samples": ("s", content)})


def test_forgetting_everything_or_more_is_refused(refuse, trained, model_id):
    everything = trained.request(model_id, slice(None))
    assert "nothing would remain" in refuse(field="samples.x", json=everything)["detail"]
    everything["samples"]["x"] *= 2
    everything["samples"]["y"] *= 2
    refuse(field="samples.x", json=everything)


def test_all_but_one_sample_can_be_forgotten(api, trained, model_id):
    assert api.post(URL, json=trained.request(model_id, slice(39))).status_code == 202


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_id": "7"}, "model_id"),
        ({"method": "magic"}, "method"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"perturbation": {"count": 0}}, "perturbation.count"),
        ({"perturbation": {"scale": 0.0}}, "perturbation.scale"),
        ({"perturbation": {"law": "uniform"}}, "perturbation.law"),
        ({"floor": "ceiling"}, "floor"),
        ({"solver": "MOSEK"}, "solver"),
        ({"legal_ground": "art-17-1-g"}, "legal_ground"),
        ({"legal_ground": "because"}, "legal_ground"),
        ({"subject_reference": "a\x00b"}, "subject_reference"),
        ({"subject_reference": "\ud83d"}, "subject_reference"),
        ({"subject_reference": "x" * 201}, "subject_reference"),
        ({"threshold": 5}, "threshold"),
        ({"method": "paper-sdp", "perturbation": {"count": 10**8}}, "perturbation.count"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_name(refuse, trained, model_id, change, field):
    # As ASCII, since httpx would not send a lone surrogate; a client can, escaped.
    text = json.dumps(trained.request(model_id) | change)
    refuse(field=field, content=text, headers={"Content-Type": "application/json"})


def test_the_method_stored_needs_statistics(refuse, trained, bare_model_id):
    problem = refuse(field="method", json=trained.request(bare_model_id, method="stored"))
    assert "forget-curvature" in problem["remedy"]


def test_a_model_that_is_not_active_takes_no_deletions(refuse, trained, model_id, session):
    session.get_one(Model, model_id).state = ModelState.RETRAINING_REQUIRED
    session.commit()
    refuse(status=409, code="model-not-active", field="model_id", json=trained.request(model_id))


def test_samples_in_the_json_part_of_a_multipart_body_are_refused(refuse, trained, model_id):
    request = json.dumps(trained.request(model_id)).encode()
    parts = {"request": ("r", request), "samples": ("s", trained.samples_file())}
    refuse(field="request.samples", files=parts)


def test_missing_and_unknown_parts_are_refused(refuse, trained, model_id):
    request = ("r", json.dumps({"model_id": model_id}).encode())
    samples = ("s", trained.samples_file())
    refuse(field="samples", files={"request": request})
    refuse(field="request", files={"samples": samples})
    refuse(field="more", files={"request": request, "samples": samples, "more": samples})


def test_another_media_type_is_refused(refuse):
    options = {"content": b"x", "headers": {"Content-Type": "application/x-pickle"}}
    refuse(status=415, code="unsupported-media-type", field="Content-Type", **options)


@pytest.mark.parametrize(
    "y", [[0, 1], [[1.0]], [[1.0, 0.0, 2.0], [0.0, 1.0]], [[1.0, 2.0, float(10**308) * 10]]]
)
def test_a_regression_wants_a_matrix_of_targets(api, trained, written, y):
    statistics = None
    model = api.register(trained.parts(statistics=statistics, task="regression")).json()["id"]
    before = written()
    x = [[0.1] * 4] * len(y)
    body = json.dumps(trained.request(model, samples={"x": x, "y": y}))
    answer = api.post(
        URL,
        content=body.replace("Infinity", "1e999"),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"].startswith("samples.y")
    assert written() == before


def test_a_regression_takes_real_targets(api, trained):
    model = api.register(trained.parts(task="regression")).json()["id"]
    samples = {"x": [[0.1] * 4], "y": [[0.25, -7.5, 1e3]]}
    assert api.post(URL, json=trained.request(model, samples=samples)).status_code == 202
