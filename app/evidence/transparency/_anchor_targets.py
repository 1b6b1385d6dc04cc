"""Where checkpoints are sent: a folder or bucket, a webhook, a timestamping authority."""

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, cast

import httpx
import rfc3161_client
from cryptography.x509 import load_pem_x509_certificates
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from app.artifacts.keyfiles import sync_folder
from app.evidence.models import AnchorKind
from app.evidence.transparency.notes import Checkpoint
from app.settings import Settings

TIMEOUT_SECONDS = 5.0
LONGEST_NOTE = 2**14
LONGEST_ANSWER = 2**16  # of a timestamping authority, with its certificates
GRANTED = 0  # PKIStatus, RFC 3161 §2.4.2; "with modifications" is not what was asked for
SHA256 = "2.16.840.1.101.3.4.2.1"

_FILE = re.compile(r"(?P<folder>[^/]+)/(?P<size>[0-9]{20})\.checkpoint")


class UndeliveredError(RuntimeError):
    """A target did not take a checkpoint, or its answer is not what was asked for."""


class ContradictionError(UndeliveredError):
    """Another checkpoint of the same size lies there already: two histories of one log."""


class Target(Protocol):
    """Somewhere that checkpoints are sent to."""

    kind: ClassVar[AnchorKind]
    name: str  # where, without credentials

    def send(self, checkpoint: Checkpoint, note: str) -> bytes | None:
        """Deliver a checkpoint, and return what proves it, if the target gave anything.

        Raises:
            UndeliveredError: It was not taken.
        """


class Folder:
    """A folder or bucket: `<origin with / as ->/<size as 20 digits>.checkpoint`, never replaced."""

    kind: ClassVar[AnchorKind] = AnchorKind.FOLDER

    def __init__(self, url: str) -> None:
        self.name = without_credentials(url)
        self._files, root = url_to_fs(url)
        self._root = str(root).rstrip("/")

    def send(self, checkpoint: Checkpoint, note: str) -> None:
        """Write a file, completely or not at all; one that is there already stays.

        Raises:
            ContradictionError: One is there already, and says something else.
        """
        path = f"{self._root}/{_folder_of(checkpoint.origin)}/{checkpoint.size:020d}.checkpoint"
        content = note.encode()
        if not self._create(path, content) and self.read(path) != content:
            raise ContradictionError(
                f"{without_credentials(path)} holds another checkpoint of {checkpoint.size} entries"
                " than the database: keep both, and compare them with what auditors keep"
            )

    def newest(self) -> dict[str, list[tuple[int, str]]]:
        """Return where checkpoints lie, by folder, those of the largest size first."""
        self._files.invalidate_cache()
        found: dict[str, list[tuple[int, str]]] = {}
        for path in self._files.find(self._root):
            inside = str(path).removeprefix(self._root).lstrip("/")
            if match := _FILE.fullmatch(inside):
                found.setdefault(match["folder"], []).append((int(match["size"]), str(path)))
        return {folder: sorted(files, reverse=True) for folder, files in found.items()}

    def read(self, path: str) -> bytes:
        """Return what is in a file, one byte more than any note has at most."""
        return cast("bytes", self._files.cat_file(path, start=0, end=LONGEST_NOTE + 1))

    def _create(self, path: str, content: bytes) -> bool:
        """Write a new file; False if there is one."""
        if isinstance(self._files, LocalFileSystem):
            return _link_file(Path(path), content)
        self._files.invalidate_cache()
        if self._files.exists(path):
            return False
        # Between the two, an object store that knows conditional writes refuses; with another,
        # whoever wrote in between had a checkpoint of the same size, and the next turn reads it.
        self._files.pipe_file(path, content, mode="create")
        return True


class Webhook:
    """A server that is sent each note as it is."""

    kind: ClassVar[AnchorKind] = AnchorKind.WEBHOOK

    def __init__(self, url: str) -> None:
        self.name = without_credentials(url)
        self._url = url

    def send(self, checkpoint: Checkpoint, note: str) -> None:  # noqa: ARG002 - the note says it
        """Post a note.

        Raises:
            UndeliveredError: The answer is no success; a redirect is none.
        """
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        with (
            httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream("POST", self._url, content=note.encode(), headers=headers) as answer,
        ):
            if not answer.is_success:  # its body is not read, whatever its length
                raise UndeliveredError(f"the server answered {answer.status_code}")


class TimestampAuthority:
    """An authority that signs when it saw the SHA-256 of a note (RFC 3161)."""

    kind: ClassVar[AnchorKind] = AnchorKind.TIMESTAMP

    def __init__(self, url: str, roots_file: Path | None = None) -> None:
        """Prepare to ask an authority.

        Args:
            url: Where it answers (RFC 3161 §3.4).
            roots_file: PEM certificates that its signature must lead to before it is stored;
                without them the signature is left to whoever verifies a record.

        Raises:
            OSError: `roots_file` cannot be read.
            ValueError: It holds no certificate.
        """
        self.name = without_credentials(url)
        self._url = url
        self._roots = (
            [] if roots_file is None else load_pem_x509_certificates(roots_file.read_bytes())
        )

    def send(self, checkpoint: Checkpoint, note: str) -> bytes:  # noqa: ARG002 - the note says it
        """Ask for a timestamp and return the answer, DER.

        Raises:
            UndeliveredError: The authority refused, or answered something else than was asked.
        """
        request = (
            rfc3161_client.TimestampRequestBuilder()
            .data(note.encode())
            .hash_algorithm(rfc3161_client.HashAlgorithm.SHA256)
            .nonce(nonce=True)
            .cert_request(cert_request=True)
            .build()
        )
        content = self._ask(request.as_bytes())
        try:
            self._require_answers(
                rfc3161_client.decode_timestamp_response(content), request, note.encode()
            )
        except ValueError as error:
            raise UndeliveredError(f"the answer is no timestamp ({error})") from error
        return content

    def _ask(self, query: bytes) -> bytes:
        headers = {"Content-Type": "application/timestamp-query"}
        content, deadline = b"", time.monotonic() + 2 * TIMEOUT_SECONDS
        with (
            httpx.Client(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client,
            client.stream("POST", self._url, content=query, headers=headers) as answer,
        ):
            if not answer.is_success:
                raise UndeliveredError(f"the authority answered {answer.status_code}")
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > LONGEST_ANSWER:
                    raise UndeliveredError(f"the answer is longer than {LONGEST_ANSWER} bytes")
                if time.monotonic() > deadline:
                    raise UndeliveredError("the answer took too long")
        return content

    def _require_answers(
        self,
        answer: rfc3161_client.TimeStampResponse,
        request: rfc3161_client.TimeStampRequest,
        note: bytes,
    ) -> None:
        if answer.status != GRANTED:
            raise UndeliveredError(
                f"the authority answered status {answer.status} {answer.status_string}"
            )
        told = answer.tst_info
        imprint = told.message_imprint
        if imprint.hash_algorithm.dotted_string != SHA256 or (
            imprint.message != hashlib.sha256(note).digest()
        ):
            raise UndeliveredError("the timestamp is of another text than the checkpoint's note")
        if told.nonce != request.nonce:
            raise UndeliveredError("the timestamp is the answer to another question (nonce)")
        if not answer.signed_data.certificates:
            raise UndeliveredError("the timestamp came without its authority's certificate")
        if self._roots:
            verifier = rfc3161_client.VerifierBuilder(roots=self._roots).build()
            try:
                verifier.verify_message(answer, note)
            except rfc3161_client.VerificationError as error:
                raise UndeliveredError(
                    f"the timestamp does not lead to TIMESTAMP_ROOTS_FILE ({error})"
                ) from error


def targets_of(settings: Settings) -> Sequence[Target]:
    """Return where the settings send checkpoints to.

    Raises:
        OSError: `TIMESTAMP_ROOTS_FILE` cannot be read.
        ValueError: It holds no certificate, or `ANCHOR_URL` is of an unknown kind.
    """
    targets: list[Target] = []
    if settings.anchor_url is not None:
        targets.append(Folder(settings.anchor_url))
    if settings.anchor_webhook_url is not None:
        targets.append(Webhook(settings.anchor_webhook_url))
    if settings.timestamp_url is not None:
        targets.append(TimestampAuthority(settings.timestamp_url, settings.timestamp_roots_file))
    return targets


def without_credentials(url: str) -> str:
    """Return a location as it may be stored and logged: no user, password, query or fragment."""
    return re.sub(r"//[^/?#]*@", "//", url).partition("?")[0].partition("#")[0]


def _folder_of(origin: str) -> str:
    return origin.replace("/", "-")


def _link_file(path: Path, content: bytes) -> bool:
    """Write a file beside its place and link it there; False if one is there already.

    A link fails where a rename would silently replace. Readable for others: it is meant for them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        os.link(partial, path)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
