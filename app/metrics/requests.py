"""Counts and times every HTTP request by its route's template."""

import time
from http import HTTPMethod

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.metrics.exposition import Metrics

OTHER = "other"  # what is not ours: unknown paths, static files, methods that clients invent
NO_ANSWER = "none"

_METHODS = frozenset(method.value for method in HTTPMethod)


class RequestMetrics:
    """Outermost, so that whatever is answered by whatever layer is counted."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = NO_ANSWER

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(int(message["status"]))
            await send(message)

        started = time.perf_counter()
        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            # The router leaves there what it has found; a raw path would be a label of its own.
            route = getattr(scope.get("route"), "path", OTHER)
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            self.metrics.requests.labels(route, method, status).inc()
            self.metrics.durations.labels(route, method).observe(time.perf_counter() - started)
