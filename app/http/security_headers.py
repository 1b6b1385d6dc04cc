"""Headers of every answer: what browsers may do with it, who may keep it, when the key ends.

There is no CORS middleware and no route for OPTIONS: pages of other origins read nothing here.
"""

import datetime

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth import EXPIRY_WARNING
from app.http.visits import visit_of

KEY_EXPIRES = "Lethe-Key-Expires"
NOTHING = "default-src 'none'; frame-ancestors 'none'"
# The reference page is the only page with scripts; they are served from here (fastapi-offline).
REFERENCE_PAGES = ("/docs", "/static-offline-docs")
REFERENCE = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds them; what a route has set itself (its own Content-Security-Policy) stays."""

    def __init__(self, app: ASGIApp, hsts_seconds: int) -> None:
        self.app = app
        self.hsts_seconds = hsts_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_to(MutableHeaders(scope=message), scope)
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _add_to(self, headers: MutableHeaders, scope: Scope) -> None:
        for name, value in ALWAYS.items():
            headers[name] = value
        is_reference = scope["path"].startswith(REFERENCE_PAGES)
        headers.setdefault("Content-Security-Policy", REFERENCE if is_reference else NOTHING)
        if not is_reference:
            headers.setdefault("Cache-Control", "no-store")
        if self.hsts_seconds:
            headers["Strict-Transport-Security"] = f"max-age={self.hsts_seconds}"
        caller = visit_of(scope).caller
        if caller is not None and caller.expires_at is not None:
            expires_at = caller.expires_at.astimezone(datetime.UTC)
            if expires_at - datetime.datetime.now(datetime.UTC) <= EXPIRY_WARNING:
                headers[KEY_EXPIRES] = f"{expires_at:%Y-%m-%dT%H:%M:%SZ}"
