"""One request is found by its id in the logs of API and worker, and counted by the metrics."""

import json
import tempfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text

from app.embedded.stack import Stack

pytestmark = pytest.mark.e2e

TOKEN = "a-token-of-this-test"  # noqa: S105 - of this test alone


@pytest.fixture
def own_stack(make_client):
    with tempfile.TemporaryDirectory(prefix="lethe-e2e-") as folder:
        environment = {"SWEEP_SECONDS": "0.5", "LEASE_SECONDS": "5", "METRICS_TOKEN": TOKEN}
        with Stack(Path(folder) / "state", environment=environment) as stack:
            client = make_client(stack.url, stack.admin_key)
            yield stack, client
            client.http.close()


def lines_of(stack, part):
    lines = (stack.log_dir / f"{part}.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def scrape(url):
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    return answer.text, {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_a_request_is_found_in_the_logs_of_api_and_worker_and_in_the_metrics(
    own_stack, make_problem, watch
):
    stack, client = own_stack
    problem = make_problem()
    model = client.register(problem, "observed", statistics=True)
    sent = problem.samples_file(np.array([3]))
    answer = client.http.post(
        "/v1/unlearning-requests",
        files={
            "request": (
                "request.json",
                json.dumps({"model_id": model, "seed": 7, "subject_reference": "Jane Doe"}),
                "application/json",
            ),
            "samples": ("samples.safetensors", sent),
        },
        headers={"X-Request-ID": "trace-of-e2e"},
    )
    assert answer.headers["X-Request-ID"] == "trace-of-e2e"
    request = answer.json()["id"]
    assert client.finished(request)["state"] == "completed"

    def finished_lines():
        return [one for one in lines_of(stack, "worker") if one["event"] == "job.finished"]

    watch.until("the worker's line", finished_lines)
    (line,) = finished_lines()
    assert line["http_request_id"] == "trace-of-e2e"
    assert (line["request_id"], line["model_id"]) == (request, model)
    engine = create_engine(stack.environment["DATABASE_URL"])
    with engine.connect() as connection:
        job = connection.scalar(text("SELECT id::text FROM unlearning_job"))
        entries = connection.scalars(text("SELECT convert_from(body, 'UTF8') FROM audit_entry"))
        assert not [body for body in entries if "trace-of-e2e" in body]
    engine.dispose()
    assert line["job_id"] == job
    api = [one for one in lines_of(stack, "api") if one.get("http_request_id") == "trace-of-e2e"]
    assert [one["path"] for one in api if one["event"] == "request"] == ["/v1/unlearning-requests"]

    def completed():
        _, found = scrape(stack.url)
        labels = frozenset({"state": "completed", "tier": "exact"}.items())
        return found.get(("lethe_unlearning_requests", labels)) == 1 and found

    found = watch.until("the completed request in the metrics", completed)
    assert found["lethe_log_consistent", frozenset()] == 1
    assert found["lethe_jobs_ended_total", frozenset({("outcome", "completed")})] == 1
    posted = {"route": "/v1/unlearning-requests", "method": "POST", "status": "202"}
    assert found["lethe_http_requests_total", frozenset(posted.items())] == 1

    page, _ = scrape(stack.url)
    written = page + "".join(
        (stack.log_dir / f"{part}.log").read_text() for part in ("api", "worker")
    )
    master = Path(stack.environment["MASTER_KEY_FILE"]).read_text().strip()
    values = [repr(float(value)) for value in problem.features[3]]
    for secret in ("Jane", TOKEN, stack.admin_key.split("_", 2)[2], master, *values):
        assert secret not in written
    assert request not in page
    assert model not in page
