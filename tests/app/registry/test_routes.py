import hashlib

import numpy as np
import safetensors.numpy

from app.auth import Scope


def test_a_registered_model_can_be_read_and_its_weights_downloaded(api, trained):
    answer = api.register(
        trained.parts(statistics=trained.statistics_file(), holdout=trained.samples_file())
    )
    assert answer.status_code == 201
    model = answer.json()
    assert answer.headers["Location"] == f"/v1/models/{model['id']}"
    assert model["has_statistics"] is True
    assert model["n_samples"] == 40
    assert model["state"] == "active"

    read = api.get(answer.headers["Location"])
    assert read.json() == model
    assert read.headers["ETag"] == answer.headers["ETag"]

    (revision,) = api.get(f"/v1/models/{model['id']}/revisions").json()["items"]
    assert revision["number"] == 0
    assert revision["weights_available"] is True
    download = api.get(f"/v1/models/{model['id']}/revisions/0/weights")
    assert hashlib.sha256(download.content).hexdigest() == revision["weights_sha256"]
    np.testing.assert_array_equal(
        safetensors.numpy.load(download.content)["weight"], trained.weight
    )


def test_the_manifest_is_kept_with_all_its_defaults(api, trained):
    manifest = api.register(trained.parts()).json()["manifest"]
    assert manifest["loss"] == "squared"
    assert manifest["training_gradient_tolerance"] == 1e-6
    assert manifest["backbone"] == {"provenance": "unknown", "description": None}


def test_with_statistics_the_gradient_norm_is_computed_and_without_it_is_attested(api, trained):
    exact = api.register(
        trained.parts(statistics=trained.statistics_file(), training_gradient_norm=0.5)
    ).json()
    bare = api.register(trained.parts(training_gradient_norm=0.5)).json()
    hessian = trained.x.T @ trained.x + 0.01 * 40 * np.eye(4)
    norm = np.linalg.norm(hessian @ trained.weight - trained.x.T @ trained.y)
    (computed,) = api.get(f"/v1/models/{exact['id']}/revisions").json()["items"]
    (attested,) = api.get(f"/v1/models/{bare['id']}/revisions").json()["items"]
    assert norm <= computed["gradient_norm_bound"] <= norm + 1e-12
    assert attested["gradient_norm_bound"] == 0.5


def test_the_total_ridge_convention_is_taken_at_its_word(api, trained):
    total = {"convention": "total", "strength": 0.01 * 40}
    parts = trained.parts(statistics=trained.statistics_file(), ridge=total)
    assert api.register(parts).status_code == 201


def test_statistics_with_their_round_off_are_taken(api, trained):
    statistics = trained.statistics_file(round_off=np.array([1e-12]))
    assert api.register(trained.parts(statistics=statistics)).status_code == 201


def test_models_are_listed_newest_first_a_page_at_a_time(api, trained):
    made = [api.register(trained.parts(name=f"model {i}")).json()["id"] for i in range(3)]
    first = api.get("/v1/models?limit=2").json()
    second = api.get("/v1/models", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    listed = [model["id"] for model in first["items"] + second["items"]]
    assert listed == made[::-1]
    assert second["next_cursor"] is None


def test_every_download_is_in_the_audit_log(api, model_id):
    size = api.get("/v1/audit/checkpoint").json()["size"]
    api.get(f"/v1/models/{model_id}/revisions/0/weights")
    (entry,) = api.get(f"/v1/audit/entries?cursor={size}").json()["items"]
    assert entry["event"] == "model.weights-downloaded"
    assert entry["subject"] == {"model_id": model_id}


def test_an_unknown_model_or_revision_is_not_found(api, model_id):
    unknown = "01890000-0000-7000-8000-000000000000"
    for path in (f"/v1/models/{unknown}", f"/v1/models/{unknown}/revisions"):
        answer = api.get(path)
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:lethe:problem:model-not-found"
    answer = api.get(f"/v1/models/{model_id}/revisions/7/weights")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:lethe:problem:revision-not-found"


def test_reading_needs_the_scope_to_read(api, make_token, model_id):
    writer = api.with_token(make_token(Scope.MODELS_WRITE, Scope.WEIGHTS_READ))
    for path in ("", f"/{model_id}", f"/{model_id}/revisions"):
        assert writer.get(f"/v1/models{path}").status_code == 403


def test_weights_need_a_scope_of_their_own(api, make_token, model_id):
    path = f"/v1/models/{model_id}/revisions/0/weights"
    others = [scope for scope in Scope if scope not in {Scope.WEIGHTS_READ, Scope.ADMIN}]
    refused = api.with_token(make_token(*others)).get(path)
    assert refused.status_code == 403
    assert "weights:read" in refused.json()["remedy"]
    assert api.with_token(make_token(Scope.WEIGHTS_READ)).get(path).status_code == 200
