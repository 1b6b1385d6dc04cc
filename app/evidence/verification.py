"""Verifying a record offline: a file, a public key, and nothing else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.evidence.canonical import chain_hash, leaf_hash, sha256_hex
from app.evidence.formats import CHECKPOINT_TYPE, Bundle, CheckpointStatement, EntryStatement
from app.evidence.signing import Verifier, read_payload
from app.evidence.statements import (
    RECORD_TYPES,
    RecordStatement,
    read_document,
    read_signed_record,
    record_entry,
)
from app.strict_json import read_object

_LONGEST_FINDING = 300


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


def verify_bundle(
    bundle: bytes | Mapping[str, Any], public_key: bytes, weights: bytes | None = None
) -> list[Check]:
    """Check a record bundle without network or database; every check is listed, passed or not.

    Args:
        bundle: The file's bytes (read strictly), or the JSON object in it.
        public_key: PEM, from the operator by another way than the bundle.
        weights: A safetensors file that the record is said to be about.

    Raises:
        SigningKeyError: `public_key` is no Ed25519 public key.
    """
    verifier = Verifier(public_key)
    try:
        parsed = _read_bundle(bundle)
    except ValueError as error:
        return [Check("file", ok=False, sentence=f"This is no record bundle: {_plain(error)}.")]
    checks = [
        Check("file", ok=True, sentence="The file is a record bundle."),
        _check_signature(parsed, verifier),
        _check_statement(parsed),
        _check_entry(parsed),
        _check_inclusion(parsed),
        _check_checkpoint(parsed, verifier),
    ]
    if weights is not None:
        checks.append(_check_weights(parsed, weights))
    return checks


def _read_bundle(bundle: bytes | Mapping[str, Any]) -> Bundle:
    content = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    read_object(content)
    return Bundle.model_validate_json(content, strict=True)


def _check(name: str, failure: str, look: Callable[[], str]) -> Check:
    """Return the check that `look` makes; a ValueError is a finding, told after `failure`."""
    try:
        return Check(name, ok=True, sentence=look())
    except ValueError as error:
        return Check(name, ok=False, sentence=f"{failure}: {_plain(error)}.")


def _check_signature(bundle: Bundle, verifier: Verifier) -> Check:
    def look() -> str:
        verifier.open(bundle.envelope, *RECORD_TYPES)
        return "The record was signed with the given key and was not altered since."

    return _check("signature", "The record does not carry a valid signature", look)


def _check_statement(bundle: Bundle) -> Check:
    def look() -> str:
        statement = _statement(bundle)[0]
        return f"The record is a {statement.kind}. It says: {statement.verdict}"

    return _check("statement", "The record does not say what a record of its kind has to say", look)


def _check_entry(bundle: Bundle) -> Check:
    def look() -> str:
        statement, payload = _statement(bundle)
        body = bundle.entry.encode()
        entry = read_document(EntryStatement, body)
        if body != record_entry(statement, payload, index=entry.index, time=entry.time):
            raise ValueError("it names another record, or says more than it should")
        return f"Entry {entry.index} of the audit log names exactly this record."

    return _check("entry", "The audit log's entry does not belong to this record", look)


def _check_inclusion(bundle: Bundle) -> Check:
    def look() -> str:
        body = bundle.entry.encode()
        entry, checkpoint = read_document(EntryStatement, body), _checkpoint(bundle)
        if checkpoint.size != entry.index + 1:
            raise ValueError(
                f"it is of {checkpoint.size} entries, and the entry has index {entry.index}"
            )
        previous = bytes.fromhex(bundle.previous_chain_hash)
        if chain_hash(previous, leaf_hash(body)).hex() != checkpoint.chain_hash:
            raise ValueError("the hashes do not lead to it")
        return f"The entry is the last one that the checkpoint of {checkpoint.size} entries covers."

    return _check("inclusion", "The checkpoint does not cover the entry", look)


def _check_checkpoint(bundle: Bundle, verifier: Verifier) -> Check:
    def look() -> str:
        verifier.open(bundle.checkpoint, CHECKPOINT_TYPE)
        checkpoint = _checkpoint(bundle)
        return (
            f"The checkpoint of the log {_plain(checkpoint.origin)!r} was signed with the given "
            f"key at {checkpoint.time.isoformat()}."
        )

    return _check("checkpoint", "The checkpoint does not carry a valid signature", look)


def _check_weights(bundle: Bundle, weights: bytes) -> Check:
    def look() -> str:
        statement = _statement(bundle)[0]
        digest = sha256_hex(weights)
        before = statement.revision_before
        after = getattr(statement, "revision_after", None)
        if after is None:
            if digest != before.weights_sha256:
                raise ValueError("the record names others, which it says were not changed")
            return f"The weights are revision {before.number}, which was not changed."
        if digest == after.weights_sha256:
            return f"The weights are revision {after.number}, which the record is about."
        if digest == before.weights_sha256:
            raise ValueError(f"they are revision {before.number}, from before the unlearning")
        raise ValueError("they are neither the new nor the old revision that the record names")

    return _check("weights", "The weights are not those of the record", look)


def _statement(bundle: Bundle) -> tuple[RecordStatement, bytes]:
    return read_signed_record(bundle.envelope)


def _checkpoint(bundle: Bundle) -> CheckpointStatement:
    return read_document(CheckpointStatement, read_payload(bundle.checkpoint, CHECKPOINT_TYPE))


def _plain(finding: object) -> str:
    """Return text that a terminal shows as it is: a forged file may hold control sequences."""
    text = str(finding)
    if isinstance(finding, ValidationError):
        first = finding.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return shown.rstrip(".")[:_LONGEST_FINDING]
