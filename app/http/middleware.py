"""What surrounds every request: its id and log line, and the limit on its body."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PayloadTooLargeError
from app.http import problems
from app.http.uploads import JSON, MAX_JSON_BYTES
from app.logging import HTTP_REQUEST_ID

REQUEST_ID = "X-Request-ID"
_HARMLESS = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = structlog.get_logger(__name__)


class RequestContext:
    """Gives each request an id, writes its log line, and answers what nobody foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID, "")
        # A client's own id goes into the log only if it cannot break a line.
        request_id = sent if _HARMLESS.fullmatch(sent) else uuid.uuid4().hex
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        started = time.perf_counter()
        # Workers log it as `http_request_id`, since a job has a request of its own: one name that
        # finds the lines of both.
        with structlog.contextvars.bound_contextvars(
            request_id=request_id, **{HTTP_REQUEST_ID: request_id}
        ):
            try:
                await self.app(scope, receive, send_with_id)
            except ClientDisconnect:
                # Nobody is left to answer, and nothing is wrong with the service.
                logger.info("request.client_left")
            except Exception:
                logger.exception("request.failed")
                if status:
                    raise  # Half an answer has left; the server has to cut the connection.
                await problems.internal_error()(scope, receive, send_with_id)
            logger.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                milliseconds=round(1000 * (time.perf_counter() - started), 1),
            )


class BodyLimit:
    """Answers 413 to bodies over the limit: by their declared length, else while they stream in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        most = self._most(headers)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and _is_over(declared, most):
            await problems.respond_to(_too_large(declared, most))(scope, receive, send)
            return
        received = 0

        async def receive_counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _too_large(f"more than {most}", most)
            return message

        await self.app(scope, receive_counted, send)

    def _most(self, headers: Headers) -> int:
        """Return how much is taken: of JSON less, which nobody sends in such lengths on purpose."""
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        return min(self.max_bytes, MAX_JSON_BYTES) if media_type == JSON else self.max_bytes


def _is_over(digits: str, most: int) -> bool:
    """Compare by length first: int() raises on thousands of digits."""
    digits = digits.lstrip("0")
    return len(digits) > len(str(most)) or int(digits or "0") > most


def _too_large(found: str, most: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"body: {found} bytes, at most {most} are taken",
        field="body",
        remedy="Send float32 safetensors instead of JSON, or fewer samples a request;"
        " operators raise MAX_BODY_BYTES.",
    )
