"""The log and the bundles of before the Merkle tree, which old files still have."""

import hashlib
from typing import Literal

from pydantic import Field

from app.evidence._fields import Count, Name, Sha256, Strict, Timestamp
from app.evidence.formats import SignedEnvelope

CHECKPOINT_TYPE = "application/vnd.lethe.checkpoint.v1+json"
GENESIS = hashlib.sha256(b"").digest()  # of the log before its first entry


class CheckpointStatement(Strict):
    """What a checkpoint's signature covers: the whole log up to `size`."""

    origin: Name = Field(description="Which log")
    size: Count = Field(description="How many entries it has")
    chain_hash: Sha256 = Field(description="Of the last entry; SHA-256 of nothing when empty")
    time: Timestamp


class Bundle(Strict):
    """A record with all that is needed to verify it offline."""

    format: Literal["lethe.bundle/v1"]
    envelope: SignedEnvelope = Field(description="Of the record statement")
    entry: Name = Field(description="Body of its log entry, exactly as hashed (UTF-8)")
    previous_chain_hash: Sha256 = Field(description="The log's hash before that entry")
    checkpoint: SignedEnvelope = Field(description="Of a CheckpointStatement")


def chain_hash(previous: bytes, leaf: bytes) -> bytes:
    """Return the log's hash after one more entry: SHA-256(0x01 ‖ previous ‖ leaf)."""
    return hashlib.sha256(b"\x01" + previous + leaf).digest()
