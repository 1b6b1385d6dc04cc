"""A look at the whole log in the database: every hash, every record, every checkpoint."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.evidence import repository
from app.evidence.canonical import GENESIS, chain_hash, leaf_hash
from app.evidence.formats import CHECKPOINT_TYPE, CheckpointStatement, SignedEnvelope
from app.evidence.models import AuditEntry, EvidenceRecord
from app.evidence.signing import Verifier, read_payload
from app.evidence.statements import (
    RECORD_TYPES,
    read_document,
    read_entry,
    read_signed_record,
    record_entry,
)


@dataclass(frozen=True, slots=True)
class LogReport:
    """What a look at the whole log found.

    Attributes:
        size: How many entries it has.
        chain_hash: Its hash, hexadecimal; a checkpoint of this size that was kept elsewhere says
            the same, or the log was rewritten.
        records: How many signed records there are.
        problems: What is wrong, as sentences; empty when nothing is.
    """

    size: int
    chain_hash: str
    records: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_log(session: Session, verifier: Verifier | None = None) -> LogReport:
    """Recompute every hash of the log, and compare every record with its entry and checkpoint.

    With a `verifier`, the signatures of records and checkpoints are verified too; only they show
    that hashes were not all computed anew. Entries committed meanwhile wait for the next time.
    """
    head = repository.read_head(session)
    size, end = head.size, head.chain_hash
    problems = _check_chain(session, size, end)
    records = 0
    for record, entry in repository.stream_records(session):
        if entry is not None and entry.index >= size:
            continue  # Issued since the head was read.
        records += 1
        problems += [
            f"Record {record.id}: {text}" for text in _check_record(record, entry, verifier)
        ]
    return LogReport(size, end.hex(), records, tuple(problems))


def _check_chain(session: Session, size: int, end: bytes) -> list[str]:
    """Return what is wrong with the entries before `size`, whose chain should end in `end`."""
    problems = []
    chain, following = GENESIS, 0
    for entry in repository.stream_entries(session, size):
        if entry.index != following:
            problems.append(f"Entries {following} to {entry.index - 1} are missing.")
        leaf = leaf_hash(entry.body)
        if (entry.leaf_hash, entry.chain_hash) != (leaf, chain_hash(chain, leaf)):
            problems.append(
                f"Entry {entry.index} does not follow from its text and the one before."
            )
        if not _is_entry(entry.body, entry.index):
            problems.append(f"Entry {entry.index} is not in the form of an entry of that index.")
        # Go on from what is stored, so that one change is one problem and not one an entry.
        chain, following = entry.chain_hash, entry.index + 1
    if following != size:
        problems.append(f"Entries {following} to {size - 1} are missing.")
    if chain != end:
        problems.append("The last entry is not the one that the log's head names.")
    return problems


def _is_entry(body: bytes, index: int) -> bool:
    try:
        return read_entry(body).index == index
    except ValueError:
        return False


def _check_record(
    record: EvidenceRecord, entry: AuditEntry | None, verifier: Verifier | None
) -> list[str]:
    """Return what is wrong between a record, its row, its entry and its checkpoint."""
    if entry is None:
        return ["its log entry is missing."]
    try:
        envelope = read_document(SignedEnvelope, record.envelope)
        signed_checkpoint = SignedEnvelope.model_validate(record.checkpoint)
        if verifier is not None:
            verifier.open(envelope, *RECORD_TYPES)
            verifier.open(signed_checkpoint, CHECKPOINT_TYPE)
        statement, payload = read_signed_record(envelope)
        time = read_entry(entry.body).time
        checkpoint = read_document(
            CheckpointStatement, read_payload(signed_checkpoint, CHECKPOINT_TYPE)
        )
    except ValueError as error:
        return [f"it, its entry or its checkpoint cannot be read: {error}"]
    problems = []
    row = (record.id, record.kind, record.request_id)
    if row != (statement.id, statement.kind, statement.request.id):
        problems.append("its row says something else than its statement.")
    if entry.body != record_entry(statement, payload, index=entry.index, time=time):
        problems.append("its log entry is about another statement.")
    if (checkpoint.size, checkpoint.chain_hash) != (entry.index + 1, entry.chain_hash.hex()):
        problems.append("its checkpoint is not of the log as it ended with its entry.")
    return problems
