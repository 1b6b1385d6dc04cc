"""Signing the log's size and root, and never two that contradict each other."""

import threading
from collections.abc import Iterable

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.errors import InconsistentLogError
from app.evidence import repository
from app.evidence.keys import keyring
from app.evidence.keys.signing import CheckpointSigner
from app.evidence.models import AuditCheckpoint, AuditLog, KeyRole
from app.evidence.transparency.merkle import (
    Fetch,
    Frontier,
    InvalidProofError,
    MissingNodeError,
    consistency_proof,
    root_at,
    verify_consistency,
)
from app.evidence.transparency.notes import Checkpoint

logger = structlog.get_logger(__name__)

_REMEDY = (
    "Keep the database as it is, look with `lethe audit verify --since CHECKPOINT` at what was"
    " changed, and restore the database from before it."
)


class Notary:
    """Signs what is committed of the open log (C2SP tlog-checkpoint).

    In transactions of its own: an entry that is not committed may still vanish, and a signature
    under a tree that holds it would then contradict the log for ever.
    """

    def __init__(
        self, sessions: sessionmaker[Session], signer: CheckpointSigner, first_origin: str
    ) -> None:
        """Prepare a notary; nothing is read before it signs.

        Args:
            sessions: Where the log is.
            signer: Holds the key of checkpoints.
            first_origin: Name of the first log, given to it with its first checkpoint.
        """
        self._sessions = sessions
        self._signer = signer
        self._first_origin = first_origin
        self._seen: dict[str, Checkpoint] = {}
        self._lock = threading.Lock()

    def remember(self, checkpoint: Checkpoint) -> None:
        """Hold the log against a checkpoint that was kept outside the database, from now on."""
        with self._lock:
            known = self._seen.get(checkpoint.origin)
            if known is None or known.size < checkpoint.size:
                self._seen[checkpoint.origin] = checkpoint

    def sign(self) -> AuditCheckpoint:
        """Return a checkpoint of the open log as it is committed, and store it.

        Raises:
            InconsistentLogError: The log does not continue what was signed before; nothing is
                signed.
            SigningKeyError: The key is not one that the log knows.
        """
        with self._sessions.begin() as session:
            self._introduce(session)
        with self._sessions.begin() as session:
            log = repository.open_log(session)
            # Read before the log's end is: others sign meanwhile, and what they sign is longer.
            earlier = self._signed_before(session, log)
            session.refresh(log)
            return self._sign(session, log, earlier)

    def _introduce(self, session: Session) -> None:
        """Name the log and its key, where that is still to be done."""
        log = repository.open_log(session)
        if log.origin is None:
            locked = repository.lock_open_log(session)
            if locked is not None and locked.origin is None:
                locked.origin = self._first_origin
                session.flush()
            log = repository.open_log(session)
        keyring.require_active(session, KeyRole.CHECKPOINTS, self._signer, log)

    def _signed_before(self, session: Session, log: AuditLog) -> list[Checkpoint]:
        """Return what this process knows to be signed, and what the database says."""
        with self._lock:
            seen = self._seen.get(self._origin_of(log))
        stored = repository.newest_checkpoint(session, log.id)
        found = [] if seen is None else [seen]
        if stored is not None:
            found.append(Checkpoint(self._origin_of(log), stored.size, stored.root))
        return found

    def _origin_of(self, log: AuditLog) -> str:
        return log.origin or self._first_origin

    def _sign(
        self, session: Session, log: AuditLog, signed_before: list[Checkpoint]
    ) -> AuditCheckpoint:
        head = head_to_sign(session, log, self._origin_of(log), signed_before)
        stored = repository.find_checkpoint(session, log.id, head.size)
        if stored is None:
            note = keyring.sign_checkpoint(session, self._signer, log, head.text())
            repository.add_checkpoint(
                session, log_id=log.id, size=head.size, root=head.root, note=note
            )
            stored = repository.find_checkpoint(session, log.id, head.size)
            assert stored is not None, "just written, by us or another"  # noqa: S101
        self.remember(head)
        return stored


def head_to_sign(
    session: Session, log: AuditLog, origin: str, signed_before: Iterable[Checkpoint]
) -> Checkpoint:
    """Return a log's size and root, which continue everything that was signed of it before.

    Args:
        session: Sees what is committed.
        log: As it is committed; read after `signed_before`, which others may be adding to.
        origin: Its name.
        signed_before: Checkpoints of this log; that of another origin plays no part.

    Raises:
        InconsistentLogError: The log is damaged, or does not continue one of them.
    """
    fetch = repository.fetch_nodes(session, log.id)
    try:
        root = root_at(log.size, fetch)
    except MissingNodeError as error:
        raise _inconsistent(log, str(error)) from error
    if root != Frontier.from_bytes(log.size, log.frontier).root():
        raise _inconsistent(log, "its end has another hash than its entries give")
    for earlier in signed_before:
        if earlier.origin == origin:
            _require_continues(log, root, earlier, fetch)
    return Checkpoint(origin, log.size, root)


def _require_continues(log: AuditLog, root: bytes, earlier: Checkpoint, fetch: Fetch) -> None:
    if earlier.size > log.size:
        raise _inconsistent(
            log, f"it has {log.size} entries, and had {earlier.size} when it was last signed"
        )
    try:
        proof = consistency_proof(earlier.size, log.size, fetch)
        verify_consistency(earlier.size, earlier.root, log.size, root, proof)
    except (MissingNodeError, InvalidProofError) as error:
        raise _inconsistent(
            log, f"it does not continue the {earlier.size} entries signed before: {error}"
        ) from error


def _inconsistent(log: AuditLog, finding: str) -> InconsistentLogError:
    logger.error("log.inconsistent", log_id=log.id, finding=finding)
    return InconsistentLogError(
        f"the audit log {log.origin or log.id} was changed outside this service: {finding}",
        remedy=_REMEDY,
    )
