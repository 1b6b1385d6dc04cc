"""Replacing the private keys: what the registry says and what the files hold, in step.

A new key is written aside, as NAME.next.pem, before the registry learns of it, and takes the place
of the old one after that is committed. So whenever this is interrupted, the next run can tell: a
key aside that the registry does not know is used for the new attempt; one that it knows is put in
its place, and that ends the interrupted run.
"""

import datetime
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts.keyfiles import (
    locked_folder,
    replace_secret_file,
    sync_folder,
    write_secret_file,
)
from app.artifacts.keys import MasterKey
from app.errors import InconsistentLogError
from app.evidence import repository
from app.evidence.keys import keyring
from app.evidence.keys.keysources import KeySource, SigningKeyError, key_source
from app.evidence.keys.signing import CheckpointSigner, kept_path, key_id_of
from app.evidence.models import AuditLog, KeyRole, SigningKey
from app.evidence.transparency.anchors import kept_checkpoints
from app.evidence.transparency.checkpoints import head_to_sign
from app.evidence.transparency.notes import Checkpoint, sign_note
from app.settings import KeySettings

_STEM = {KeyRole.RECORDS: "signing", KeyRole.CHECKPOINTS: "log"}


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a new key.

    Attributes:
        role: What it signs.
        key_id: Which one it is.
        path: The file that holds it.
        kept: The file that holds its predecessor, if that was readable and in a file.
        installed: Whether services take it up by themselves; else somebody has to give it to them,
            since they have their key from the environment.
        resumed: Whether an earlier run had made it, and this one only ended that.
    """

    role: KeyRole
    key_id: str
    path: Path
    kept: Path | None
    installed: bool
    resumed: bool


@dataclass(frozen=True, slots=True)
class Revocation:
    """What was done about a compromised key.

    Attributes:
        key_id: The key that does not count any more.
        changes: The new keys.
        new_origin: Name of the log that was opened, if one was.
        unsigned: Names of closed logs whose end no checkpoint covers, as no key of theirs is at
            hand.
    """

    key_id: str
    changes: tuple[Change, ...] = ()
    new_origin: str | None = None
    unsigned: tuple[str, ...] = ()


class Custodian:
    """Changes the private keys of a deployment."""

    def __init__(
        self, sessions: sessionmaker[Session], settings: KeySettings, directory: Path
    ) -> None:
        """Look where the keys are; none is read yet.

        Args:
            sessions: The registry's database.
            settings: Where the keys are, and what they are encrypted with.
            directory: Where new keys are written that are to go into the environment.

        Raises:
            MasterKeyError: The master key cannot be read.
            SigningKeyError: The passphrase cannot.
        """
        master = MasterKey.load(settings.master_key_file)
        self._sessions = sessions
        self._origin = settings.log_origin
        self._anchor_url = settings.anchor_url
        self._directory = directory
        self._sources = {role: key_source(settings, role, master) for role in KeyRole}

    def rotate(self, role: KeyRole, overlap: datetime.timedelta) -> Change:
        """Replace a key; the old one endorses the new one and counts for `overlap` longer.

        Raises:
            SigningKeyError: The old key is unreadable, or its folder is not writable.
            KeyNotInForceError: The old key is not the active one.
        """
        source = self._sources[role]
        with self._changing(role):
            old, _ = source.read()
            if (resumed := self._finish(source, old)) is not None:
                return resumed
            new = self._prepare(source)
            with self._sessions.begin() as session:
                keyring.rotate(
                    session,
                    role,
                    old,
                    new.public_key(),
                    overlap=overlap,
                    first_origin=self._origin,
                )
            return self._install(source, old, new, resumed=False)

    def revoke_compromised(self, key: str, reason: str) -> Revocation:
        """Publish a key as compromised, and go on with a new log and new keys.

        The old keys need not be readable: a lost key is replaced in the same way.

        Raises:
            SigningKeyError: There is no such key, or it was published as compromised already and
                there is nothing left to end.
            InconsistentLogError: The closed log contradicts a checkpoint, so that its end is not
                signed; everything else is done.
            AnchorUnreadableError: ANCHOR_URL does not answer; likewise, and a rerun ends it.
        """
        with self._changing(*KeyRole):
            at_hand = {role: self._read(role) for role in KeyRole}
            changes = [
                change
                for role, old in at_hand.items()
                if (change := self._finish(self._sources[role], old)) is not None
            ]
            with self._sessions.begin() as session:
                found = keyring.find_key(session, key)
                key_id, is_published = found.id, found.compromised
                log = repository.open_log(session)
                is_of_closed_log = found.log_id is not None and found.log_id != log.id
                active = keyring.active_key(session, KeyRole.RECORDS, log)
                replaces_records = active is not None and active.id == key_id
                if is_of_closed_log and not is_published:
                    keyring.mark_compromised(session, key_id, reason)
            origin = None
            if not is_of_closed_log and not is_published:
                origin, more = self._start_over(key_id, reason, replaces_records=replaces_records)
                changes += more
            elif is_published and not changes and not self._unsigned_logs():
                raise SigningKeyError(
                    f"key {key_id[:16]} was published as compromised already; the open log is"
                    f" {log.origin}"
                )
            unsigned = self._sign_ends(at_hand[KeyRole.CHECKPOINTS])
        return Revocation(key_id, tuple(changes), origin, unsigned)

    def encrypt(self) -> list[Path]:
        """Encrypt the key files that are not, and return them.

        Raises:
            SigningKeyError: One cannot be read or written.
        """
        done = []
        with self._changing(*KeyRole):
            for source in self._sources.values():
                if source.path is None:
                    continue
                key, _ = source.read()
                if source.is_plain():
                    owner = source.path.stat()
                    replace_secret_file(source.path, source.encrypt(key))
                    _give(source.path, owner)
                    done.append(source.path)
        return done

    def _start_over(
        self, key_id: str, reason: str, *, replaces_records: bool
    ) -> tuple[str | None, list[Change]]:
        roles = [KeyRole.CHECKPOINTS, *([KeyRole.RECORDS] if replaces_records else [])]
        before = {role: self._read(role) for role in roles}
        new = {role: self._prepare(self._sources[role]) for role in roles}
        public = {role: key.public_key() for role, key in new.items()}
        with self._sessions.begin() as session:
            opened = keyring.start_over(
                session,
                key_id,
                reason,
                keyring.NewKeys(public[KeyRole.CHECKPOINTS], public.get(KeyRole.RECORDS)),
                first_origin=self._origin,
            )
        changes = [
            self._install(self._sources[role], before[role], new[role], resumed=False)
            for role in roles
        ]
        return opened.origin, changes

    @contextmanager
    def _changing(self, *roles: KeyRole) -> Iterator[None]:
        """Let no other process change these keys, and tell what goes wrong with their files."""
        folders = {self._aside(self._sources[role]).parent for role in roles}
        if missing := [folder for folder in folders if not folder.is_dir()]:
            raise SigningKeyError(f"{missing[0]}: there is no such folder of keys")
        try:
            with ExitStack() as locks:
                for folder in sorted(folders):
                    locks.enter_context(locked_folder(folder))
                yield
        except OSError as error:
            raise SigningKeyError(
                f"{error.filename or ', '.join(map(str, folders))}: {error.strerror}; keys are"
                " replaced by a user who may write into their folder. Nothing is lost: run this"
                " again"
            ) from error

    def _aside(self, source: KeySource) -> Path:
        if source.path is None:
            return self._directory / f"{_STEM[source.role]}.next.pem"
        return source.path.with_name(f"{source.path.stem}.next.pem")

    def _read(self, role: KeyRole) -> Ed25519PrivateKey | None:
        """Return a role's key, or None where it was lost."""
        try:
            key, _ = self._sources[role].read()
        except SigningKeyError:
            return None  # to be replaced, whatever is wrong with it
        return key

    def _prepare(self, source: KeySource) -> Ed25519PrivateKey:
        """Return a new key that lies aside, perhaps since an earlier run."""
        aside = self._aside(source)
        if aside.exists():
            key, _ = source.beside(aside).read()
        else:
            key = Ed25519PrivateKey.generate()
            write_secret_file(aside, source.encrypt(key))
        return key

    def _finish(self, source: KeySource, old: Ed25519PrivateKey | None) -> Change | None:
        """Put a key in its place that the registry already counts on, if there is one aside."""
        aside = self._aside(source)
        if not aside.exists():
            return None
        new, _ = source.beside(aside).read()
        new_id = key_id_of(new.public_key())
        with self._sessions() as session:
            is_known = session.get(SigningKey, new_id) is not None
            active = keyring.active_key(session, source.role, repository.open_log(session))
        if not is_known:
            return None
        is_installed = old is not None and key_id_of(old.public_key()) == new_id
        if is_installed or active is None or active.id != new_id:
            # Somebody has put it into the environment since, or it has ended by now.
            aside.rename(kept_path(self._main(source), new_id))
            return None
        return self._install(source, old, new, resumed=True)

    def _main(self, source: KeySource) -> Path:
        return source.path or self._directory / f"{_STEM[source.role]}.pem"

    def _install(
        self,
        source: KeySource,
        old: Ed25519PrivateKey | None,
        new: Ed25519PrivateKey,
        *,
        resumed: bool,
    ) -> Change:
        """Put the key that lies aside in its place, and keep the old one beside it."""
        path, aside = source.path, self._aside(source)
        new_id = key_id_of(new.public_key())
        if path is None:
            return Change(source.role, new_id, aside, None, installed=False, resumed=resumed)
        kept = None
        if old is not None:
            kept = kept_path(path, key_id_of(old.public_key()))
            if not kept.exists():
                write_secret_file(kept, source.encrypt(old))
        if path.exists():
            owner = path.stat()
            _give(aside, owner)
            if kept is not None:
                _give(kept, owner)
            else:
                # Not ours to destroy, although it did not open.
                os.link(path, path.with_name(f"{path.stem}.unreadable-{time.time_ns()}.pem"))
        aside.rename(path)
        sync_folder(path.parent)
        return Change(source.role, new_id, path, kept, installed=True, resumed=resumed)

    def _unsigned_logs(self) -> list[str]:
        with self._sessions() as session:
            return [log.origin or "" for log in _without_last_checkpoint(session)]

    def _sign_ends(self, at_hand: Ed25519PrivateKey | None) -> tuple[str, ...]:
        """Sign the end of closed logs, so that what they hold stays deliverable.

        With their own keys, compromised or not: verifiers are told which were, and the log that
        follows vouches for the same end.

        Returns:
            The names of those that no key is at hand for.
        """
        unsigned = []
        kept = self._kept_checkpoints()
        with self._sessions.begin() as session:
            for log in _without_last_checkpoint(session):
                private_key = self._key_of(session, log, at_hand)
                if private_key is None:
                    unsigned.append(log.origin or "")
                else:
                    _sign_end(session, log, private_key, kept)
        return tuple(unsigned)

    def _kept_checkpoints(self) -> list[Checkpoint]:
        """Return what was signed before, as it is kept outside the database."""
        if self._anchor_url is None:
            return []
        signer = CheckpointSigner.from_source(self._sources[KeyRole.CHECKPOINTS])
        return kept_checkpoints(self._anchor_url, self._sessions, signer)

    def _key_of(
        self, session: Session, log: AuditLog, at_hand: Ed25519PrivateKey | None
    ) -> Ed25519PrivateKey | None:
        """Return a private key of a closed log, if there is one."""
        source = self._sources[KeyRole.CHECKPOINTS]
        for key in reversed(keyring.keys_of(session, KeyRole.CHECKPOINTS, log)):
            if at_hand is not None and key_id_of(at_hand.public_key()) == key.id:
                return at_hand
            kept = kept_path(self._main(source), key.id)
            if kept.exists():
                private_key, _ = source.beside(kept).read()
                return private_key
        return None


def _without_last_checkpoint(session: Session) -> list[AuditLog]:
    found = []
    for log in repository.logs(session):
        newest = repository.newest_checkpoint(session, log.id)
        if log.closed_at is not None and (newest is None or newest.size < log.size):
            found.append(log)
    return found


def _sign_end(
    session: Session, log: AuditLog, private_key: Ed25519PrivateKey, kept: list[Checkpoint]
) -> None:
    """Store a checkpoint of a closed log's end, if it continues what was signed before."""
    assert log.origin is not None, "a log is named before it is closed"  # noqa: S101
    newest = repository.newest_checkpoint(session, log.id)
    signed_before = list(kept)
    if newest is not None:
        signed_before.append(Checkpoint(log.origin, newest.size, newest.root))
    try:
        head = head_to_sign(session, log, log.origin, signed_before)
    except InconsistentLogError as error:
        raise InconsistentLogError(
            f"{error.detail}; its end is not signed",
            remedy="The new log and its keys are in place. Keep the database as it is, and look"
            " with `lethe audit verify --since CHECKPOINT` at what was changed.",
        ) from error
    note = sign_note(head.text(), [(log.origin, private_key)])
    repository.add_checkpoint(session, log_id=log.id, size=head.size, root=head.root, note=note)


def _give(path: Path, owner: os.stat_result) -> None:
    """Let root's work belong to whom the file before belonged: the service has to read it."""
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)
