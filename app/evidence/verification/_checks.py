"""What the verification of every bundle has in common, whatever its version."""

import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError

from app.evidence._fields import write_time
from app.evidence.formats import EntryStatement, SignedEnvelope
from app.evidence.keys.trust import TrustedKey, TrustedKeys
from app.evidence.records.statements import (
    RECORD_TYPES,
    read_document,
    read_signed_record,
    record_entry,
)
from app.evidence.transparency.notes import Checkpoint

_LONGEST_FINDING = 300
_LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)
_NEVER = datetime.datetime.max.replace(tzinfo=datetime.UTC)
_SHOWN = 16  # digits of a digest that tell it from all others at hand


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Stable name.
        ok: Whether it holds.
        sentence: The finding, for somebody who reads this once a year.
    """

    name: str
    ok: bool
    sentence: str


def check(name: str, failure: str, look: Callable[[], str]) -> Check:
    """Return the check that `look` makes; a ValueError is a finding, told after `failure`."""
    try:
        return Check(name, ok=True, sentence=look())
    except ValueError as error:
        return Check(name, ok=False, sentence=f"{failure}: {plain(error)}.")


def check_signature(
    envelope: SignedEnvelope, entry: str, keys: TrustedKeys, kept: Checkpoint | None = None
) -> Check:
    """Check who signed the record, and that the key counted then.

    Args:
        envelope: Of the record.
        entry: Body of its log entry, which says when it was entered.
        keys: What the verifier trusts.
        kept: A checkpoint that the verifier kept, where it is shown to cover that entry.
    """

    def look() -> str:
        key = keys.of_record(envelope.signatures[0].keyid)
        key.verifier().open(envelope, *RECORD_TYPES)
        # A key without limits needs no time, and so counts for a statement that cannot be read.
        limits = None if key.always_counts else _times(envelope, entry)
        remark = "" if limits is None else _require_counting(key, limits, kept)
        return (
            f"The record was signed with the key {key.id[:_SHOWN]}, which was given for records,"
            f" and was not altered since.{remark}"
        )

    return check("signature", "The record does not carry a valid signature", look)


def _times(envelope: SignedEnvelope, entry: str) -> tuple[datetime.datetime, datetime.datetime]:
    """Return when the record was finished, and when it was entered in the log at the latest.

    It was signed in between. Where the entry cannot be read, the former stands for both.
    """
    finished = read_signed_record(envelope)[0].times.finished
    try:
        return finished, max(finished, read_document(EntryStatement, entry.encode()).time)
    except ValueError:
        return finished, finished


def _require_counting(
    key: TrustedKey,
    times: tuple[datetime.datetime, datetime.datetime],
    kept: Checkpoint | None,
) -> str:
    """Return what has to be said of a key that does not count without limits.

    Raises:
        ValueError: It does not count for this record.
    """
    finished, entered = times
    name = f"the key {key.id[:_SHOWN]}"
    if key.valid_from is not None and entered < key.valid_from:
        raise ValueError(
            f"{name} counts from {write_time(key.valid_from)}, and the record was entered in the"
            f" log before, at {write_time(entered)}"
        )
    if key.valid_until is not None and finished > key.valid_until:
        raise ValueError(
            f"{name} counted until {write_time(key.valid_until)}, and the record was finished"
            f" after, at {write_time(finished)}"
        )
    if key.revoked_at is not None and finished >= key.revoked_at:
        raise ValueError(
            f"{name} was revoked at {write_time(key.revoked_at)}, and the record was finished"
            f" after, at {write_time(finished)}"
        )
    if key.compromised:
        return _require_kept(name, kept)
    if key.revoked_at is not None:
        return (
            f" The key was revoked at {write_time(key.revoked_at)}, after the time that the record"
            " says it was finished at, and not as compromised."
        )
    return ""


def _require_kept(name: str, kept: Checkpoint | None) -> str:
    """Return what has to be said of a compromised key that a kept checkpoint speaks for.

    Raises:
        ValueError: There is none.
    """
    if kept is None:
        raise ValueError(
            f"{name} is marked as compromised, so others may have signed with it; give with --since"
            " a checkpoint that covers the record and that was kept from before the compromise"
        )
    return (
        f" But {name} is marked as compromised: the signature counts only because the checkpoint of"
        f" {kept.size} entries that was given covers the record, and only if that checkpoint was"
        " kept from before the compromise."
    )


def require_checkpoint_key(
    signers: Sequence[TrustedKey], entry: str, kept: Checkpoint | None
) -> str:
    """Return what has to be said of the keys that signed a checkpoint.

    Args:
        signers: Trusted keys of its log.
        entry: Body of an entry that it covers, and so was signed after.
        kept: A checkpoint that the verifier kept, where it is shown to cover that entry.

    Raises:
        ValueError: None of them counts.
    """
    time = _time_of(entry)
    counting = [key for key in signers if time <= _end_of(key)]
    if not counting:
        raise ValueError(
            f"the key {signers[0].id[:_SHOWN]} counted until {write_time(_end_of(signers[0]))}, and"
            " the checkpoint covers an entry that was written after"
        )
    sound = [key for key in counting if not key.compromised]
    if not sound:
        return _require_kept(f"the key {counting[0].id[:_SHOWN]}", kept)
    if all(key.revoked_at is not None for key in sound):
        return " The key was revoked since, and not as compromised."
    return ""


def _time_of(entry: str) -> datetime.datetime:
    """Return when an entry was written; long ago if it cannot be read: a check of its own."""
    try:
        return read_document(EntryStatement, entry.encode()).time
    except ValueError:
        return _LONG_AGO


def _end_of(key: TrustedKey) -> datetime.datetime:
    ends = (end for end in (key.valid_until, key.revoked_at) if end is not None)
    return min(ends, default=_NEVER)


def check_statement(envelope: SignedEnvelope) -> Check:
    """Check that the record says what one of its kind has to say, and nothing else."""

    def look() -> str:
        statement = read_signed_record(envelope)[0]
        return f"The record is a {statement.kind}. It says: {statement.verdict}"

    return check("statement", "The record does not say what a record of its kind has to say", look)


def check_entry(envelope: SignedEnvelope, entry: str) -> Check:
    """Check that the log's entry is the one that this record has."""

    def look() -> str:
        statement, payload = read_signed_record(envelope)
        body = entry.encode()
        found = read_document(EntryStatement, body)
        if body != record_entry(statement, payload, index=found.index, time=found.time):
            raise ValueError("it names another record, or says more than it should")
        return f"Entry {found.index} of the audit log names exactly this record."

    return check("entry", "The audit log's entry does not belong to this record", look)


def check_weights(envelope: SignedEnvelope, digests: Sequence[str]) -> Iterator[Check]:
    """Check for each digest of weights whether the record is about those."""
    for digest in digests:
        yield check(
            "weights",
            f"The weights {digest[:_SHOWN]} are not those of the record",
            partial(_find_weights, envelope, digest),
        )


def _find_weights(envelope: SignedEnvelope, digest: str) -> str:
    statement = read_signed_record(envelope)[0]
    before, after = statement.revision_before, getattr(statement, "revision_after", None)
    if after is None:
        if digest != before.weights_sha256:
            raise ValueError("the record names others, which it says were not changed")
        return f"The weights {digest[:_SHOWN]} are revision {before.number}, which was not changed."
    if digest == after.weights_sha256:
        return f"The weights {digest[:_SHOWN]} are revision {after.number}, the result."
    if digest == before.weights_sha256:
        raise ValueError(f"they are revision {before.number}, from before the unlearning")
    raise ValueError("they are neither the new nor the old revision that the record names")


def plain(finding: object) -> str:
    """Return text that a terminal shows as it is: a forged file may hold control sequences."""
    text = str(finding)
    if isinstance(finding, ValidationError):
        first = finding.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    # Cut before and after: what is quoted may be as long as the file.
    text = text.rstrip(".")[:_LONGEST_FINDING]
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return shown.rstrip(".")[:_LONGEST_FINDING]
