"""A client that leaves in the middle of its body, as a server tells an ASGI application of it."""

import asyncio
from typing import Any

from starlette.types import ASGIApp


def leave(app: ASGIApp, path: str, token: str = "") -> list[Any]:
    """Post half a JSON body and leave; return what the application answered all the same."""
    arriving = [{"type": "http.request", "body": b"half", "more_body": True}]
    answered: list[Any] = []

    async def receive() -> Any:
        return arriving.pop() if arriving else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answered.append(message)

    headers = [
        (b"content-type", b"application/json"),
        (b"authorization", f"Bearer {token}".encode()),
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(app(scope, receive, send))
    return answered
