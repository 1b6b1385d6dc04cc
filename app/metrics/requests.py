"""Counts and times every HTTP request by its route's template."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.observed import method_of, route_of
from app.metrics.exposition import Metrics

OTHER = "other"  # what is not ours: unknown paths, static files, methods that clients invent
NO_ANSWER = "none"


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
            # By the template: each raw path would be a label of its own.
            route = route_of(scope) or OTHER
            method = method_of(scope, other=OTHER)
            self.metrics.requests.labels(route, method, status).inc()
            self.metrics.durations.labels(route, method).observe(time.perf_counter() - started)
