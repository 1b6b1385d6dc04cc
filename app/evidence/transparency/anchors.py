"""Checkpoints leave for where whoever holds the database cannot change them, and are read back."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from app.errors import AnchorUnreadableError, AppError
from app.evidence import repository
from app.evidence.keys.signing import CheckpointSigner, SigningKeyError
from app.evidence.models import (
    AnchorKind,
    AuditAnchor,
    AuditCheckpoint,
    AuditLog,
    KeyRole,
    SigningKey,
)
from app.evidence.transparency._anchor_targets import (
    ContradictionError,
    Folder,
    Target,
    UndeliveredError,
    targets_of,
    without_credentials,
)
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.notes import Checkpoint, InvalidNoteError, NoteKey, open_note
from app.settings import Settings

logger = structlog.get_logger(__name__)


class Anchoring:
    """Has checkpoints signed as the log grows, and sends the newest wherever it has not been.

    A call returns soon: each target is served by a thread of its own, so that one that hangs keeps
    neither the others nor the caller waiting. What failed is tried again at the next turn. Several
    processes may do this at once; a target then gets the same note twice, now and then.
    """

    def __init__(
        self,
        settings: Settings,
        sessions: sessionmaker[Session],
        notary: Notary,
        signer: CheckpointSigner,
    ) -> None:
        self._interval = settings.checkpoint_seconds
        self._sessions = sessions
        self._notary = notary
        self._signer = signer
        self._targets = targets_of(settings)
        self._under_way: dict[AnchorKind, threading.Thread] = {}
        self._next_turn = float("-inf")

    def turn(self) -> None:
        """Sign and send if it is time to; else return at once.

        What stands against signing is logged, and nothing is sent.
        """
        if time.monotonic() < self._next_turn:
            return
        # Set first: after an error, too, the next turn is an interval away.
        self._next_turn = time.monotonic() + self._interval
        try:
            row = self._newest_checkpoint()
        except (AppError, SigningKeyError) as error:
            logger.error(  # noqa: TRY400 - it says what is wrong; where it was found says nothing
                "anchor.nothing_signed", error=str(error), remedy=getattr(error, "remedy", None)
            )
            return
        with self._sessions.begin() as session:
            try:
                checkpoint = _open(session, row.note, self._signer)
            except InvalidNoteError as error:
                logger.error(  # noqa: TRY400 - as above
                    "anchor.checkpoint_not_ours", log_id=row.log_id, size=row.size, error=str(error)
                )
                return
            served = self._served(session, row)
        for target in self._targets:
            busy = self._under_way.get(target.kind)
            if target.kind in served or (busy is not None and busy.is_alive()):
                continue
            self._under_way[target.kind] = thread = threading.Thread(
                target=self._deliver,
                args=(target, row, checkpoint),
                name=f"lethe-anchor-{target.kind}",
                daemon=True,  # a target that hangs must not keep the process from ending
            )
            thread.start()

    def _served(self, session: Session, row: AuditCheckpoint) -> set[str]:
        """Return the kinds of targets that have a checkpoint already."""
        names = [target.name for target in self._targets]
        return set(
            session.scalars(
                select(AuditAnchor.kind).where(
                    AuditAnchor.log_id == row.log_id,
                    AuditAnchor.size == row.size,
                    AuditAnchor.target.in_(names),
                )
            )
        )

    def wait(self, seconds: float) -> None:
        """Wait for deliveries that are under way, together so long at most."""
        deadline = time.monotonic() + seconds
        for thread in self._under_way.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _newest_checkpoint(self) -> AuditCheckpoint:
        """Return the open log's newest checkpoint; a new one if it is time for it."""
        with self._sessions.begin() as session:
            log = repository.open_log(session)
            newest = repository.newest_checkpoint(session, log.id)
            age = (
                self._interval
                if newest is None
                else (repository.database_time(session) - newest.created_at).total_seconds()
            )
        if newest is not None and newest.size < log.size and age < self._interval:
            return newest  # another process signed it; the log has grown since
        # Where the log has not grown, this holds it against what was signed, and signs nothing.
        return self._notary.sign()

    def _deliver(self, target: Target, row: AuditCheckpoint, checkpoint: Checkpoint) -> None:
        where = {"kind": str(target.kind), "target": target.name, "size": row.size}
        try:
            content = target.send(checkpoint, row.note)
            with self._sessions.begin() as session:
                session.add(
                    AuditAnchor(
                        log_id=row.log_id,
                        size=row.size,
                        kind=target.kind,
                        target=target.name,
                        content=content,
                    )
                )
        except ContradictionError as error:
            logger.error("anchor.contradiction", **where, error=str(error))  # noqa: TRY400
        except (UndeliveredError, httpx.HTTPError, OSError) as error:
            logger.warning("anchor.not_delivered", **where, error=str(error) or repr(error))
        except Exception:
            # A thread's error would be seen by nobody. It is tried again at the next turn.
            logger.exception("anchor.failed", **where)
        else:
            logger.info("anchor.delivered", **where)


class AnchoredNotary(Notary):
    """A notary that first reads what was kept outside the database, and holds the log against it.

    So a service that is started on a database that was restored or rewritten signs nothing.
    """

    def __init__(
        self,
        sessions: sessionmaker[Session],
        signer: CheckpointSigner,
        first_origin: str,
        anchor_url: str | None,
    ) -> None:
        """Prepare a notary; nothing is read before it signs.

        Args:
            sessions: Where the log is.
            signer: Holds the key of checkpoints.
            first_origin: Name of the first log, given to it with its first checkpoint.
            anchor_url: Where checkpoints are kept; None if nowhere that can be read.
        """
        super().__init__(sessions, signer, first_origin)
        self._kept_in = anchor_url
        self._keys = (sessions, signer)
        self._reading = threading.Lock()

    def sign(self) -> AuditCheckpoint:
        """Return a checkpoint of the open log as it is committed, and store it.

        Raises:
            AnchorUnreadableError: What was kept cannot be read; nothing is signed before it was.
            InconsistentLogError: The log does not continue what was signed before; nothing is
                signed.
            SigningKeyError: The key is not one that the log knows.
        """
        with self._reading:
            if self._kept_in is not None:
                for checkpoint in kept_checkpoints(self._kept_in, *self._keys):
                    self.remember(checkpoint)
                self._kept_in = None  # read once: what is signed from now on is remembered anyway
        return super().sign()


def kept_checkpoints(
    anchor_url: str, sessions: sessionmaker[Session], signer: CheckpointSigner
) -> list[Checkpoint]:
    """Return the newest checkpoint of each log in `ANCHOR_URL` that a key known here signed.

    Files that nobody known here signed are passed over, with a warning: whoever may write there
    could stop the service otherwise.

    Raises:
        AnchorUnreadableError: The location does not answer.
    """
    with _reading(anchor_url):
        folder = Folder(anchor_url)
        kept = folder.newest()
    found = []
    for files in kept.values():
        strange: list[tuple[str, str]] = []
        for size, path in files:
            with _reading(anchor_url):
                content = folder.read(path)
            try:
                with sessions.begin() as session:
                    checkpoint = _open(session, content.decode(), signer)
                if checkpoint.size != size:
                    raise InvalidNoteError(f"it is of {checkpoint.size} entries")  # noqa: TRY301
            except (InvalidNoteError, UnicodeDecodeError) as error:
                strange.append((path, str(error)))
                continue
            found.append(checkpoint)
            break
        if strange:
            newest, finding = strange[0]
            logger.warning(
                "anchor.not_of_this_log",
                files=len(strange),
                newest=without_credentials(newest),
                finding=finding,
            )
    return found


@contextmanager
def _reading(anchor_url: str) -> Iterator[None]:
    """Turn what goes wrong at the location, in whichever library, into one error."""
    try:
        yield
    except Exception as error:
        raise AnchorUnreadableError(
            f"ANCHOR_URL: {without_credentials(anchor_url)} cannot be read"
            f" ({type(error).__name__}), so the log cannot be held against the checkpoints kept"
            " there",
            remedy="The operator sees to it that the service may list and read this location.",
        ) from error


def _open(session: Session, note: str, signer: CheckpointSigner) -> Checkpoint:
    """Return a checkpoint that one of the log's registered keys, or our own, signed.

    Raises:
        InvalidNoteError: None of them did, or it is no checkpoint.
    """
    origin = note.partition("\n")[0]
    registered = session.scalars(
        select(SigningKey.public_key)
        .join(AuditLog, AuditLog.id == SigningKey.log_id)
        .where(AuditLog.origin == origin, SigningKey.role == KeyRole.CHECKPOINTS)
    )
    keys = [NoteKey.from_public(origin, _read_key(content)) for content in registered]
    text, _ = open_note(note, [*keys, signer.note_key(origin)])
    return Checkpoint.parse(text)


def _read_key(content: bytes) -> Ed25519PublicKey:
    key = load_der_public_key(content)
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidNoteError(f"a registered key is {type(key).__name__}, not Ed25519")
    return key
