import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import redis
import safetensors.numpy

from app.artifacts.models import Artifact
from app.auth import Scope
from app.jobs import QUEUE
from app.registry import samples
from app.unlearning import service
from app.unlearning.models import UnlearningRequest

URL = "/v1/unlearning-requests"


def multipart(request, content):
    return {
        "request": ("request.json", json.dumps(request), "application/json"),
        "samples": ("samples.safetensors", content, "application/octet-stream"),
    }


def test_a_request_is_accepted_queued_and_can_be_read(api, trained, model_id):
    answer = api.post(URL, json=trained.request(model_id, subject_reference="ticket 7"))
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"{URL}/{answer.json()['id']}"
    assert int(answer.headers["Retry-After"]) >= 1
    request = api.get(answer.headers["Location"]).json()
    assert request == answer.json()
    assert request["state"] == "queued"
    assert request["model_id"] == model_id
    assert request["sample_count"] == 2
    assert request["subject_reference"] == "ticket 7"
    assert request["attempts"] == 0
    unfinished = ("progress", "result", "refusal", "failure", "resulting_revision", "finished_at")
    assert [request[name] for name in unfinished] == [None] * len(unfinished)


def test_the_controllers_legal_ground_is_kept_and_shown(api, trained, model_id):
    answer = api.post(URL, json=trained.request(model_id, legal_ground="art-17-1-b"))
    assert answer.status_code == 202
    assert api.get(answer.headers["Location"]).json()["legal_ground"] == "art-17-1-b"
    silent = api.post(URL, json=trained.request(model_id))
    assert silent.json()["legal_ground"] is None


def test_the_samples_are_stored_exactly(api, trained, model_id, session, services):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    request = service.get(session, uuid.UUID(identifier))
    stored = service.load_samples(session, services.store, request)
    np.testing.assert_array_equal(stored.features, trained.x[:2])
    np.testing.assert_array_equal(stored.targets, trained.y[:2])


def test_the_samples_are_stored_encrypted(api, trained, model_id, session, settings):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    request = service.get(session, uuid.UUID(identifier))
    artifact = session.get_one(Artifact, request.samples_artifact_id)
    folder = Path(settings.artifacts_url.removeprefix("file://"))
    blob = (folder / artifact.location).read_bytes()
    assert trained.x[0].tobytes() not in blob
    assert b"safetensors" not in blob


def test_json_and_safetensors_mean_the_same_samples(api, trained, model_id, session, services):
    as_json = api.post(URL, json=trained.request(model_id)).json()["id"]
    request = {"model_id": model_id, "seed": 5}
    as_file = api.post(URL, files=multipart(request, trained.samples_file())).json()
    assert as_file["options"]["seed"] == 5
    stored = [
        samples.to_bytes(
            service.load_samples(session, services.store, service.get(session, uuid.UUID(one)))
        )
        for one in (as_json, as_file["id"])
    ]
    assert stored[0] == stored[1]


def test_one_hot_targets_mean_the_same_as_labels(api, trained, model_id, session, services):
    request = trained.request(model_id)
    request["samples"]["y"] = trained.y[:2].tolist()
    identifier = api.post(URL, json=request).json()["id"]
    row = service.get(session, uuid.UUID(identifier))
    stored = service.load_samples(session, services.store, row)
    np.testing.assert_array_equal(stored.targets, trained.y[:2])


def test_the_default_method_follows_from_what_is_stored(api, trained, model_id, bare_model_id):
    exact = api.post(URL, json=trained.request(model_id)).json()
    estimated = api.post(URL, json=trained.request(bare_model_id)).json()
    assert (exact["method"], exact["tier"]) == ("stored", "exact")
    assert (estimated["method"], estimated["tier"]) == ("forget-curvature", "estimated")


def test_every_option_and_the_gates_policy_are_recorded(make_api, trained):
    api = make_api(gate_threshold=0.5, gate_splits=3)
    model = api.register(trained.parts()).json()["id"]
    chosen = {
        "method": "paper-sdp",
        "seed": 11,
        "perturbation": {"count": 30, "law": "gaussian", "scale": 0.01},
        "floor": "forget",
        "solver": "SCS",
        "prior": {"kind": "forget", "weight": 0.25},
    }
    request = api.post(URL, json=trained.request(model, **chosen)).json()
    assert request["method"] == "paper-sdp"
    assert request["options"] == {
        "seed": 11,
        "perturbation": {"count": 30, "law": "gaussian", "scale": 0.01},
        "floor": "forget",
        "solver": "SCS",
        "prior": {"kind": "forget", "weight": 0.25},
        "anchor": "move",
        "gate": {"threshold": 0.5, "splits": 3, "skew_level": 0.01},
    }


def test_seeds_that_nobody_chose_differ(api, trained, model_id):
    seeds = {
        api.post(URL, json=trained.request(model_id)).json()["options"]["seed"] for _ in range(3)
    }
    assert len(seeds) == 3


def test_requests_are_listed_newest_first_and_filtered(api, trained, model_id, bare_model_id):
    made = [api.post(URL, json=trained.request(model_id)).json()["id"] for _ in range(3)]
    other = api.post(URL, json=trained.request(bare_model_id)).json()["id"]
    api.post(f"{URL}/{made[1]}/cancel")
    page = api.get(URL, params={"limit": 2}).json()
    rest = api.get(URL, params={"limit": 2, "cursor": page["next_cursor"]}).json()
    assert [one["id"] for one in page["items"] + rest["items"]] == [other, *made[::-1]]
    assert rest["next_cursor"] is None

    def listed(**filters):
        return [one["id"] for one in api.get(URL, params=filters).json()["items"]]

    assert listed(model_id=bare_model_id) == [other]
    assert listed(state="cancelled") == [made[1]]
    assert listed(model_id=model_id, state="queued") == [made[2], made[0]]


def test_a_queued_request_can_be_cancelled_and_its_samples_are_gone(
    api, trained, model_id, session
):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    answer = api.post(f"{URL}/{identifier}/cancel")
    assert answer.status_code == 200
    assert answer.json()["state"] == "cancelled"
    assert answer.json()["finished_at"] is not None
    request = session.get_one(UnlearningRequest, uuid.UUID(identifier))
    assert request.wrapped_commitment_key is None
    assert session.get_one(Artifact, request.samples_artifact_id).wrapped_key is None
    again = api.post(f"{URL}/{identifier}/cancel")
    assert again.status_code == 200
    assert again.json() == answer.json()


def test_a_refused_request_shows_cause_and_remedy(api, trained, model_id, session, services):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
    gate = {"name": "g", "passed": False, "value": 2.0, "threshold": 1.0, "detail": "too far"}
    refusal = {
        "cause": "estimate-unreliable",
        "detail": "2 is above 1",
        "remedy": "Register statistics.",
        "gates": [gate],
    }
    service.refuse(session, services.store, job, refusal=refusal)
    session.commit()
    shown = api.get(f"{URL}/{identifier}").json()
    assert (shown["state"], shown["refusal"]) == ("refused", refusal)


def test_a_completed_request_shows_its_result(api, trained, model_id, session, services):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
    result = {"residual_bound": 1e-12}
    service.complete(session, services.store, job, result=result, resulting_revision=1, digests=[])
    session.commit()
    shown = api.get(f"{URL}/{identifier}").json()
    assert (shown["state"], shown["result"]) == ("completed", result)
    assert shown["resulting_revision"] == 1
    assert shown["created_at"] <= shown["started_at"] <= shown["finished_at"]


def test_a_running_request_cannot_be_cancelled(api, trained, model_id, session, written):
    identifier = api.post(URL, json=trained.request(model_id)).json()["id"]
    assert service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
    session.commit()
    before = written()
    answer = api.post(f"{URL}/{identifier}/cancel")
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:lethe:problem:request-not-cancellable"
    assert written() == before
    assert api.get(f"{URL}/{identifier}").json()["state"] == "running"


def test_a_request_rings_the_workers(api, trained, model_id, redis_url):
    with redis.Redis.from_url(redis_url) as broker:
        before = broker.llen(QUEUE)
        api.post(URL, json=trained.request(model_id))
        assert broker.llen(QUEUE) == before + 1


def test_a_dead_broker_delays_nothing_but_the_ring(make_api, trained, tmp_path):
    api = make_api(redis_url=f"unix://{tmp_path}/nobody.sock")
    model = api.register(trained.parts()).json()["id"]
    answer = api.post(URL, json=trained.request(model))
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() < 5
    assert api.get(answer.headers["Location"]).json()["state"] == "queued"


def test_what_the_log_keeps_names_no_subject_and_no_sample(api, trained, model_id):
    size = api.get("/v1/audit/checkpoint").json()["size"]
    api.post(URL, json=trained.request(model_id, subject_reference="Jane Doe"))
    entries = api.get(f"/v1/audit/entries?cursor={size}")
    assert [entry["event"] for entry in entries.json()["items"]] == ["unlearning-request.received"]
    assert "Jane" not in entries.text
    assert repr(float(trained.x[0, 0])) not in entries.text


@pytest.mark.parametrize("path", ["", "/01890000-0000-7000-8000-000000000000"])
def test_reading_needs_the_scope_to_read(api, make_token, path):
    writer = api.with_token(make_token(Scope.UNLEARNING_WRITE))
    assert writer.get(f"{URL}{path}").status_code == 403


def test_an_unknown_request_is_not_found(api):
    path = f"{URL}/01890000-0000-7000-8000-000000000000"
    for answer in (api.get(path), api.post(f"{path}/cancel")):
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:lethe:problem:request-not-found"


def test_float32_samples_are_taken_at_their_float64_values(
    api, trained, model_id, session, services
):
    x = trained.x[:2].astype(np.float32)
    content = safetensors.numpy.save({"x": x, "y": trained.labels[:2].copy()})
    answer = api.post(URL, files=multipart({"model_id": model_id}, content))
    row = service.get(session, uuid.UUID(answer.json()["id"]))
    stored = service.load_samples(session, services.store, row)
    np.testing.assert_array_equal(stored.features, x.astype(np.float64))
