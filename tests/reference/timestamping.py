"""A real RFC 3161 authority for tests: `openssl ts` behind HTTP on this machine.

Its root and its certificate are made anew for each authority, and last as long as the test.
`timestamps` makes them in this process, of any time.
"""

import datetime
import secrets
import shutil
import subprocess
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CONFIGURATION = """\
[tsa]
default_tsa = one
[one]
serial = {folder}/serial
signer_digest = sha256
default_policy = 1.3.6.1.4.1.32473.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
"""
_REFUSAL = bytes.fromhex("30053003020102")  # TimeStampResp { status rejection(2) }


class Authority:
    """Answers timestamp queries until it is left.

    Attributes:
        url: Where it listens.
        root: Its root certificate, PEM.
        answers: How many timestamps it gave.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lethe-tsa-"))
        self.root = _make_certificates(self._folder)
        (self._folder / "root.pem").write_bytes(self.root)
        (self._folder / "serial").write_text("01\n")
        configuration = _CONFIGURATION.format(folder=self._folder)
        (self._folder / "tsa.cnf").write_text(configuration)
        self.answers = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        shutil.rmtree(self._folder)

    def answer(self, query: bytes) -> bytes:
        """Return what is answered over HTTP; a dishonest authority answers something else."""
        return self.stamp(query)

    def stamp(self, query: bytes) -> bytes:
        """Return the answer to a query, both DER."""
        with self._lock:  # the serial number is a file
            self.answers += 1
            (self._folder / "query").write_bytes(query)
            self._openssl("-reply", "-config", "tsa.cnf", "-queryfile", "query", "-out", "answer",
                          "-signer", "tsa.pem", "-inkey", "tsa.key", check=True)  # fmt: skip
            return (self._folder / "answer").read_bytes()

    def stamp_text(self, text: bytes) -> bytes:
        """Return a timestamp over the SHA-256 of `text`, as anybody can ask for one."""
        (self._folder / "text").write_bytes(text)
        asked = self._openssl("-query", "-data", "text", "-sha256", "-cert", check=True)
        return self.stamp(asked.stdout)

    def verifies(self, stamp: bytes, text: bytes) -> bool:
        """Return whether OpenSSL believes a timestamp of `text` with this authority's root."""
        (self._folder / "text").write_bytes(text)
        (self._folder / "stamp").write_bytes(stamp)
        options = ["-verify", "-data", "text", "-in", "stamp", "-CAfile", "root.pem"]
        return self._openssl(*options, check=False).returncode == 0

    def _openssl(self, *options, check):
        command = ["openssl", "ts", *options]
        return subprocess.run(command, cwd=self._folder, check=check, capture_output=True)

    def _handler(self):
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                query = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/timestamp-query"
                content = authority.answer(query)
                self.send_response(200)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments):
                """Say nothing: the test does."""

        return Handler


class RefusingAuthority(Authority):
    """Refuses whatever it is asked."""

    def answer(self, _query: bytes) -> bytes:
        return _REFUSAL


class ForgetfulAuthority(Authority):
    """Answers every query with its answer to the first."""

    first = None

    def answer(self, query: bytes) -> bytes:
        if self.first is None:
            self.first = self.stamp(query)
        return self.first


class InattentiveAuthority(Authority):
    """Stamps a text of its choice, without the number that ties the answer to the question."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self._text = text

    def answer(self, _query: bytes) -> bytes:
        return self.stamp_text(self._text)


def _make_certificates(folder: Path) -> bytes:
    """Write a root, and a certificate for timestamps that it signed; return the root."""
    root_key, root_name = rsa.generate_private_key(65537, 2048), _name("Root")
    key = rsa.generate_private_key(65537, 2048)
    root = (
        _certificate(root_name, root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        _certificate(_name("Timestamps"), root_name, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        # RFC 3161 §2.3: critical, and alone.
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    (folder / "tsa.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    (folder / "tsa.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return root.public_bytes(Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    # No two alike: an issuer is looked up by its name.
    unique = f"{common_name} {secrets.token_hex(8)}"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, unique)])


def _certificate(subject, issuer, key):
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
