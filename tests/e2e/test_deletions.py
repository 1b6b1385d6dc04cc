import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

pytestmark = pytest.mark.e2e

LETHE = Path(sys.executable).parent / "lethe"


def distance(found, retrained, original):
    """ρ_w of METHOD §3: 0 is retraining, 1 is doing nothing."""
    return np.linalg.norm(found - retrained) / np.linalg.norm(original - retrained)


@pytest.mark.parametrize("convention", ["per_sample", "total"])
def test_one_record_is_forgotten_exactly(service, make_problem, convention):
    problem = make_problem(convention=convention)
    model = service.register(problem, f"exact {convention}", statistics=True)
    row = np.array([17])
    request = service.finished(service.forget(model, problem.samples_file(row)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("exact", "stored")
    assert service.revisions(model) == [0, 1]
    weights = service.weights(model, request["resulting_revision"])
    retrained = problem.train_without(row)
    assert distance(weights, retrained, problem.train()) <= 1e-8
    shift = problem.strength * (399 if convention == "per_sample" else 1)
    rest = np.delete(np.arange(400), row)
    x, y = problem.features[rest], problem.targets[rest]
    residual = np.linalg.norm(x.T @ (x @ weights - y) + shift * weights)
    assert residual <= request["result"]["residual_bound"] < 1e-8
    statement = json.loads(
        service.http.get(f"/v1/unlearning-requests/{request['id']}/certificate").text
    )
    assert statement


def test_ten_percent_without_statistics_are_forgotten_by_estimate(service, make_problem):
    problem = make_problem(n=2000)
    model = service.register(problem, "estimated", statistics=False)
    rows = np.random.default_rng(1).choice(2000, 200, replace=False)
    request = service.finished(service.forget(model, problem.samples_file(rows)))
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("estimated", "forget-curvature")
    weights = service.weights(model, 1)
    assert distance(weights, problem.train_without(rows), problem.train()) < 0.6
    answer = service.http.get(f"/v1/unlearning-requests/{request['id']}/certificate")
    assert answer.status_code == 404  # an estimate is never a certificate
    assert answer.json()["type"] == "urn:lethe:problem:no-certificate"


def test_one_record_without_statistics_is_refused_with_cause_and_remedy(service, make_problem):
    problem = make_problem()
    model = service.register(problem, "refused", statistics=False)
    request = service.finished(service.forget(model, problem.samples_file(np.array([3]))))
    assert request["state"] == "refused"
    assert request["refusal"]["cause"] == "forget-set-too-small"
    assert request["refusal"]["remedy"]
    assert service.revisions(model) == [0]
    np.testing.assert_array_equal(service.weights(model, 0), problem.train())


def test_the_published_estimator_can_be_asked_for(service, make_problem):
    problem = make_problem(n=2000, d=6)
    model = service.register(problem, "paper", statistics=False)
    rows = np.random.default_rng(2).choice(2000, 300, replace=False)
    request = service.finished(
        service.forget(model, problem.samples_file(rows), method="paper-sdp")
    )
    assert request["state"] == "completed", request
    assert (request["tier"], request["method"]) == ("estimated", "paper-sdp")
    assert request["result"]["solvers"][0]["status"] == "optimal"
    weights = service.weights(model, 1)
    assert distance(weights, problem.train_without(rows), problem.train()) < 1
    assert not any(bound["certifies"] for bound in request["result"]["bounds"])


def test_samples_that_were_never_trained_on_are_refused(service, make_problem):
    problem = make_problem(n=20)
    model = service.register(problem, "forged", statistics=True)
    # Eight copies' worth of one direction: no data set of 19 rows has less of it than none.
    bound = problem.manifest("")["feature_norm_bound"]
    forged = np.zeros((12, 8))
    forged[:, 0] = np.linspace(0.9, 1.0, 12) * bound
    samples = safetensors.numpy.save({"x": forged, "y": np.zeros(12, np.int64)})
    request = service.finished(service.forget(model, samples))
    assert request["state"] == "refused", request
    assert request["refusal"]["cause"] == "not-in-training-set"
    # The statistics are as they were: a genuine sample is still forgotten exactly.
    row = np.array([0])
    request = service.finished(service.forget(model, problem.samples_file(row)))
    assert request["state"] == "completed", request
    weights = service.weights(model, 1)
    assert distance(weights, problem.train_without(row), problem.train()) <= 1e-8


def test_a_sample_is_not_subtracted_twice(service, make_problem):
    problem = make_problem(seed=3)
    model = service.register(problem, "twice", statistics=True)
    first, both, other = np.array([5]), np.array([5, 6]), np.array([9])
    assert (
        service.finished(service.forget(model, problem.samples_file(first)))["state"] == "completed"
    )
    again = service.finished(service.forget(model, problem.samples_file(both)))
    assert again["state"] == "refused"
    assert again["refusal"]["cause"] == "already-forgotten"
    assert service.revisions(model) == [0, 1]
    # Had the statistics been touched, the next exact deletion would not equal retraining.
    assert (
        service.finished(service.forget(model, problem.samples_file(other)))["state"] == "completed"
    )
    retrained = problem.train_without(np.array([5, 9]))
    assert distance(service.weights(model, 2), retrained, problem.train()) <= 1e-8


def test_a_sample_sent_twice_in_one_request_is_refused(service, make_problem):
    problem = make_problem(seed=4)
    model = service.register(problem, "copies", statistics=True)
    request = service.finished(service.forget(model, problem.samples_file(np.array([1, 2, 1]))))
    assert request["state"] == "refused"
    assert request["refusal"]["cause"] == "duplicate-samples"


def test_requests_of_one_model_run_in_their_order_and_add_up_to_retraining(service, make_problem):
    problem = make_problem(seed=5)
    model = service.register(problem, "sequence", statistics=True)
    parts = [np.arange(0, 40), np.arange(40, 41), np.arange(41, 90)]
    requests = [service.forget(model, problem.samples_file(rows)) for rows in parts]
    ended = [service.finished(request) for request in requests]
    assert [request["resulting_revision"] for request in ended] == [1, 2, 3]
    retrained = problem.train_without(np.arange(90))
    assert distance(service.weights(model, 3), retrained, problem.train()) <= 1e-8
    superseded = service.http.get(f"/v1/models/{model}/revisions/2/weights")
    assert superseded.status_code == 410  # two revisions together would reveal a record


def test_a_record_verifies_offline_and_a_changed_one_does_not(service, make_problem, tmp_path):
    problem = make_problem(seed=6)
    model = service.register(problem, "verified", statistics=True)
    request = service.finished(service.forget(model, problem.samples_file(np.array([0]))))
    (tmp_path / "keys.json").write_bytes(service.keys())
    (tmp_path / "weights").write_bytes(service.weights_file(model, 1))
    record = service.record(request["id"])

    def verify(content: bytes) -> subprocess.CompletedProcess[str]:
        (tmp_path / "record.json").write_bytes(content)
        files = ["record.json", "--key", "keys.json", "--weights", "weights"]
        return subprocess.run(
            [LETHE, "verify", *files], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    genuine = verify(record)
    assert genuine.returncode == 0, genuine.stdout + genuine.stderr
    bundle = json.loads(record)
    payload = bundle["envelope"]["payload"]
    swapped = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    forged = verify(
        json.dumps(bundle | {"envelope": bundle["envelope"] | {"payload": swapped}}).encode()
    )
    assert forged.returncode == 1
    assert "does not verify" in forged.stderr
    (tmp_path / "weights").write_bytes(problem.weights_file())
    assert verify(record).returncode == 1  # genuine, but about other weights


def test_refused_requests_have_a_signed_record_too(service, make_problem, tmp_path):
    problem = make_problem(seed=8)
    model = service.register(problem, "refusal record", statistics=False)
    request = service.finished(service.forget(model, problem.samples_file(np.array([3]))))
    record = tmp_path / "record.json"
    record.write_bytes(service.record(request["id"]))
    key = tmp_path / "keys.json"
    key.write_bytes(service.keys())
    checked = subprocess.run([LETHE, "verify", record, "--key", key], check=False)
    assert checked.returncode == 0
