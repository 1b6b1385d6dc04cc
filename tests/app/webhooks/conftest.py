"""A receiver over TLS with a certificate of the test's own authority, and a service that sends."""

import datetime
import ipaddress
import json
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from sqlalchemy import select, update

from app.evidence.models import AuditEntry
from app.services import Services
from app.settings import Settings
from app.tenants.models import DEFAULT_TENANT_ID
from app.tenants.scope import narrow
from app.webhooks import outbox, repository, service
from app.webhooks.addresses import Guard
from app.webhooks.delivery import Deliveries, Sender
from app.webhooks.models import Webhook, WebhookDelivery, WebhookEvent
from app.webhooks.schemas import WebhookIn

LOOPBACK = "127.0.0.0/8,::1/128"


@dataclass
class Authority:
    """A certificate authority that nobody but the tests trusts."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests of Lethe")])
        usage = x509.KeyUsage(
            **dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            ),
            key_cert_sign=True,
            crl_sign=True,
        )
        certificate = (
            _certificate(name, name, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, SHA256())
        )
        authority = cls(folder, key, certificate)
        authority.file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return authority

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return what a server of these names shows its clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        certificate = (
            _certificate(subject, self.certificate.subject, key)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]),
                critical=False,
            )
            .sign(self.key, SHA256())
        )
        path = self.folder / f"{uuid.uuid4()}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@dataclass
class Received:
    """One message as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    server_name: str | None


@dataclass
class Receiver:
    """A receiver on loopback. `answers` are given one after the other, the last for ever."""

    server: ThreadingHTTPServer
    scheme: str
    received: list[Received] = field(default_factory=list)
    answers: list[int] = field(default_factory=lambda: [204])
    headers: dict[str, str] = field(default_factory=dict)
    before_answering: Callable[[], None] = lambda: None
    answer_to: Callable[[Received], int] | None = None

    @property
    def port(self) -> int:
        return self.server.server_port

    def url(self, host: str = "localhost", path: str = "/hooks?from=lethe") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def ids(self) -> list[str]:
        return [one.headers["webhook-id"] for one in self.received]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The tests' own certificate authority."""
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def start_receiver(authority: Authority) -> Iterator[Callable[..., Receiver]]:
    """Return a function that starts a receiver; by default with TLS, as localhost."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(*names: str, tls: bool = True) -> Receiver:
        told: dict[int, str | None] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append(
                    Received(self.path, dict(self.headers), body, told.get(id(self.connection)))
                )
                receiver.before_answering()
                served = len(receiver.received)
                status = receiver.answers[min(served, len(receiver.answers)) - 1]
                if receiver.answer_to is not None:
                    status = receiver.answer_to(receiver.received[served - 1])
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing: the test does."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_arguments: Any) -> None:
                """Clients that hang up early are what some tests are about."""

        server = Server(("127.0.0.1", 0), Handler)
        if tls:
            context = authority.server_context(*(names or ("localhost",)))

            def note(connection: ssl.SSLSocket, name: str | None, _context: Any) -> None:
                told[id(connection)] = name

            context.sni_callback = note  # type: ignore[assignment]
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        receiver = Receiver(server, "https" if tls else "http")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        started.append((server, thread))
        return receiver

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def receiver(start_receiver: Callable[..., Receiver]) -> Receiver:
    """A receiver that takes everything."""
    return start_receiver()


@pytest.fixture
def allowing(authority: Authority) -> Callable[..., dict[str, object]]:
    """Return a function that makes the settings under which receivers on loopback are reached."""

    def settings(*receivers: Receiver) -> dict[str, object]:
        return {
            "webhook_allow_private_networks": LOOPBACK,
            "webhook_ports": ",".join(str(one.port) for one in receivers),
            "webhook_ca_file": authority.file,
        }

    return settings


class Office:
    """A service with webhooks, and the workers' side of it."""

    def __init__(self, services: Services, guard: Guard) -> None:
        self.services = services
        self.guard = guard
        self._deliveries: list[Deliveries] = []

    @property
    def settings(self) -> Settings:
        return self.services.settings

    def sender(self, **changes: Any) -> Sender:
        made = Sender.from_settings(self.settings)
        return Sender(**{"guard": self.guard, "trust": made.trust} | changes)

    def add(self, url: str, **wanted: Any) -> tuple[Webhook, str]:
        """Register a webhook and return it with its secret."""
        with self.services.sessions.begin() as session:
            return service.create(
                session,
                self.services.keys,
                self.guard,
                wanted=WebhookIn.model_validate({"url": url} | wanted),
                most=self.settings.webhook_max_endpoints,
                actor="test",
            )

    def tell(self, count: int = 1, event: WebhookEvent = WebhookEvent.REQUEST_RECEIVED) -> None:
        """Let something happen, each time in a transaction of its own."""
        for _ in range(count):
            with self.services.sessions.begin() as session:
                narrow(session, DEFAULT_TENANT_ID)
                outbox.enqueue(session, event, {"request_id": str(uuid.uuid4())})

    def worker(self, **changes: Any) -> Deliveries:
        """Return one worker's deliveries."""
        services = self.services
        made = Deliveries(
            services.settings, services.sessions, services.keys, self.sender(**changes)
        )
        self._deliveries.append(made)
        return made

    def turn(self, worker: Deliveries | None = None) -> None:
        """Take one turn and wait for its end."""
        worker = worker or self.worker()
        worker.turn()
        assert worker.wait(30)

    def webhook(self, webhook: Webhook) -> Webhook:
        with self.services.sessions() as session:
            return session.get_one(Webhook, webhook.id)

    def deliveries(self, webhook: Webhook | None = None) -> list[WebhookDelivery]:
        """Return the deliveries, oldest first."""
        statement = select(WebhookDelivery).order_by(WebhookDelivery.id)
        if webhook is not None:
            statement = repository.list_deliveries(webhook.id, None).order_by(None)
        with self.services.sessions() as session:
            return list(session.scalars(statement))

    def let_time_pass(self, **by: float) -> None:
        """Move every time in the rows back, as if so much had passed since."""
        passed = datetime.timedelta(**by)
        columns = {
            Webhook: ("failing_since", "resume_at", "previous_secret_until", "deleted_at"),
            WebhookDelivery: ("next_attempt_at", "last_attempt_at", "created_at"),
        }
        with self.services.sessions.begin() as session:
            for table, names in columns.items():
                session.execute(
                    update(table).values({name: getattr(table, name) - passed for name in names})
                )

    def close(self) -> None:
        for one in self._deliveries:
            one.stop(5)


@pytest.fixture
def open_office(
    make_settings: Callable[..., Settings], fresh_database_url: str
) -> Iterator[Callable[..., Office]]:
    """Return a function that starts a service on the test's own database; settings by name."""
    opened: list[Office] = []

    def start(*, resolver: Any = None, **changes: object) -> Office:
        settings = make_settings(**{"database_url": fresh_database_url} | changes)
        guard = Guard.from_settings(settings)
        if resolver is not None:
            guard = Guard(guard.allow_http, guard.ports, guard.allowed_networks, resolver)
        opened.append(Office(Services.from_settings(settings), guard))
        return opened[-1]

    yield start
    for office in opened:
        office.close()
        office.services.close()


@pytest.fixture
def office(
    open_office: Callable[..., Office],
    receiver: Receiver,
    allowing: Callable[..., dict[str, object]],
) -> Office:
    """A service that may send to `receiver`."""
    return open_office(**allowing(receiver))


@pytest.fixture
def log_of() -> Callable[[Services, str], list[dict[str, Any]]]:
    """Return a function that reads the audit log's entries of one kind, in order."""

    def read(services: Services, event: str) -> list[dict[str, Any]]:
        with services.sessions() as session:
            bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
            entries = [json.loads(body) for body in bodies]
        return [entry for entry in entries if entry["event"] == event]

    return read
