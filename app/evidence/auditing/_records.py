"""Signed records, held against the log's entries about them and against whoever may sign."""

import datetime
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.evidence._fields import write_time
from app.evidence.auditing._findings import Code, Finding
from app.evidence.auditing._state import History, Issued
from app.evidence.canonical import sha256_hex
from app.evidence.formats import SignedEnvelope
from app.evidence.keys.signing import InvalidEnvelopeError, Verifier, read_payload
from app.evidence.keys.trust import TrustedKey, TrustedKeys
from app.evidence.records.statements import RECORD_TYPES, read_document

_ROWS = text(
    "SELECT r.id, r.request_id, r.kind, r.envelope, r.log_id, r.entry_index, q.state,"
    " q.created_at, q.started_at"
    " FROM evidence_record r LEFT JOIN unlearning_request q ON q.id = r.request_id"
    " ORDER BY r.log_id, r.entry_index"
)
_STATES = {"refusal": "refused", "failure": "failed"}  # of the others: completed
_SHOWN = 16


@dataclass(frozen=True, slots=True)
class _Row:
    id: uuid.UUID
    request_id: uuid.UUID
    kind: str
    envelope: bytes
    log_id: int
    entry_index: int
    state: str | None
    created_at: datetime.datetime | None
    started_at: datetime.datetime | None


class RecordAudit:
    """Checks every record.

    Attributes:
        count: How many there were.
        compromised: How many of them a compromised key signed.
    """

    def __init__(self, session: Session, history: History, keys: TrustedKeys) -> None:
        self.count = 0
        self.compromised = 0
        self._session = session
        self._history = history
        self._keys = keys
        self._verifiers: dict[str, tuple[TrustedKey, Verifier]] = {}

    def findings(self) -> Iterator[Finding]:
        """Check them, and yield what is wrong."""
        seen = set()
        rows = self._session.execute(_ROWS, execution_options={"yield_per": 1000})
        for row in (_Row(*values) for values in rows):
            self.count += 1
            seen.add(str(row.id))
            yield from self._check(row)
        for record_id, issued in self._history.records.items():
            if record_id not in seen:
                yield Finding(
                    Code.RECORD_MISSING,
                    f"request {issued.request_id}",
                    f"Entry {issued.index} of log {issued.log_id} says that a record of kind"
                    f" {issued.kind} was issued, and the database has not got it.",
                )

    def _check(self, row: _Row) -> Iterator[Finding]:
        try:
            envelope = read_document(SignedEnvelope, row.envelope)
            payload = read_payload(envelope, *RECORD_TYPES)
            statement = json.loads(payload)
            # Since version 3 the record is the predicate of an in-toto statement.
            record = statement.get("predicate", statement)
            stated = (record["id"], record["request"]["id"], record["kind"])
            finished = datetime.datetime.fromisoformat(record["times"]["finished"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            yield _altered(row, f"It cannot be read: {type(error).__name__}.")
            return
        yield from self._check_signature(row, envelope, finished)
        record_id, request_id, kind = stated
        if request_id != str(row.request_id):
            yield Finding(
                Code.RECORD_SWAPPED,
                f"request {row.request_id}",
                f"The record that is stored for this request is signed about request {request_id}.",
            )
            return
        if (record_id, kind) != (str(row.id), row.kind):
            yield _altered(
                row,
                f"Its row names record {row.id} of kind {row.kind}, and what is signed is record"
                f" {record_id} of kind {kind}.",
            )
            return
        issued = self._history.records.get(record_id)
        if issued is not None:
            yield from self._check_issued(row, record, sha256_hex(payload), issued)
        elif str(row.request_id) not in self._history.doubtful:
            yield _altered(row, f"No entry of the log says that record {record_id} was issued.")

    def _check_issued(
        self, row: _Row, record: dict[str, Any], digest: str, issued: Issued
    ) -> Iterator[Finding]:
        if digest != issued.statement_sha256:
            yield _altered(
                row,
                f"Entry {issued.index} of log {issued.log_id} names the statement"
                f" {issued.statement_sha256[:_SHOWN]}, and what is stored is {digest[:_SHOWN]}.",
            )
        elif (row.log_id, row.entry_index) != (issued.log_id, issued.index):
            yield _altered(
                row,
                f"Its row names entry {row.entry_index} of log {row.log_id}, and the entry about it"
                f" is {issued.index} of log {issued.log_id}.",
            )
        yield from _check_request(row, record)

    def _check_signature(
        self, row: _Row, envelope: SignedEnvelope, finished: datetime.datetime
    ) -> Iterator[Finding]:
        key_id = envelope.signatures[0].keyid
        where = f"request {row.request_id}"
        if key_id not in self._verifiers:
            try:
                key = self._keys.of_record(key_id)
            except ValueError as error:
                yield Finding(Code.KEY_UNKNOWN, where, f"Its record does not count: {error}.")
                return
            self._verifiers[key_id] = key, key.verifier()
        key, verifier = self._verifiers[key_id]
        try:
            verifier.open(envelope, *RECORD_TYPES)
        except InvalidEnvelopeError as error:
            yield _altered(row, f"Its signature is not valid: {error}.")
            return
        self.compromised += key.compromised
        if problem := self._not_counting(row, key, finished):
            yield Finding(Code.KEY_UNKNOWN, where, f"Its record does not count: {problem}.")

    def _not_counting(self, row: _Row, key: TrustedKey, finished: datetime.datetime) -> str | None:
        """Return why a key does not count for a record of that time, if it does not."""
        name = f"it was signed with the key {key.id[:_SHOWN]}"
        issued = self._history.records.get(str(row.id))
        entered = finished if issued is None else datetime.datetime.fromisoformat(issued.time)
        if key.valid_from is not None and entered < key.valid_from:
            return f"{name}, which counts from {write_time(key.valid_from)}, and logged before"
        ends = [end for end in (key.valid_until, key.revoked_at) if end is not None]
        if ends and finished > min(ends):
            return f"{name}, which counted until {write_time(min(ends))}, and finished after"
        return None


def _check_request(row: _Row, record: dict[str, Any]) -> Iterator[Finding]:
    """Compare the request's row with what was signed about it."""
    if row.state is None or row.created_at is None:
        return  # There is no such row, which is a finding about requests.
    times = record["times"]
    pairs = {
        "state": (row.state, _STATES.get(str(record["kind"]), "completed")),
        "created_at": (write_time(row.created_at), times["received"]),
        # One that never began is signed as begun when it came.
        "started_at": (write_time(row.started_at or row.created_at), times["started"]),
    }
    for column, (found, signed) in pairs.items():
        if found != signed:
            yield Finding(
                Code.STATE_CONTRADICTS_LOG,
                f"request {row.request_id}",
                f"Its {column} is {found}, and by its signed record it is {signed}.",
            )


def _altered(row: _Row, sentence: str) -> Finding:
    return Finding(Code.RECORD_ALTERED, f"request {row.request_id}", sentence)
