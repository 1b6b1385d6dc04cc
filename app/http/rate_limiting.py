"""Who may ask how often, decided before a body is read and before the database is asked.

Buckets belong to tokens as they were sent (by their digest), not to the key ids inside them:
whoever knows an id, but not the secret, uses up nobody's share.
"""

import hashlib
import ipaddress
import math
import re
import time
from collections import OrderedDict

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RateLimitedError
from app.http import problems
from app.http.rate_limits import Charge, Decision, Level, Rate, RateLimiter
from app.http.visits import visit_of
from app.settings import Settings

PREFIX = "lethe:rate"
ALWAYS_ANSWERED = "/livez"
UNAUTHORIZED = 401
KNOWN_SECONDS = 3600.0
MOST_KNOWN = 10_000

# What costs the service much more than it costs its caller.
EXPENSIVE = (
    ("POST", re.compile(r"/v1/models")),
    ("POST", re.compile(r"/v1/certificates/verify")),
    ("GET", re.compile(r"/v1/unlearning-requests/[^/]+/record\.(?:html|pdf)")),
)


class RateLimiting:
    """Answers 429 to who asks too often."""

    def __init__(self, app: ASGIApp, limiter: RateLimiter, settings: Settings) -> None:
        self.app = app
        self.limiter = limiter
        self.general = Rate("requests", settings.rate_limit_per_minute, settings.rate_limit_burst)
        per_minute = settings.rate_limit_expensive_per_minute
        self.expensive = Rate("expensive", per_minute, max(1, per_minute // 4))
        per_minute = settings.rate_limit_failures_per_minute
        self.failures = Rate("failed-authentications", per_minute, max(1, per_minute))
        # Tokens that were right a while ago: their holders do not wait for what others behind the
        # same address get wrong. Digests alone, and each still has to be right this time.
        self._known: OrderedDict[bytes, float] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"] == ALWAYS_ANSWERED:
            await self.app(scope, receive, send)
            return
        decision = await run_sync(self.limiter.charge, self._charges(scope))
        if decision.refused_by is not None:
            answer = problems.respond_to(_refusal(decision.refused_by))
            answer.headers["Retry-After"] = str(decision.refused_by.wait)
            _tell(answer.headers, decision)
            await answer(scope, receive, send)
            return
        failed = False

        async def send_with_limits(message: Message) -> None:
            nonlocal failed
            if message["type"] == "http.response.start":
                failed = message["status"] == UNAUTHORIZED
                _tell(MutableHeaders(scope=message), decision)
            await send(message)

        await self.app(scope, receive, send_with_limits)
        if visit_of(scope).caller is not None:
            self._remember(_digest(scope))
        elif failed:
            self._known.pop(_digest(scope), None)
            await run_sync(self.limiter.charge, [self._failure(scope, cost=1)])

    def _charges(self, scope: Scope) -> list[Charge]:
        digest = _digest(scope)
        whose = f"{PREFIX}:key:{digest.hex()}" if digest else f"{PREFIX}:address:{_network(scope)}"
        charges = [Charge(self.general, whose)]
        if time.monotonic() - self._known.get(digest, -math.inf) > KNOWN_SECONDS:
            charges.append(self._failure(scope, cost=0))
        method, path = scope["method"], scope["path"]
        if any(method == one and pattern.fullmatch(path) for one, pattern in EXPENSIVE):
            charges.append(Charge(self.expensive, f"{whose}:expensive"))
        return charges

    def _remember(self, digest: bytes) -> None:
        self._known[digest] = time.monotonic()
        self._known.move_to_end(digest)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    def _failure(self, scope: Scope, cost: int) -> Charge:
        return Charge(self.failures, f"{PREFIX}:failures:{_network(scope)}", cost)


def _digest(scope: Scope) -> bytes:
    """Return which token was sent; nothing if none was."""
    authorization = Headers(scope=scope).get("authorization", "")
    if not authorization:
        return b""
    return hashlib.sha256(authorization.encode("latin-1")).digest()[:16]


def _network(scope: Scope) -> str:
    """Return whom an address belongs to: one host of IPv4, one /64 of IPv6."""
    host = (scope.get("client") or ("local", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "local"  # a socket of this machine
    prefix = 64 if address.version == 6 else 32  # noqa: PLR2004 - versions of IP
    return str(ipaddress.ip_network((address, prefix), strict=False).network_address)


def _refusal(level: Level) -> RateLimitedError:
    per_minute, burst = level.rate.per_minute, level.rate.burst
    return RateLimitedError(
        f"more than {per_minute} a minute ({burst} at once) of the limit {level.rate.name!r}",
        remedy=f"Wait {level.wait} s, as Retry-After says; operators raise RATE_LIMIT_*.",
    )


def _tell(headers: MutableHeaders, decision: Decision) -> None:
    """Add the fields of draft-ietf-httpapi-ratelimit-headers-10."""
    if decision.levels:
        headers["RateLimit-Policy"] = ", ".join(level.rate.policy for level in decision.levels)
        headers["RateLimit"] = ", ".join(level.field for level in decision.levels)
