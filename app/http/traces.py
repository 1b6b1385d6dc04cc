"""One span an HTTP request, by its route's template.

FastAPI's own telemetry is switched off (`app.main`): it sends raw paths and queries, which hold
requests' ids and subjects' references, and the text of errors.
"""

from http import HTTPStatus

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.observed import method_of, route_of
from app.tracing import Tracing, context_of, logged_trace, mark_failed

# Asked for every few seconds by machines: they would drown the rest.
UNTRACED = frozenset(("/livez", "/readyz", "/metrics"))
OTHER = "_OTHER"  # as OpenTelemetry names methods that clients invent


class TraceRequests:
    """Records every request, as part of its client's trace where it names one."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return
        method = method_of(scope, other=OTHER)
        status: int | None = None

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            await send(message)

        with (
            self.tracing.span(
                method,
                kind=SpanKind.SERVER,
                parent=context_of(Headers(scope=scope).get("traceparent")),
                attributes={"http.request.method": method},
            ) as span,
            logged_trace(span),
        ):
            try:
                await self.app(scope, receive, send_noting_status)
            finally:
                # By the template: a raw path would name a request.
                if (route := route_of(scope)) is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                # None: the client left before there was an answer, which is no failure of ours.
                if status is not None:
                    span.set_attribute("http.response.status_code", status)
                    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                        mark_failed(span)
