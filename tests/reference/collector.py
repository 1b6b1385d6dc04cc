"""A collector of OpenTelemetry traces: takes OTLP over HTTP, as the protocol's own schema reads."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collector:
    """What was received: every span as a dictionary, and the bytes as they came."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.bodies: list[bytes] = []
        self.spans: list[dict[str, Any]] = []
        self.url = ""

    def take(self, path: str, body: bytes) -> None:
        """Read one export."""
        assert path == "/v1/traces", path
        self.bodies.append(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            service = _attributes(resource.resource)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_read(span) | {"service": service} for span in scope.spans]

    def named(self, *names: str) -> list[dict[str, Any]]:
        """Return the spans of some names, in the order in which they began."""
        found = [span for span in self.spans if span["name"] in names]
        return sorted(found, key=lambda span: span["start"])

    def wait(self, what: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Return what is true at last."""
        until = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < until, [span["name"] for span in self.spans]
            time.sleep(0.05)
        return found


def _attributes(owner: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in owner.attributes}


def _read(span: Any) -> dict[str, Any]:
    return {
        "name": span.name,
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "attributes": _attributes(span),
        "links": [link.trace_id.hex() for link in span.links],
        "events": list(span.events),
        "failed": span.status.code == span.status.STATUS_CODE_ERROR,
        "message": span.status.message,
    }


@contextmanager
def collecting(status: int = 200) -> Iterator[Collector]:
    """Run a collector on a free port; it answers everything with a status."""
    collector = Collector(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.headers["Content-Type"] == "application/x-protobuf"
            collector.take(self.path, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing: the test's output is pytest's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
