"""Encrypted artifacts: each has a key of its own; destroying the key destroys the content.

A key is destroyed through `shredding` alone, which says so in the audit log.
"""

import datetime
import hashlib
import hmac
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from app.artifacts.blobs import BlobFolder
from app.artifacts.keys import KEY_BYTES, NONCE_BYTES, MasterKey
from app.artifacts.models import Artifact, ArtifactKind
from app.db import new_id
from app.errors import ArtifactCorruptError, ArtifactShreddedError
from app.evidence import log
from app.evidence.canonical import sha256_hex

logger = logging.getLogger(__name__)

KEYS_DESTROYED = "artifact.keys-destroyed"

# Largest number of artifacts that one entry of the log names when their time is over.
DUE_BATCH = 200

# Longer than any transaction between the writing of a blob and the commit of its row.
LEFTOVER_AGE = datetime.timedelta(hours=1)


class ArtifactStore:
    """Blobs at `url` (any fsspec location), their keys in the database under the master key."""

    def __init__(self, url: str, master_key: MasterKey) -> None:
        self._blobs = BlobFolder(url)
        self._master_key = master_key

    def put(self, session: Session, kind: ArtifactKind, content: bytes) -> Artifact:
        """Encrypt and store `content` under a fresh key.

        The blob is written before its row: if the transaction fails, what is left is a blob whose
        key was never stored. Nobody can read it, and `remove_leftovers` removes it.
        """
        identifier = new_id()
        purpose = _purpose(kind, str(identifier))
        key, nonce = os.urandom(KEY_BYTES), os.urandom(NONCE_BYTES)
        blob = nonce + AESGCM(key).encrypt(nonce, content, purpose.encode())
        # The last digits of a UUIDv7 are random; the first would put a day's blobs in one folder.
        location = f"{identifier.hex[-2:]}/{identifier}"
        self._blobs.write(location, blob)
        artifact = Artifact(
            id=identifier,
            kind=kind,
            location=location,
            size_bytes=len(content),
            ciphertext_sha256=sha256_hex(blob),
            wrapped_key=self._master_key.wrap(key, purpose),
        )
        session.add(artifact)
        session.flush()
        return artifact

    def get(self, artifact: Artifact) -> bytes:
        """Return an artifact's content.

        Raises:
            ArtifactShreddedError: Its key was destroyed.
            ArtifactCorruptError: Its blob is missing or is not what was stored.
            MasterKeyError: The master key is not the one it was stored under.
        """
        if artifact.wrapped_key is None:
            raise ArtifactShreddedError(
                f"artifact {artifact.id} ({artifact.kind}) was shredded at {artifact.shredded_at}",
                remedy="Its content is gone for good; use a newer revision.",
            )
        purpose = _purpose(artifact.kind, str(artifact.id))
        key = self._master_key.unwrap(artifact.wrapped_key, purpose)
        try:
            blob = self._blobs.read(artifact.location)
        except FileNotFoundError:
            raise _corrupt(artifact, "its blob is missing") from None
        if sha256_hex(blob) != artifact.ciphertext_sha256:
            raise _corrupt(artifact, "its blob has another SHA-256 than was stored")
        try:
            return AESGCM(key).decrypt(blob[:NONCE_BYTES], blob[NONCE_BYTES:], purpose.encode())
        except InvalidTag:
            raise _corrupt(artifact, "its blob does not open under its key") from None

    def keyed_sha256(self, content: bytes, *, purpose: str) -> str:
        """Return an HMAC-SHA256 of content that a plain hash would give away to whoever guesses."""
        return hmac.new(self._master_key.derive(purpose), content, hashlib.sha256).hexdigest()

    @contextmanager
    def shredding(
        self, session: Session, *, reason: str, subject: Mapping[str, Any]
    ) -> Iterator["Shredding"]:
        """Destroy the keys of one occasion; its end writes the audit log's entry about them.

        Take every other lock before that end: the log comes last.

        Args:
            session: Its commit destroys the keys.
            reason: Why, as a stable word: `request-completed`, `retention-ended`, ...
            subject: Ids of what it happens to, for the log.
        """
        occasion = Shredding(self._blobs, session)
        yield occasion
        # Not after an error: then nothing was destroyed either, since the transaction is undone.
        if payload := occasion.describe():
            log.append(
                session, KEYS_DESTROYED, subject=subject, payload={"reason": reason, **payload}
            )

    def shred_due(self, session: Session) -> int:
        """Destroy the keys of artifacts whose time is over, some at a time; return how many."""
        due = session.scalars(
            select(Artifact)
            .where(
                Artifact.wrapped_key.is_not(None), Artifact.retain_until <= func.clock_timestamp()
            )
            .order_by(Artifact.retain_until)
            .limit(DUE_BATCH)
            # What another sweeper has in hand is its to finish.
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        ).all()
        with self.shredding(session, reason="retention-ended", subject={}) as shredding:
            for artifact in due:
                shredding.shred(artifact)
        return len(due)

    def remove_leftovers(
        self, session: Session, older_than: datetime.timedelta = LEFTOVER_AGE
    ) -> int:
        """Remove blobs that no stored key opens, and return how many there were.

        They stem from rolled-back transactions and from processes that died before they could
        remove a shredded blob. Younger ones may belong to a transaction that is still open.
        """
        written_before = datetime.datetime.now(datetime.UTC) - older_than
        # List first: a blob that is committed after the listing is not in it.
        candidates = list(self._blobs.locations())
        wanted = set(
            session.scalars(select(Artifact.location).where(Artifact.wrapped_key.is_not(None)))
        )
        removed = 0
        for location in candidates:
            if location in wanted:
                continue
            try:
                stale = self._blobs.modified(location) < written_before
            except FileNotFoundError:
                continue  # Another sweeper was faster.
            if stale:
                self._blobs.remove(location)
                removed += 1
        return removed


class Shredding:
    """One occasion on which keys are destroyed, and what is kept of it for a while."""

    def __init__(self, blobs: BlobFolder, session: Session) -> None:
        self._blobs = blobs
        self._session = session
        self._artifacts: list[Artifact] = []
        self._keys: list[str] = []
        self._retained: list[Artifact] = []

    def shred(self, artifact: Artifact) -> None:
        """Destroy an artifact's key; its blob is removed once the transaction is committed.

        From the commit on, nothing in the database opens the blob, wherever copies of it lie.
        """
        if artifact.wrapped_key is None:
            return
        artifact.wrapped_key = None
        artifact.shredded_at = self._session.scalar(select(func.clock_timestamp()))
        self._session.flush()
        self._artifacts.append(artifact)
        _Removals.of(self._session).add(self._blobs, artifact.location)

    def retain(self, artifact: Artifact, until: datetime.datetime) -> None:
        """Keep an artifact until then; the sweeper destroys its key."""
        artifact.retain_until = until
        self._session.flush()
        self._retained.append(artifact)

    def dispose(self, artifact: Artifact, until: datetime.datetime | None) -> None:
        """Keep an artifact until then, or destroy its key at once where there is no such time."""
        if until is None:
            self.shred(artifact)
        else:
            self.retain(artifact, until)

    def note_key(self, name: str) -> None:
        """Have the log say that a key was destroyed which is no artifact's."""
        self._keys.append(name)

    def describe(self) -> dict[str, Any]:
        """Return what the log says of it; nothing where nothing happened."""
        if not (self._artifacts or self._keys or self._retained):
            return {}
        return {
            "artifacts": [_name(artifact) for artifact in self._artifacts],
            "other_keys": self._keys,
            "retained": [
                _name(artifact) | {"until": _time(artifact.retain_until)}
                for artifact in self._retained
            ],
        }


def _name(artifact: Artifact) -> dict[str, str]:
    return {"id": str(artifact.id), "kind": artifact.kind}


def _time(time: datetime.datetime | None) -> str | None:
    return None if time is None else time.astimezone(datetime.UTC).isoformat()


class _Removals:
    """Blobs to remove once a session's transaction is committed."""

    _KEY = "lethe.artifacts.removals"

    def __init__(self) -> None:
        self._waiting: list[tuple[BlobFolder, str]] = []

    @classmethod
    def of(cls, session: Session) -> "_Removals":
        """Return the session's list, made and hooked up on first use."""
        if cls._KEY not in session.info:
            made = session.info[cls._KEY] = cls()
            event.listen(session, "after_commit", made.run)
            event.listen(session, "after_soft_rollback", made.forget)
        found: _Removals = session.info[cls._KEY]
        return found

    def add(self, blobs: BlobFolder, location: str) -> None:
        self._waiting.append((blobs, location))

    def run(self, session: Session) -> None:
        if session.in_nested_transaction():
            return  # Only a savepoint was released; the key may yet come back.
        waiting, self._waiting = self._waiting, []
        for blobs, location in waiting:
            with _reported(location):
                blobs.remove(location)

    def forget(self, _session: Session, _previous: object) -> None:
        # Of a savepoint, too: whatever was shredded all the same is left to the sweeper.
        self._waiting.clear()


@contextmanager
def _reported(location: str) -> Iterator[None]:
    """Log what goes wrong after the commit: the caller's work is done, and the sweeper retries."""
    try:
        yield
    except Exception:
        logger.exception("blob %s: its key is destroyed, but it could not be removed", location)


def _purpose(kind: str, identifier: str) -> str:
    """Return what ties a ciphertext to its row: moved to another row it does not open."""
    return f"lethe/{kind}/{identifier}"


def _corrupt(artifact: Artifact, finding: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(
        f"artifact {artifact.id} ({artifact.kind}): {finding}",
        remedy="Restore the blob from a backup of ARTIFACTS_URL, or register the model again.",
    )
