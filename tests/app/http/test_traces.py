"""Traces of HTTP requests as a collector gets them; none of them says whose data it is."""

import secrets
import subprocess
import sys
import uuid

import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from app.main import assemble
from app.tracing import Tracing, TracingUnavailableError
from app.unlearning.models import UnlearningRequest
from tests.reference.collector import collecting
from tests.reference.leaving import leave

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def traced(make_api, collector):
    """The application, with its spans sent to the collector once it is closed."""
    return make_api(otel_exporter_otlp_endpoint=collector.url)


def sent(api):
    """Send what the application's process holds back to send at once."""
    tracing = next(
        layer.kwargs["tracing"] for layer in api.app.user_middleware if "tracing" in layer.kwargs
    )
    tracing.provider.force_flush()


def test_a_request_is_one_span_named_by_its_route_and_not_by_its_path(traced, collector):
    request_id = uuid.uuid4()
    answer = traced.get(f"/v1/unlearning-requests/{request_id}")
    assert answer.status_code == 404
    sent(traced)
    (span,) = collector.spans
    assert span["service"] == "lethe-api"
    assert span["name"] == "GET /v1/unlearning-requests/{request_id}"
    assert span["attributes"] == {
        "http.request.method": "GET",
        "http.route": "/v1/unlearning-requests/{request_id}",
        "http.response.status_code": 404,
    }
    assert not span["failed"]
    assert span["parent"] == ""
    assert str(request_id).encode() not in b"".join(collector.bodies)


def test_nothing_that_a_client_wrote_leaves_with_a_span(traced, collector, trained):
    parts = trained.parts(statistics=trained.statistics_file())
    model_id = traced.register(parts).json()["id"]
    body = trained.request(model_id, subject_reference="Jane Doe")
    answer = traced.post(
        "/v1/unlearning-requests",
        json=body,
        headers={"User-Agent": "jane-browser", "X-Request-ID": "jane-1"},
    )
    assert answer.status_code == 202
    traced.get("/v1/unlearning-requests", params={"subject_reference": "Jane Doe"})
    traced.get("/v1/Jane-Doe")
    traced("JANE", "/v1/models")
    traced.post("/v1/unlearning-requests", json=body | {"samples": {"x": [["Jane Doe"]]}})
    sent(traced)
    names = {span["name"] for span in collector.spans}
    assert names == {
        "POST /v1/models",
        "POST /v1/unlearning-requests",
        "GET /v1/unlearning-requests",
        "GET",
        "_OTHER /v1/models",
    }
    told = b"".join(collector.bodies).lower()
    assert b"jane" not in told
    assert answer.json()["id"].encode() not in told
    assert repr(body["samples"]["x"][0][0])[:8].encode() not in told
    assert all(span["events"] == [] for span in collector.spans)


def test_a_clients_trace_goes_on_and_is_stored_with_the_request(
    traced, collector, trained, session
):
    model_id = traced.register(trained.parts(statistics=trained.statistics_file())).json()["id"]
    answer = traced.post(
        "/v1/unlearning-requests",
        json=trained.request(model_id),
        headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
    )
    assert answer.status_code == 202
    sent(traced)
    (span,) = collector.named("POST /v1/unlearning-requests")
    assert (span["trace"], span["parent"]) == (TRACE, SPAN)
    stored = session.get(UnlearningRequest, uuid.UUID(answer.json()["id"]))
    assert stored.trace_parent == f"00-{TRACE}-{span['id']}-01"


def test_a_malformed_trace_of_a_client_is_as_good_as_none(traced, collector):
    for wrong in ("00-0-0-01", "x" * 4000, f"00-{'0' * 32}-{SPAN}-01", "é"):
        answer = traced.get("/v1/models", headers={"traceparent": wrong.encode()})
        assert answer.status_code == 200
    sent(traced)
    assert len(collector.spans) == 4
    assert all(span["parent"] == "" for span in collector.spans)


def test_probes_are_not_traced(traced, collector):
    for path in ("/livez", "/readyz", "/metrics"):
        traced.get(path)
    sent(traced)
    assert collector.spans == []


def test_an_error_is_told_by_its_status_and_not_by_its_text(make_api, collector):
    api = make_api(otel_exporter_otlp_endpoint=collector.url)

    @api.app.get("/v1/broken")
    def broken() -> None:
        raise ValueError("row [0.123456789] of Jane Doe")

    assert api.get("/v1/broken").status_code == 500
    sent(api)
    (span,) = collector.spans
    assert span["failed"]
    assert span["attributes"]["http.response.status_code"] == 500
    assert b"Jane" not in b"".join(collector.bodies)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure(traced, collector):
    leave(traced.app, "/v1/certificates/verify", traced.token)
    sent(traced)
    (span,) = collector.spans
    assert not span["failed"]
    assert span["name"] == "POST /v1/certificates/verify"
    assert "http.response.status_code" not in span["attributes"]


def test_clients_cannot_choose_how_much_is_sent(make_api, collector):
    api = make_api(otel_exporter_otlp_endpoint=collector.url, traces_sample_ratio=0.0)
    for _ in range(20):
        api.get("/v1/models", headers={"traceparent": f"00-{secrets.token_hex(16)}-{SPAN}-01"})
        api.get("/v1/models")
    sent(api)
    assert collector.spans == []
    some = make_api(otel_exporter_otlp_endpoint=collector.url, traces_sample_ratio=0.5)
    for _ in range(60):
        some.get("/v1/models", headers={"traceparent": f"00-{secrets.token_hex(16)}-{SPAN}-01"})
    sent(some)
    assert 10 < len(collector.spans) < 50


def test_a_collector_that_refuses_breaks_no_request(make_api, trained):
    with collecting(status=400) as refusing:
        api = make_api(otel_exporter_otlp_endpoint=refusing.url)
        assert api.register(trained.parts()).status_code == 201
        sent(api)
        assert refusing.spans
        assert api.get("/v1/models").status_code == 200


def test_a_collector_that_is_not_there_breaks_no_request(make_api, trained):
    with collecting() as gone:
        url = gone.url
    api = make_api(otel_exporter_otlp_endpoint=url)
    assert api.register(trained.parts()).status_code == 201


def test_log_lines_of_a_traced_request_name_its_trace(traced, collector, log_lines):
    traced.get("/v1/models")
    sent(traced)
    (span,) = collector.spans
    (line,) = [line for line in log_lines() if line["event"] == "request"]
    assert line["trace_id"] == span["trace"]


def test_a_request_without_tracing_stores_no_trace(api, trained, model_id, session):
    answer = api.post(
        "/v1/unlearning-requests",
        json=trained.request(model_id),
        headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
    )
    stored = session.get(UnlearningRequest, uuid.UUID(answer.json()["id"]))
    assert stored.trace_parent is None


WITHOUT = """
import sys
from app.main import create_app
from worker import tracing
from worker.services import get_services
create_app()
assert not get_services().tracing.is_on
# redis-py loads the metrics of the SDK where it is installed; these are of traces alone.
heavy = {"opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf", "requests"}
print(sorted(heavy & set(sys.modules)))
"""


def test_what_is_not_asked_for_is_not_imported(settings):
    environment = {name.upper(): str(getattr(settings, name)) for name in settings.model_fields_set}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_a_missing_extra_is_named_at_the_start(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    wanted = settings.model_copy(update={"otel_exporter_otlp_endpoint": "http://127.0.0.1:1"})
    with pytest.raises(TracingUnavailableError, match=r"lethe\[otel\]"):
        Tracing.start(wanted, "lethe-api")


def test_an_address_that_is_none_is_refused(make_settings, database_url):
    for wrong in ("collector:4318", "grpc://collector:4317", "https:///v1/traces"):
        with pytest.raises(ValidationError, match="expected the base") as caught:
            make_settings(database_url=database_url, otel_exporter_otlp_endpoint=wrong)
        assert wrong not in str(caught.value)
    empty = make_settings(database_url=database_url, otel_exporter_otlp_endpoint="")
    assert empty.otel_exporter_otlp_endpoint is None


def test_fastapis_own_telemetry_stays_off(monkeypatch):
    # It would send raw paths, queries and the text of errors.
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert not _is_telling(assemble())
    assert _is_telling(FastAPI())


def _is_telling(app):
    return any(app._telemetry[name] for name in ("auto_configure", "tracing", "metrics", "logs"))
