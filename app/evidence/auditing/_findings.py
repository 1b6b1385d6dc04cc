"""What can be wrong with a log and what depends on it, each kind under a stable code."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Code(enum.StrEnum):
    """What was done to the log, the records, or what they are about."""

    ENTRY_ALTERED = "entry-altered"
    HASH_ALTERED = "hash-altered"
    TIME_ALTERED = "time-altered"
    ENTRIES_MISSING = "entries-missing"
    ENTRIES_REORDERED = "entries-reordered"
    ENTRY_INSERTED = "entry-inserted"
    LOG_TRUNCATED = "log-truncated"
    LOG_FORKED = "log-forked"
    HEAD_ALTERED = "head-altered"
    CHECKPOINT_INVALID = "checkpoint-invalid"
    KEY_UNKNOWN = "key-unknown"
    RECORD_SWAPPED = "record-swapped"
    RECORD_ALTERED = "record-altered"
    RECORD_MISSING = "record-missing"
    WEIGHTS_SWAPPED = "weights-swapped"
    STATE_CONTRADICTS_LOG = "state-contradicts-log"
    TRIGGERS_MISSING = "triggers-missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: What kind of thing.
        where: The place, e.g. `log 1, entry 17`.
        sentence: What was found, for somebody who reads this once.
    """

    code: Code
    where: str
    sentence: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return _REMEDIES[self.code]


_RESTORE = (
    "Keep this database as it is, as evidence, and restore the service from a backup that"
    " `lethe audit verify` finds nothing wrong with."
)
_COMPARE = (
    "Keep this database as it is, as evidence. Compare it with backups and with the checkpoints and"
    " records that others keep, to see which of the histories is the true one."
)
_REMEDIES: Mapping[Code, str] = {
    Code.ENTRY_ALTERED: _RESTORE,
    Code.HASH_ALTERED: _RESTORE,
    Code.TIME_ALTERED: _RESTORE,
    Code.ENTRIES_MISSING: _RESTORE,
    Code.ENTRIES_REORDERED: _RESTORE,
    Code.ENTRY_INSERTED: _RESTORE,
    Code.LOG_TRUNCATED: _COMPARE,
    Code.LOG_FORKED: _COMPARE,
    Code.HEAD_ALTERED: _RESTORE,
    Code.CHECKPOINT_INVALID: (
        "If the checkpoint is one that you kept, get the log's keys again, from the operator and"
        " not from this database. If it is one that the database holds, somebody wrote it there or"
        " altered it: look who can write to the database."
    ),
    Code.KEY_UNKNOWN: (
        "Get the list of keys again, from the operator and not from this database. A key that is"
        " not among them signed for somebody else."
    ),
    Code.RECORD_SWAPPED: (
        "Do not hand out records from this database. The log names the record of each request;"
        " restore the table evidence_record from a backup."
    ),
    Code.RECORD_ALTERED: (
        "Do not hand out records from this database. Those that were downloaded before still"
        " verify; restore the table evidence_record from a backup."
    ),
    Code.RECORD_MISSING: (
        "Restore the table evidence_record from a backup, or take the record from whoever"
        " downloaded it."
    ),
    Code.WEIGHTS_SWAPPED: (
        "Do not serve this model: its weights are not those that the log and the records name."
        " Restore the tables revision and artifact and the stored files from a backup."
    ),
    Code.STATE_CONTRADICTS_LOG: (
        "The log is what counts: restore the named row from a backup, and look who can write to"
        " the database."
    ),
    Code.TRIGGERS_MISSING: (
        "Somebody who may change the schema took the protection away, and may have put it back"
        " before: look who can. It comes back with the backup's schema, or by hand from"
        " migrations/versions."
    ),
}


def entries(first: int, last: int) -> str:
    """Name some entries in a row."""
    return f"entry {first}" if first == last else f"entries {first} to {last}"
