"""A bundle taken apart for its reader: everything but the signatures has to fit together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.evidence import formats
from app.evidence.keys.signing import read_payload
from app.evidence.records.statements import (
    RecordStatement,
    read_document,
    read_signed_record,
    record_entry,
)
from app.evidence.rendering.document import visible
from app.evidence.transparency.merkle import leaf_hash, verify_inclusion
from app.evidence.transparency.notes import Checkpoint, LogProof
from app.evidence.verification import formats_v1
from app.evidence.verification.formats_v1 import chain_hash
from app.strict_json import read_object

_LONGEST_FINDING = 300


class UnreadableBundleError(ValueError):
    """What is to be rendered is no record bundle, or its parts do not belong together."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the log has the record, by the bundle."""

    index: int
    time: str
    origin: str
    size: int
    digest: tuple[str, str]  # what it is called, and the digest
    signed_at: str | None
    timestamped: bool | None  # None: before there were timestamps


@dataclass(frozen=True, slots=True)
class Parts:
    """A record, what was signed, and where the log has it."""

    record: RecordStatement
    payload: bytes
    envelope: formats.SignedEnvelope
    place: Place


def take_apart(bundle: Mapping[str, Any]) -> Parts:
    """Return the parts of a bundle of any version. Signatures are not looked at.

    Raises:
        UnreadableBundleError: It is no bundle, its statement contradicts the schema, or its parts
            do not belong together.
    """
    try:
        return _take_apart(bundle)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _unreadable(f"{place}: {first['msg']}") from error
    except ValueError as error:
        raise _unreadable(str(error)) from error


def _unreadable(finding: str) -> UnreadableBundleError:
    return UnreadableBundleError(f"this is no record bundle: {visible(finding)[:_LONGEST_FINDING]}")


def _take_apart(bundle: Mapping[str, Any]) -> Parts:
    content = json.dumps(bundle).encode()
    read_object(content)
    if bundle.get("format") == "lethe.bundle/v1":
        old = formats_v1.Bundle.model_validate_json(content, strict=True)
        record, payload = read_signed_record(old.envelope)
        entry = _read_entry(record, payload, old.entry)
        return Parts(record, payload, old.envelope, _place_in_chain(old, entry))
    new = formats.Bundle.model_validate_json(content, strict=True)
    record, payload = read_signed_record(new.envelope)
    entry = _read_entry(record, payload, new.entry)
    return Parts(record, payload, new.envelope, _place_in_tree(new, entry))


def _read_entry(record: RecordStatement, payload: bytes, body: str) -> formats.EntryStatement:
    entry = read_document(formats.EntryStatement, body.encode())
    if body.encode() != record_entry(record, payload, index=entry.index, time=entry.time):
        raise ValueError("the entry of the log that it holds is not that of its record")
    return entry


def _place_in_chain(bundle: formats_v1.Bundle, entry: formats.EntryStatement) -> Place:
    checkpoint = read_document(
        formats_v1.CheckpointStatement,
        read_payload(bundle.checkpoint, formats_v1.CHECKPOINT_TYPE),
    )
    end = chain_hash(bytes.fromhex(bundle.previous_chain_hash), leaf_hash(bundle.entry.encode()))
    if checkpoint.size != entry.index + 1 or end.hex() != checkpoint.chain_hash:
        raise ValueError("the checkpoint that it holds does not cover its entry")
    written = checkpoint.model_dump(mode="json")
    return Place(
        index=entry.index,
        time=entry.model_dump(mode="json")["time"],
        origin=checkpoint.origin,
        size=checkpoint.size,
        digest=("Hash of the chain", checkpoint.chain_hash),
        signed_at=written["time"],
        timestamped=None,
    )


def _place_in_tree(bundle: formats.Bundle, entry: formats.EntryStatement) -> Place:
    proof = LogProof.parse(bundle.proof)
    # Up to the empty line before the signatures, which are not looked at.
    checkpoint = Checkpoint.parse(proof.checkpoint.partition("\n\n")[0] + "\n")
    if proof.index != entry.index:
        raise ValueError("the proof that it holds is of another entry of the log")
    leaf = leaf_hash(bundle.entry.encode())
    verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return Place(
        index=entry.index,
        time=entry.model_dump(mode="json")["time"],
        origin=checkpoint.origin,
        size=checkpoint.size,
        digest=("Root of the tree", checkpoint.root.hex()),
        signed_at=None,
        timestamped=bundle.timestamp is not None,
    )
