"""Sending: signed as Standard Webhooks says, to checked addresses, by threads of every worker."""

import math
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import httpcore
import httpx
import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from standardwebhooks.webhooks import Webhook as Signature

from app.artifacts.keys import MasterKey
from app.settings import Settings
from app.webhooks import service
from app.webhooks.addresses import Guard, Target, TargetError
from app.webhooks.service import Claim, Outcome

TIMEOUT_SECONDS: Final = 10.0  # for all of it: name, connection, TLS, request and status
PARALLEL: Final = 8  # deliveries that a worker sends at once
LANES: Final = 4  # of them to one receiver
TURN_SECONDS: Final = 20.0  # after which others get a lane
TIDYING_SECONDS: Final = 600.0

_SECONDS = re.compile(r"[0-9]{1,9}")

logger = structlog.get_logger(__name__)


def sign(claim: Claim) -> str:
    """Return the value of `webhook-signature`: one signature for each secret that is valid."""
    text = claim.body.decode()
    return " ".join(
        Signature(secret).sign(str(claim.message_id), claim.time, text) for secret in claim.secrets
    )


class _Bounded(httpcore.NetworkStream):
    """A connection on which all reads and writes together end at one moment.

    httpcore's timeouts begin anew with every byte, so that a receiver could keep a thread for days.
    """

    def __init__(self, stream: httpcore.NetworkStream, ends_at: float) -> None:
        self._stream = stream
        self._ends_at = ends_at

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, self._left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, self._left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        left = self._left(httpcore.ConnectTimeout)
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, left), self._ends_at)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def _left(self, error: type[httpcore.TimeoutException]) -> float:
        return _left(self._ends_at, error)


class _CheckedBackend(httpcore.NetworkBackend):
    """Resolves a name once, checks every address, and connects to one that was checked.

    The connection is to an address; the request, SNI and the certificate's name stay the host's.
    """

    def __init__(self, guard: Guard, ends_at: float) -> None:
        self._guard = guard
        self._ends_at = ends_at
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - the end of all is nearer
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = self._guard.addresses(host, port, self._left())
        failure: Exception | None = None
        for tried, address in enumerate(addresses):
            # One that does not answer must leave time for the next: IPv6 that leads nowhere is
            # common.
            share = self._left() / (len(addresses) - tried)
            try:
                stream = self._sockets.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _Bounded(stream, self._ends_at)
        raise failure or httpcore.ConnectError(f"{host!r} has no address")

    def _left(self) -> float:
        return _left(self._ends_at, httpcore.ConnectTimeout)


def _left(ends_at: float, error: type[httpcore.TimeoutException]) -> float:
    left = ends_at - time.monotonic()
    if left <= 0:
        raise error(f"more than {TIMEOUT_SECONDS} s")
    return left


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends one message. No proxy of the environment, no redirect, no cookie, no body read."""

    guard: Guard
    trust: ssl.SSLContext
    timeout_seconds: float = TIMEOUT_SECONDS

    @classmethod
    def from_settings(cls, settings: Settings) -> "Sender":
        """Return a sender that trusts the public authorities and `WEBHOOK_CA_FILE`.

        Raises:
            OSError: The file cannot be read or holds no certificate.
        """
        trust = httpx.create_ssl_context()
        if settings.webhook_ca_file is not None:
            trust.load_verify_locations(settings.webhook_ca_file)
        return cls(Guard.from_settings(settings), trust)

    def send(self, claim: Claim) -> Outcome:
        """Send a message and return what came of it; what goes wrong on the way is an outcome."""
        try:
            return self._post(self.guard.parse(claim.url), claim)
        except TargetError as error:
            return Outcome(error=f"not sent: {error.finding}")
        except httpcore.TimeoutException:
            return Outcome(error=f"no answer within {self.timeout_seconds:g} s")
        except httpcore.ConnectError as error:
            # Of the system or of TLS: nothing in it comes from the receiver's answers.
            return Outcome(error=f"no connection: {error}")
        except httpcore.ProtocolError:
            # Its message quotes what came instead of HTTP.
            return Outcome(error="the answer is no HTTP, or none came")
        except httpcore.NetworkError:
            return Outcome(error="the connection broke before the answer")

    def _post(self, target: Target, claim: Claim) -> Outcome:
        ends_at = time.monotonic() + self.timeout_seconds
        headers = {
            "Host": target.authority,
            "User-Agent": f"Lethe/{version('lethe')}",
            "Content-Type": "application/json",
            "Content-Length": str(len(claim.body)),
            "Connection": "close",
            "webhook-id": str(claim.message_id),
            "webhook-timestamp": str(math.floor(claim.time.timestamp())),
            "webhook-signature": sign(claim),
        }
        with (
            httpcore.ConnectionPool(
                ssl_context=self.trust,
                max_connections=1,
                network_backend=_CheckedBackend(self.guard, ends_at),
            ) as connections,
            connections.stream(
                "POST",
                httpcore.URL(
                    scheme=target.scheme, host=target.host, port=target.port, target=target.path
                ),
                headers=list(headers.items()),
                content=claim.body,
            ) as answer,
        ):
            # The status is all that is looked at: a body could be a private network's, or endless.
            return Outcome(answer.status, retry_after=_retry_after(answer.headers))


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """Return the seconds of `Retry-After`; a date is left to our own schedule."""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name.lower() == b"retry-after" and _SECONDS.fullmatch(text):
            return int(text)
    return None


class Deliveries:
    """Sends what is due, in threads of its own, several at a time; workers share the work.

    A claim is a row that is due again after `service.CLAIM_SECONDS`: whoever dies while sending has
    it sent again by the others, with the same id. No transaction is open meanwhile.

    A receiver has some lanes, one if it fails: one that hangs takes a few threads for some seconds,
    then its deliveries wait for `resume_at`.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: sessionmaker[Session],
        keys: MasterKey,
        sender: Sender | None = None,
    ) -> None:
        self._sessions = sessions
        self._keys = keys
        self._sender = sender or Sender.from_settings(settings)
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="lethe-webhooks")
        self._lanes: dict[uuid.UUID, list[Future[None]]] = {}
        self._stopped = threading.Event()
        self._tidied_at = -math.inf

    def turn(self) -> None:
        """Have what is due sent; returns at once. What is under way goes on."""
        if time.monotonic() - self._tidied_at > TIDYING_SECONDS:
            with self._sessions.begin() as session:
                service.tidy(session)
            self._tidied_at = time.monotonic()
        with self._sessions.begin() as session:
            due = service.due(session)
        self._lanes = {
            webhook_id: running
            for webhook_id, lanes in self._lanes.items()
            if (running := [lane for lane in lanes if not lane.done()])
        }
        for webhook_id, is_failing in due.items():
            lanes = self._lanes.setdefault(webhook_id, [])
            for _ in range((1 if is_failing else LANES) - len(lanes)):
                lanes.append(self._pool.submit(self._work, webhook_id))

    def wait(self, seconds: float) -> bool:
        """Wait until what turns have begun is over; return whether it is."""
        under_way = [lane for lanes in self._lanes.values() for lane in lanes]
        return not wait(under_way, seconds).not_done

    def stop(self, seconds: float) -> None:
        """Begin nothing new, and wait a while for what is under way.

        What is not over by then is sent again by another worker.
        """
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.wait(seconds)

    def _work(self, webhook_id: uuid.UUID) -> None:
        """Send a webhook's deliveries, one after the other, until one fails or the turn is over."""
        ends_at = time.monotonic() + TURN_SECONDS
        try:
            while not self._stopped.is_set() and time.monotonic() < ends_at:
                if not self._send_next(webhook_id):
                    return
        except OperationalError as error:
            logger.warning("webhook.database_away", webhook_id=str(webhook_id), error=str(error))
        except Exception:
            # A thread's error would be seen by nobody. The claim ends by itself.
            logger.exception("webhook.lane_failed", webhook_id=str(webhook_id))

    def _send_next(self, webhook_id: uuid.UUID) -> bool:
        """Send what is due next; False if there is nothing, or it was not taken."""
        with self._sessions.begin() as session:
            claim = service.claim(session, self._keys, webhook_id)
        if claim is None:
            return False
        try:
            outcome = self._sender.send(claim)
        except Exception:
            # Ours, not the receiver's. It is tried again later like all others, not at once.
            logger.exception("webhook.sending_failed", delivery_id=str(claim.delivery_id))
            outcome = Outcome(error="internal error: see the worker's log")
        with self._sessions.begin() as session:
            service.record(session, claim, outcome)
        return outcome.is_success
