"""The log, its checkpoints, envelopes and the bundle that carries a record to its verifier."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from app.evidence._fields import Count, Name, Sha256, Strict, Timestamp
from app.strict_json import read_base64

CHECKPOINT_TYPE = "application/vnd.lethe.checkpoint.v1+json"


class CheckpointStatement(Strict):
    """What a checkpoint's signature covers: the whole log up to `size`."""

    origin: Name = Field(description="Which log")
    size: Count = Field(description="How many entries it has")
    chain_hash: Sha256 = Field(description="Of the last entry; SHA-256 of nothing when empty")
    time: Timestamp


class EntryStatement(Strict):
    """What the body of a log entry says."""

    index: Count
    time: Timestamp
    event: Name = Field(description="What happened, e.g. record.issued")
    subject: Mapping[str, Any] = Field(description="Ids of what it happened to")
    payload: Mapping[str, Any] = Field(description="Particulars; never personal data")


def _require_base64(text: str) -> str:
    read_base64(text)
    return text


Base64 = Annotated[str, StringConstraints(min_length=1), AfterValidator(_require_base64)]


class SignatureField(Strict):
    """One signature of a DSSE envelope."""

    keyid: Sha256 = Field(description="SHA-256 of the public key's SubjectPublicKeyInfo")
    sig: Base64


class SignedEnvelope(Strict):
    """A DSSE envelope. DSSE allows more signatures and fields; nobody vouches for those here."""

    payload: Base64
    payloadType: Name  # noqa: N815 - DSSE's own name
    signatures: Annotated[tuple[SignatureField, ...], Field(min_length=1, max_length=1)]


class Bundle(Strict):
    """A record with all that is needed to verify it offline."""

    format: Literal["lethe.bundle/v1"]
    envelope: SignedEnvelope = Field(description="Of the record statement")
    entry: Name = Field(description="Body of its log entry, exactly as hashed (UTF-8)")
    previous_chain_hash: Sha256 = Field(description="The log's hash before that entry")
    checkpoint: SignedEnvelope = Field(description="Of a CheckpointStatement")


class CheckpointOut(CheckpointStatement):
    """The newest checkpoint, readable, and its signed form: keep the envelope."""

    envelope: SignedEnvelope = Field(description="Signs the other fields")


class EntryOut(EntryStatement):
    """A log entry, readable, and the exact text that was hashed."""

    body: str = Field(description="Canonical JSON as hashed; the other fields are read from it")
    leaf_hash: Sha256
    chain_hash: Sha256


class EntryPage(BaseModel):
    """Some entries in order."""

    items: list[EntryOut]
    next_cursor: str | None = Field(None, description="null on the last page")
