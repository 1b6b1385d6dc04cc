"""Logistic models on real processes: certificates, budgets, membership and surrogates."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import psycopg
import pytest
import safetensors.numpy
from sqlalchemy import make_url

from tests.reference.registered import LogisticProblem

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"
TEN = np.arange(10)


@pytest.fixture(scope="module")
def problem():
    return LogisticProblem.draw(n=240, d=5)


@pytest.fixture(scope="module")
def noisy(problem):
    """Noise for two deletions of ten rows and a half."""
    return problem.with_output_noise(TEN, deletions=2.5)


def verify(service, request_id, weights, folder):
    """Run `lethe verify` on a record, as an auditor does; return its exit status."""
    (folder / "keys.json").write_bytes(service.keys())
    (folder / "weights").write_bytes(weights)
    (folder / "record.json").write_bytes(service.record(request_id))
    files = ["record.json", "--key", "keys.json", "--weights", "weights"]
    return subprocess.run([LETHE, "verify", *files], cwd=folder, check=False).returncode


def budget_of(service, model):
    return service.get(f"/v1/models/{model}/budget")


def bound_of(statement, name):
    (found,) = [bound for bound in statement["bounds"] if bound["name"] == name]
    return found["value"]


def test_a_certified_deletion_with_noise_from_registration_to_a_spent_budget(
    service, noisy, tmp_path
):
    model = service.register(noisy, "certified", statistics=True, membership=True)
    fresh = budget_of(service, model)
    assert (fresh["spent"], fresh["left"]) == (0.0, fresh["limit"])
    first_release = service.weights_file(model, 0)
    assert first_release != noisy.weights_file()

    request = service.finished(service.forget(model, noisy.samples_file(TEN)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("certified", "stored")
    statement = service.statement(request["id"], "certificate")
    release = service.weights_file(model, 1)
    assert verify(service, request["id"], release, tmp_path) == 0
    assert verify(service, request["id"], first_release, tmp_path) == 1
    # The weights that the bound is of are near retraining; what is served has the noise added.
    retrained = noisy.train_without(TEN)
    noise = safetensors.numpy.load(release)["weight"] - retrained
    sigma = noisy.privacy["sigma"]
    assert 0.3 * sigma < noise.std() < 3 * sigma
    assert bound_of(statement, "distance_to_retraining") < sigma

    spent = budget_of(service, model)
    assert spent["spent"] == statement["privacy"]["spent"] > 0
    assert spent["reserved"] == 0
    assert [entry["kind"] for entry in spent["entries"]] == ["spend", "reserve", "open"]
    assert spent["entries"][0]["request_id"] == request["id"]

    ended = []
    for start in range(10, 70, 10):
        rows = np.arange(start, start + 10)
        ended.append(service.finished(service.forget(model, noisy.samples_file(rows))))
        if ended[-1]["state"] != "completed":
            break
    assert ended[-1]["state"] == "refused", ended
    assert ended[-1]["refusal"]["cause"] == "budget-spent"
    assert ended[-1]["refusal"]["remedy"]
    assert service.get(f"/v1/models/{model}")["state"] == "retraining_required"
    late = {"model_id": model, "samples": {"x": noisy.features[80:81].tolist(), "y": [0]}}
    answer = service.http.post("/v1/unlearning-requests", json=late)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:lethe:problem:model-not-active"
    # The refused deletion cost nothing: the last certificate still says what is spent.
    final = budget_of(service, model)
    last = [*[r for r in ended if r["state"] == "completed"], request]
    assert final["spent"] in [service.statement(r["id"])["privacy"]["spent"] for r in last]
    assert (final["reserved"], final["entries"][0]["kind"]) == (0.0, "release")


def test_a_surrogate_deletion_is_signed_as_conditional(service, problem, tmp_path):
    public = problem.but(distance=0.0)
    model = service.register(public, "surrogate", statistics=False, surrogate=True)
    rows = np.arange(40)
    request = service.finished(service.forget(model, public.samples_file(rows), method="surrogate"))
    assert request["state"] == "completed", request
    assert request["tier"] == "surrogate"
    statement = service.statement(request["id"])
    assert statement["kind"] == "conditional"
    assert "conditional on the declared distance" in statement["verdict"]
    assert verify(service, request["id"], service.weights_file(model, 1), tmp_path) == 0
    retrained, found = public.train_without(rows), service.weights(model, 1)
    assert np.linalg.norm(found - retrained) < 0.5 * np.linalg.norm(public.train() - retrained)
    answer = service.http.get(f"/v1/unlearning-requests/{request['id']}/certificate")
    assert answer.status_code == 404
    assert service.http.get(f"/v1/models/{model}/budget").status_code == 404


def test_strangers_and_one_copy_too_many_are_refused_with_their_cause(service, problem):
    twin = problem.but(
        features=np.vstack([problem.features, problem.features[:1]]),
        labels=np.append(problem.labels, problem.labels[0]),
    )
    model = service.register(twin, "members", statistics=True, membership=True)
    stranger = twin.but(features=twin.features * 0.5)
    cases = {
        "not-in-training-set": stranger.samples_file(np.array([0])),
        "duplicate-samples": twin.samples_file(np.array([0, 0, 0])),
    }
    for cause, samples in cases.items():
        request = service.finished(service.forget(model, samples))
        assert (request["state"], request["refusal"]["cause"]) == ("refused", cause)
    assert service.revisions(model) == [0]
    both = service.forget(model, twin.samples_file(np.array([0, len(problem.labels)])))
    assert service.finished(both)["state"] == "completed"
    again = service.finished(service.forget(model, twin.samples_file(np.array([0]))))
    assert again["refusal"]["cause"] == "already-forgotten"


def test_a_killed_worker_costs_no_budget(stack, service, noisy, watch):
    model = service.register(noisy, "killed in a certified deletion", statistics=True)
    database = make_url(stack.environment["DATABASE_URL"]).set(drivername="postgresql")
    with psycopg.connect(database.render_as_string(hide_password=False)) as lock:
        # Requests are accepted, but whoever writes a revision waits here, with all reserved.
        lock.execute("LOCK TABLE revision IN SHARE MODE")
        request = service.forget(model, noisy.samples_file(TEN))
        held = watch.until("the reservation", lambda: budget_of(service, model)["reserved"] or None)
        assert held == budget_of(service, model)["limit"]
        worker = psutil.Process(stack.parts["worker"].process.pid)
        killed = [worker, *watch.descendants(worker.pid)]
        for process in killed:
            process.kill()
        watch.until("the worker's end", lambda: not any(map(watch.alive, killed)))
        lock.rollback()
    ended = service.finished(request)
    assert ended["state"] == "completed", ended
    assert service.revisions(model) == [0, 1]
    found = budget_of(service, model)
    assert found["spent"] == service.statement(request)["privacy"]["spent"]
    assert found["reserved"] == 0.0
    kinds = [entry["kind"] for entry in reversed(found["entries"])]
    assert kinds == ["open", "reserve", "release", "reserve", "spend"]
