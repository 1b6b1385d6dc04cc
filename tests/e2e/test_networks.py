"""Networks on real processes: registered, sent images or features, unlearned and certified."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.reference.networks import NetworkProblem

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"
ONE = np.array([17])
FIFTH = np.random.default_rng(0).choice(600, 120, replace=False)


@pytest.fixture(scope="module")
def problem():
    return NetworkProblem.digits(600)


@pytest.fixture(scope="module")
def sketched(problem):
    return problem.but(statistics="sketch", rank=200, error_probes=80)


def register(service, problem, name, *, statistics=True, membership=False):
    return service.register(
        problem, name, statistics=statistics, membership=membership, network=True
    )


def verify(service, request, weights, folder):
    """Run `lethe verify` on a record, as an auditor does; return its exit status."""
    (folder / "keys.json").write_bytes(service.keys())
    (folder / "weights").write_bytes(weights)
    (folder / "record.json").write_bytes(service.record(request["id"]))
    files = ["record.json", "--key", "keys.json", "--weights", "weights"]
    return subprocess.run([LETHE, "verify", *files], cwd=folder, check=False).returncode


def bound_of(statement, name):
    (found,) = [bound for bound in statement["bounds"] if bound["name"] == name]
    assert found["certifies"]
    return found["value"]


def distance(found, problem, rows):
    """ρ_w of METHOD §3: 0 is retraining, 1 is doing nothing."""
    retrained = problem.train_without(rows)
    return np.linalg.norm(found - retrained) / np.linalg.norm(problem.train() - retrained)


@pytest.mark.parametrize("samples", ["inputs", "features"])
def test_one_record_is_forgotten_exactly_with_a_gram_matrix(service, problem, samples, tmp_path):
    sent = problem.but(samples=samples)
    model = register(service, sent, f"network by {samples}")
    request = service.finished(service.forget(model, sent.samples_file(ONE)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("exact", "stored")
    weights, retrained = service.weights(model, 1), problem.train_without(ONE)
    assert np.linalg.norm(weights - retrained) <= 1e-6 * np.linalg.norm(retrained)
    assert distance(weights, problem, ONE) <= 1e-6
    left = np.linalg.norm(problem.gradient_without(ONE, weights))
    assert left <= request["result"]["residual_bound"] < 1e-6
    assert verify(service, request, service.weights_file(model, 1), tmp_path) == 0
    assert verify(service, request, problem.weights_file(), tmp_path) == 1

    scope = service.statement(request["id"], "certificate")["scope"]
    digest = service.get(f"/v1/models/{model}")["network_sha256"]
    assert digest == hashlib.sha256(sent.network_file()).hexdigest()
    for what in ("610 parameters", "last 2 layers", "small-cnn", digest, "revision 1"):
        assert what in scope["covered"]
    assert scope["backbone"] == "public"
    assert any("w_c" in exclusion for exclusion in scope["not_covered"])


def test_one_record_is_certified_with_a_sketch_within_a_bound_that_holds(
    service, problem, sketched, tmp_path
):
    model = register(service, sketched, "network with a sketch")
    request = service.finished(service.forget(model, problem.samples_file(ONE)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("certified", "stored-sketch")
    weights = service.weights(model, 1)
    statement = service.statement(request["id"], "certificate")
    left = np.linalg.norm(problem.gradient_without(ONE, weights))
    # Above the truth, and below what doing nothing leaves.
    nothing = np.linalg.norm(problem.gradient_without(ONE, problem.train()))
    assert left <= bound_of(statement, "residual_gradient_norm") < nothing
    apart = np.linalg.norm(weights - problem.train_without(ONE))
    assert apart <= bound_of(statement, "distance_to_retraining")
    assert distance(weights, problem, ONE) < 0.2
    assert statement["privacy"] is None
    assert statement["disposal"]["superseded_anchor"] == "moved"
    assert verify(service, request, service.weights_file(model, 1), tmp_path) == 0

    more = np.arange(100, 130)
    request = service.finished(service.forget(model, problem.samples_file(more)))
    assert request["state"] == "completed", request
    gone = [*ONE, *more]
    left = np.linalg.norm(problem.gradient_without(gone, service.weights(model, 2)))
    statement = service.statement(request["id"], "certificate")
    assert left <= bound_of(statement, "residual_gradient_norm")
    assert distance(service.weights(model, 2), problem, gone) < 0.2


def test_a_sketch_that_sees_too_little_is_refused_and_nothing_changes(service, problem):
    blind = problem.but(statistics="sketch", strength=1e-4, rank=1, error_probes=10)
    model = register(service, blind, "network with a poor sketch")
    request = service.finished(service.forget(model, blind.samples_file(ONE)))
    assert (request["state"], request["refusal"]["cause"]) == ("refused", "estimate-unreliable")
    assert request["refusal"]["remedy"]
    assert service.revisions(model) == [0]
    assert service.statement(request["id"])["kind"] == "refusal"


def test_without_statistics_one_record_is_refused_and_a_fifth_is_estimated(service, problem):
    model = register(service, problem, "network alone", statistics=False)
    request = service.finished(service.forget(model, problem.samples_file(ONE)))
    assert (request["state"], request["refusal"]["cause"]) == ("refused", "forget-set-too-small")
    assert service.revisions(model) == [0]
    request = service.finished(service.forget(model, problem.samples_file(FIFTH)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("estimated", "forget-curvature")
    assert distance(service.weights(model, 1), problem, FIFTH) < 0.6
    assert not any(bound["certifies"] for bound in request["result"]["bounds"])
    answer = service.http.get(f"/v1/unlearning-requests/{request['id']}/certificate")
    assert answer.json()["type"] == "urn:lethe:problem:no-certificate"


def test_inputs_that_the_network_is_not_fed_with_are_answered_at_once(service, problem):
    model = register(service, problem, "network with a range", statistics=False)

    def send(x):
        files = {
            "request": ("r", json.dumps({"model_id": model})),
            "samples": ("s", safetensors.numpy.save({"x": x, "y": problem.labels[ONE]})),
        }
        return service.http.post("/v1/unlearning-requests", files=files)

    raw = problem.images[ONE]
    for wrong in (16.0 * raw, raw - 0.5, raw[:, :, :7].copy()):
        answer = send(wrong)
        assert (answer.status_code, answer.json()["field"]) == (422, "samples.x")
        assert answer.json()["remedy"]
    assert send(raw).status_code == 202
    assert send(raw.astype(np.float32).reshape(1, 64)).status_code == 202


def test_members_are_forgotten_once_and_strangers_never(service, problem):
    model = register(service, problem, "network with members", membership=True)
    first = service.finished(service.forget(model, problem.samples_file(ONE)))
    assert first["state"] == "completed", first
    assert first["result"]["membership"] == "computed"
    again = service.finished(service.forget(model, problem.samples_file(np.array([16, 17]))))
    assert (again["state"], again["refusal"]["cause"]) == ("refused", "already-forgotten")
    dimmed = problem.but(images=problem.images / 2)
    stranger = service.finished(service.forget(model, dimmed.samples_file(np.array([16]))))
    assert stranger["refusal"]["cause"] == "not-in-training-set"
    assert service.revisions(model) == [0, 1]
