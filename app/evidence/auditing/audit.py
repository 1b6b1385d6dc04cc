"""A look at everything that the log vouches for: entries, tree, checkpoints, records, state.

All of it in one snapshot of the database, so that a service may go on writing meanwhile. What this
can show is bounded by what it is given: whoever holds database and signing keys can rewrite all of
it, and only a checkpoint that was kept elsewhere contradicts that.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.artifacts.keys import MasterKeyError
from app.artifacts.models import Artifact
from app.artifacts.store import ArtifactStore
from app.errors import ArtifactCorruptError
from app.evidence import repository
from app.evidence.auditing._findings import Code, Finding
from app.evidence.auditing._records import RecordAudit
from app.evidence.auditing._schema import check_triggers
from app.evidence.auditing._state import (
    History,
    check_keys,
    check_models,
    check_requests,
    check_shredded,
)
from app.evidence.auditing._tree import End, Mark, Row, TreeAudit
from app.evidence.canonical import sha256_hex
from app.evidence.keys import keyring
from app.evidence.keys.trust import TrustedKey, TrustedKeys
from app.evidence.models import AuditCheckpoint, AuditEntry, AuditLog
from app.evidence.records.statements import read_entry
from app.evidence.transparency.merkle import leaf_hash
from app.evidence.transparency.notes import Checkpoint, InvalidNoteError, open_note, read_unverified
from app.registry.models import Revision

__all__ = ["Code", "Finding", "LogFigures", "LogReport", "stream_entries", "verify_log"]

_ROWS_AT_ONCE = 10_000
_SHOWN = 16
# In this order, so that what is behind something else comes after it.
_ORDER = list(Code)


class Progress(Protocol):
    """Is told what is being looked at, how much of it was, and how much there is."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True, slots=True)
class LogFigures:
    """One log, as the database has it.

    Attributes:
        id: Its number.
        origin: Its name; None before its first checkpoint.
        size: How many entries it has.
        root: Of the tree over them, hexadecimal; None where entries are missing.
        checkpoints: How many stored checkpoints the entries agree with.
        kept: How many of those that were given they agree with.
        covered: How many entries the largest of all these covers.
        vouched: How many entries the largest of those that were given covers.
    """

    id: int
    origin: str | None
    size: int
    root: str | None
    checkpoints: int
    kept: int
    covered: int
    vouched: int


@dataclass(frozen=True, slots=True)
class LogReport:
    """What a look at the whole log found.

    Attributes:
        logs: The logs, in the order of their opening.
        records: How many signed records there are.
        requests: How many requests the log knows.
        revisions: How many revisions it knows.
        weights: How many files of weights were opened and hashed.
        compromised: How many records a key signed that is marked as compromised.
        doubtful: How many requests, models and keys were not compared, since what the log says of
            them is not to be believed.
        findings: What is wrong; empty when nothing is.
        has_own_keys: Whether keys were given, so that those in the database were not relied on.
        has_store: Whether stored weights were opened.
    """

    logs: tuple[LogFigures, ...]
    records: int
    requests: int
    revisions: int
    weights: int
    compromised: int
    doubtful: int
    findings: tuple[Finding, ...]
    has_own_keys: bool
    has_store: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def size(self) -> int:
        """How many entries all logs have together."""
        return sum(log.size for log in self.logs)

    def checked(self) -> list[str]:
        """Say what was looked at, in sentences."""
        stored = sum(log.checkpoints for log in self.logs)
        given = sum(log.kept for log in self.logs)
        requests = f"{_many(self.requests, 'request')}, {_many(self.revisions, 'revision')}"
        found = [
            (
                f"Every hash of {_many(self.size, 'entry', 'entries')} was computed anew, up to the"
                " root of the tree; place and time of each were compared."
            ),
            (
                f"The entries agree with {_many(stored, 'checkpoint')} in the database and with"
                f" {given} that you gave."
            ),
            f"{_many(self.records, 'record')}: signature, log entry and request of each.",
            (
                f"State and times of {requests} and their models, signing keys and destroyed keys,"
                " against the log."
            ),
            "The triggers that refuse changes, and the source of their functions.",
        ]
        if self.has_store:
            found.append(f"{_many(self.weights, 'stored file')} of weights, opened and hashed.")
        return found

    def limits(self) -> list[str]:
        """Say what this did not look at or cannot show, in sentences."""
        found = []
        if not self.has_own_keys:
            found.append(
                "The keys came from the same database, so they show only that it agrees with"
                " itself: who can rewrite it can put in keys of their own. Give with --key those"
                " that the operator gave you by another way."
            )
        for log in self.logs:
            if not log.size:
                continue
            if not log.vouched:
                found.append(
                    f"Of log {log.id} no checkpoint that was kept elsewhere agrees or was given"
                    " (--since): an older state that was restored, or a history that was rewritten"
                    " along with the checkpoints and records after it, looks like this, too."
                )
            elif log.vouched < log.size:
                found.append(
                    f"Of log {log.id} the kept checkpoints cover {log.vouched} of"
                    f" {_many(log.size, 'entry', 'entries')}; what came after may have been"
                    " rewritten or cut off without a trace here."
                )
            if log.covered < log.size:
                found.append(
                    f"Of log {log.id} the last {log.size - log.covered} of"
                    f" {_many(log.size, 'entry', 'entries')} are covered by no checkpoint yet."
                )
        if not self.has_store:
            found.append(
                "Stored weights were not opened; only what the database says of them was compared."
                " With MASTER_KEY_FILE and ARTIFACTS_URL set their digests are checked, too."
            )
        if self.doubtful:
            found.append(
                f"{_many(self.doubtful, 'request, model or key', 'requests, models and keys')} were"
                " not compared with the log, since entries about them were altered, moved or do not"
                " go together: look again once the log is restored."
            )
        if self.compromised:
            found.append(
                f"{_many(self.compromised, 'record')} were signed with a key that is marked as"
                " compromised: they count only as far as a checkpoint from before covers them."
            )
        found.append(
            "Stored statistics, samples and other files, privacy budgets and API keys were not"
            " compared; and no log shows what was never entered in it, or that what was is true."
        )
        return found


def verify_log(
    session: Session,
    keys: TrustedKeys | None = None,
    *,
    kept: Sequence[str] = (),
    store: ArtifactStore | None = None,
    progress: Progress | None = None,
) -> LogReport:
    """Recompute every hash, and compare everything that depends on the log with it.

    Args:
        session: Of the database. If its transaction has not begun, all is read in one snapshot.
        keys: Who may sign; those in the database if None, which then vouch for themselves.
        kept: Notes of checkpoints that were kept outside of the database.
        store: Opens stored weights; without it their digests are compared, and no file is.
        progress: Is told how it goes.
    """
    begin_snapshot(session)
    return _Audit(session, keys, kept, store, progress or _tell_nobody).report()


def begin_snapshot(session: Session) -> None:
    """Let a session read one state of the database, and write nothing, if it has not begun."""
    if session.in_transaction() or not isinstance(session.get_bind(), Engine):
        return
    session.connection(
        execution_options={"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    )


def stream_entries(session: Session, log_id: int) -> Iterator[Row]:
    """Yield a log's entries past the ORM, as they are on disk, in the order of their indices."""
    connection = session.connection().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)  # noqa: S101 - the only driver
    with connection.cursor("lethe_audit", binary=True) as cursor:
        cursor.itersize = _ROWS_AT_ONCE
        cursor.execute(
            "SELECT index, body, subtrees, created_at FROM audit_entry WHERE log_id = %s"
            " ORDER BY index",
            (log_id,),
        )
        yield from cursor


def _tell_nobody(what: str, done: int, total: int) -> None:
    del what, done, total


class _Audit:
    """One look at all of it."""

    def __init__(
        self,
        session: Session,
        keys: TrustedKeys | None,
        kept: Sequence[str],
        store: ArtifactStore | None,
        progress: Progress,
    ) -> None:
        self._session = session
        self._has_own_keys = keys is not None
        self._kept = kept
        self._store = store
        self._progress = progress
        self._history = History()
        self._findings: list[Finding] = []
        self._keys = keys if keys is not None else self._published()
        self._weights = 0

    def report(self) -> LogReport:
        self._findings += check_triggers(self._session)
        logs = repository.logs(self._session)
        kept = self._open_kept(logs)
        self._findings += self._check_anchors(logs)
        figures = [self._check_log(log, kept.get(log.id, []), logs) for log in logs]
        self._findings += self._history.findings()
        records = RecordAudit(self._session, self._history, self._keys)
        self._progress("records", 0, len(self._history.records))
        self._findings += records.findings()
        self._progress("state", 0, len(self._history.requests))
        for check in (check_keys, check_requests, check_models, check_shredded):
            self._findings += check(self._session, self._history)
        if self._store is not None:
            self._findings += self._check_weights(self._store)
        return LogReport(
            logs=tuple(figures),
            records=records.count,
            requests=len(self._history.requests),
            revisions=sum(len(model.revisions) for model in self._history.models.values()),
            weights=self._weights,
            compromised=records.compromised,
            doubtful=len(self._history.doubtful),
            findings=tuple(sorted(self._findings, key=lambda finding: _ORDER.index(finding.code))),
            has_own_keys=self._has_own_keys,
            has_store=self._store is not None,
        )

    # --- Keys and checkpoints ------------------------------------------------------------------

    def _published(self) -> TrustedKeys:
        """Return the keys that the database holds, as far as they can be read."""
        try:
            return TrustedKeys.of(keyring.key_list(self._session))
        except ValueError as error:
            self._findings.append(
                Finding(
                    Code.STATE_CONTRADICTS_LOG,
                    "table signing_key",
                    f"The keys that the database publishes cannot be used, so no signature was"
                    f" verified: {' '.join(str(error).split())[:300]}.",
                )
            )
            return TrustedKeys([])

    def _open(self, note: str) -> tuple[Checkpoint, list[TrustedKey]]:
        checkpoint = Checkpoint.parse(read_unverified(note))
        known = self._keys.of_log(checkpoint.origin)
        _text, signers = open_note(note, known)
        return checkpoint, [known[signer] for signer in signers]

    def _open_kept(self, logs: Sequence[AuditLog]) -> dict[int, list[Mark]]:
        """Return the checkpoints that were given, by log; note those that do not count."""
        ids = {log.origin: log.id for log in logs if log.origin is not None}
        found: dict[int, list[Mark]] = {}
        for number, note in enumerate(self._kept, 1):
            name = "The kept checkpoint" if len(self._kept) == 1 else f"Kept checkpoint {number}"
            try:
                checkpoint, _ = self._open(note)
            except ValueError as error:
                self._findings.append(
                    Finding(Code.CHECKPOINT_INVALID, name, f"It does not count: {_plain(error)}.")
                )
                continue
            if checkpoint.origin in ids:
                mark = Mark(name, checkpoint.size, checkpoint.root)
                found.setdefault(ids[checkpoint.origin], []).append(mark)
            else:
                names = ", ".join(repr(origin) for origin in ids) or "none that has a name"
                self._findings.append(
                    Finding(
                        Code.LOG_TRUNCATED,
                        f"log {checkpoint.origin}",
                        f"{name} covers {checkpoint.size} entries of this log, and the database has"
                        f" no such log; it has {names}.",
                    )
                )
        return found

    def _open_stored(self, log: AuditLog) -> list[Mark]:
        """Return the checkpoints that the database holds of a log; note those that do not count."""
        marks, invalid = [], []
        signed = 0
        for stored in self._session.scalars(
            select(AuditCheckpoint)
            .where(AuditCheckpoint.log_id == log.id)
            .order_by(AuditCheckpoint.size)
            .execution_options(yield_per=1000, populate_existing=True)
        ):
            where = f"log {log.id}, checkpoint of {stored.size} entries"
            try:
                checkpoint, _ = self._open(stored.note)
                signed += 1
                if (checkpoint.origin, checkpoint.size, checkpoint.root) != (
                    log.origin,
                    stored.size,
                    stored.root,
                ):
                    raise InvalidNoteError(
                        f"its row is of log {log.origin!r} with another size or root than the note,"
                        f" which is of {checkpoint.origin!r}"
                    )
            except ValueError as error:
                invalid.append(
                    Finding(Code.CHECKPOINT_INVALID, where, f"It does not count: {_plain(error)}.")
                )
                continue
            name = "A checkpoint in the database"
            marks.append(Mark(name, checkpoint.size, checkpoint.root))
        if invalid and not signed:
            # Not one forged row: whoever looks has not the keys of this log.
            invalid = [
                Finding(
                    Code.KEY_UNKNOWN,
                    f"log {log.id}",
                    f"None of its {len(invalid)} checkpoints is signed with a key that counts for"
                    f" it. {invalid[0].sentence}",
                )
            ]
        self._findings += invalid
        return marks

    def _check_anchors(self, logs: Sequence[AuditLog]) -> Iterator[Finding]:
        """Look for checkpoints that went somewhere and are not here any more."""
        sizes = {log.id: log.size for log in logs}
        rows = self._session.execute(
            text(
                "SELECT a.log_id, a.size, min(a.target) FROM audit_anchor a"
                " LEFT JOIN audit_checkpoint c USING (log_id, size) WHERE c.size IS NULL"
                " GROUP BY a.log_id, a.size ORDER BY a.log_id, a.size"
            )
        )
        for log_id, size, target in rows:
            cut = size > sizes.get(log_id, 0)
            yield Finding(
                Code.LOG_TRUNCATED if cut else Code.CHECKPOINT_INVALID,
                f"log {log_id}, checkpoint of {size} entries",
                f"It was sent to {target}, and is not in the database any more"
                + (f"; the log has {sizes.get(log_id, 0)} entries." if cut else "."),
            )

    # --- Entries -------------------------------------------------------------------------------

    def _check_log(self, log: AuditLog, kept: list[Mark], logs: Sequence[AuditLog]) -> LogFigures:
        marks = [*kept, *self._open_stored(log), *self._vouched_by_next(log, logs)]
        self._history.log_id = log.id
        audit = TreeAudit(
            End(log.size, log.frontier), marks, self._history.take, self._history.doubt
        )
        done, what = 0, f"log {log.id}"

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self._progress(what, done, max(log.size, done))

        audit.read(stream_entries(self._session, log.id), advance)
        for finding in audit.findings():
            self._findings.append(
                Finding(finding.code, f"{what}, {finding.where}", finding.sentence)
            )
        self._findings += self._check_closing(log)
        given = [mark for mark in audit.agreed if mark in kept]
        return LogFigures(
            id=log.id,
            origin=log.origin,
            size=log.size,
            root=None if audit.root is None else audit.root.hex(),
            checkpoints=len(audit.agreed) - len(given),
            kept=len(given),
            covered=max((mark.size for mark in audit.agreed), default=0),
            vouched=max((mark.size for mark in given), default=0),
        )

    def _vouched_by_next(self, log: AuditLog, logs: Sequence[AuditLog]) -> list[Mark]:
        """Return what the first entry of the log that followed says of this log's end."""
        following = next((other for other in logs if other.id > log.id), None)
        if following is None:
            return []
        first = self._session.get(AuditEntry, (following.id, 0), populate_existing=True)
        if first is None or leaf_hash(first.body) != first.subtrees:
            return []  # Missing or altered, which is a finding about that log.
        try:
            previous: Any = read_entry(first.body).payload["previous"]
            mark = Mark(
                f"The end that log {following.id} names of log {log.id},",
                int(previous["size"]),
                bytes.fromhex(previous["root"]),
            )
        except (KeyError, TypeError, ValueError):
            return []
        return [mark]

    def _check_closing(self, log: AuditLog) -> Iterator[Finding]:
        """Compare whether a log is closed with what its last entry says."""
        last = self._session.get(AuditEntry, (log.id, log.size - 1), populate_existing=True)
        if last is None:
            return
        ends = b'"event":"log.closed"' in last.body[:40]
        if ends != (log.closed_at is not None):
            yield Finding(
                Code.STATE_CONTRADICTS_LOG,
                f"log {log.id}",
                "Its row says that it is closed, and its last entry does not."
                if log.closed_at is not None
                else "Its last entry says that it was closed, and its row does not.",
            )

    # --- Weights -------------------------------------------------------------------------------

    def _check_weights(self, store: ArtifactStore) -> Iterator[Finding]:
        """Open every stored file of weights and compare its digest with the logged one."""
        statement = (
            select(Revision, Artifact)
            .join(
                Artifact,
                Artifact.id.in_([Revision.weights_artifact_id, Revision.release_artifact_id]),
            )
            .where(Artifact.wrapped_key.is_not(None))
            .order_by(Revision.model_id, Revision.number)
        )
        total = self._session.scalar(select(func.count()).select_from(statement.subquery())) or 0
        for revision, artifact in self._session.execute(
            statement.execution_options(yield_per=10, populate_existing=True)
        ):
            self._progress("weights", self._weights, total)
            where = f"model {revision.model_id}, revision {revision.number}"
            try:
                content = store.get(artifact)
            except ArtifactCorruptError as error:
                if self._was_shredded_since(artifact):
                    continue
                yield Finding(
                    Code.WEIGHTS_SWAPPED,
                    where,
                    f"Its stored weights are not those that were stored for it: {error.detail}.",
                )
                continue
            except MasterKeyError:
                yield Finding(
                    Code.WEIGHTS_SWAPPED,
                    where,
                    f"Its stored weights (artifact {artifact.id}) do not open under the master key:"
                    " either that is not the one of this service, or the row was altered.",
                )
                continue
            self._weights += 1
            if (found := self._digests(store, revision, artifact, content)) is not None:
                digest, expected = found
                if digest != expected:
                    yield Finding(
                        Code.WEIGHTS_SWAPPED,
                        where,
                        f"Its stored weights are {digest[:_SHOWN]}, and they should be"
                        f" {expected[:_SHOWN]}.",
                    )

    def _was_shredded_since(self, artifact: Artifact) -> bool:
        """Tell whether a deletion destroyed it while we look: our snapshot is older than that."""
        engine = self._session.get_bind()
        if not isinstance(engine, Engine):
            return False  # The caller's own connection, which sees what we see.
        with engine.connect() as connection:
            found = select(Artifact.wrapped_key).where(Artifact.id == artifact.id)
            return connection.scalar(found) is None

    def _digests(
        self, store: ArtifactStore, revision: Revision, artifact: Artifact, content: bytes
    ) -> tuple[str, str] | None:
        """Return the digest that a file of weights has, and the one that it has to have."""
        is_served = artifact.id == (revision.release_artifact_id or revision.weights_artifact_id)
        if not is_served:
            # Weights that a release hides: their digest is keyed, and in the database alone.
            purpose = f"lethe/secret-digest/{revision.model_id}"
            return store.keyed_sha256(content, purpose=purpose), revision.weights_sha256
        model = self._history.models.get(str(revision.model_id))
        logged = None if model is None else model.revisions.get(revision.number)
        if logged is None or str(revision.model_id) in self._history.doubtful:
            return sha256_hex(content), revision.release_sha256 or revision.weights_sha256
        return sha256_hex(content), logged.weights_sha256


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _plain(error: Exception) -> str:
    """Return what is wrong in one line that a terminal shows as it is."""
    words = " ".join(str(error).split()).rstrip(".")
    return "".join(char if char.isprintable() else "?" for char in words)[:300]
