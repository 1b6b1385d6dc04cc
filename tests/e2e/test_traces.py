"""One trace spans API and worker: the real processes, and a collector that reads OTLP."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from app.embedded.stack import Stack
from tests.reference.collector import collecting

pytestmark = pytest.mark.e2e


def test_one_trace_leads_from_the_http_request_to_the_commit_of_the_worker(
    make_client, make_problem
):
    with (
        collecting() as collector,
        tempfile.TemporaryDirectory(prefix="lethe-e2e-") as folder,
    ):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            # Nothing is sent before its time comes, so that the end of a process is tried, too.
            "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        }
        with Stack(Path(folder) / "state", environment=environment) as stack:
            client = make_client(stack.url, stack.admin_key)
            problem = make_problem()
            model = client.register(problem, "traced", statistics=True)
            request = client.forget(
                model, problem.samples_file(np.array([3])), subject_reference="Jane Doe"
            )
            assert client.finished(request)["state"] == "completed"
            client.http.close()
            assert collector.spans == []
        (asked,) = collector.named("POST /v1/unlearning-requests")
        job = collector.wait(lambda: collector.named("unlearning.job"))[0]
        stages = [
            span
            for span in collector.spans
            if span["name"].startswith("unlearning.") and span is not job
        ]
    assert (asked["service"], job["service"]) == ("lethe-api", "lethe-worker")
    assert asked["trace"] == job["trace"]
    assert job["parent"] == asked["id"]
    assert {span["name"] for span in stages} >= {"unlearning.load", "unlearning.commit"}
    assert {span["parent"] for span in stages} == {job["id"]}
    told = b"".join(collector.bodies)
    assert b"Jane" not in told
    assert request.encode() not in told
