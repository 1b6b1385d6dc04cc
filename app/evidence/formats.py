"""The log, its checkpoints, envelopes and the bundle that carries a record to its verifier."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from app.evidence._fields import Count, Name, Sha256, Strict, Timestamp
from app.strict_json import read_base64


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


class ConsistencyProof(Strict):
    """That of two checkpoints of a log the larger continues the smaller (RFC 9162 §2.1.4)."""

    size: Count = Field(description="Of the other checkpoint; it may be the smaller or the larger")
    hashes: tuple[Base64, ...]


class Bundle(Strict):
    """A record with all that is needed to verify it offline."""

    format: Literal["lethe.bundle/v2"]
    envelope: SignedEnvelope = Field(description="Of the record statement")
    entry: Name = Field(description="Body of its log entry, exactly as hashed (UTF-8)")
    proof: Name = Field(description="C2SP tlog-proof: index, inclusion proof and checkpoint")
    consistency: ConsistencyProof | None = Field(
        description="Between the checkpoint in `proof` and one of the size asked for with `since`"
    )
    timestamp: Base64 | None = Field(
        description="RFC 3161 TimeStampResp (DER) over SHA-256 of the checkpoint's note, if any"
    )


class CheckpointOut(Strict):
    """A checkpoint, readable, and its signed form: keep the note."""

    origin: Name = Field(description="Which log")
    size: Count = Field(description="How many entries it covers")
    root: Sha256 = Field(description="Of the Merkle tree over them, hexadecimal")
    note: Name = Field(description="The signed note (C2SP tlog-checkpoint); only this counts")


class InclusionProofOut(Strict):
    """That an entry is in the log."""

    index: Count
    size: Count = Field(description="Of the checkpoint that the proof leads to")
    leaf_hash: Sha256
    hashes: tuple[Sha256, ...] = Field(description="The leaf's sibling first")
    proof: Name = Field(description="The same as a C2SP tlog-proof, with the signed checkpoint")


class ConsistencyProofOut(Strict):
    """That the log of the larger size continues that of the smaller."""

    first: Count
    second: Count
    first_root: Sha256
    second_root: Sha256
    hashes: tuple[Sha256, ...]


class EntryOut(EntryStatement):
    """A log entry, readable, and the exact text that was hashed."""

    body: str = Field(description="Canonical JSON as hashed; the other fields are read from it")
    leaf_hash: Sha256


class HiddenEntryOut(BaseModel):
    """Another tenant's entry, or one of the service's own: its hash proves that it is there."""

    index: int
    leaf_hash: Sha256


class EntryPage(BaseModel):
    """Some entries in order."""

    log: int = Field(description="Which of this service's logs; 1 unless one was closed")
    items: list[EntryOut | HiddenEntryOut] = Field(
        description="Where several tenants share the service, others' entries are hashes alone,"
        " but for keys that were made with `--whole-log`"
    )
    next_cursor: str | None = Field(None, description="null on the last page")


class CheckOut(BaseModel):
    """One thing that was looked at."""

    name: str
    ok: bool
    sentence: str


class VerificationIn(Strict):
    """A bundle to verify, and what to hold it against."""

    bundle: Mapping[str, Any] = Field(description="As downloaded")
    # Each is looked for in the record anew: thousands would keep a server busy for minutes.
    weights_sha256: Annotated[tuple[Sha256, ...], Field(max_length=16)] = Field(
        (), description="Digests of weight files that the record is said to be about"
    )
    since: str | None = Field(None, description="An older checkpoint's note, kept by whoever asks")


class VerificationOut(BaseModel):
    """What this service finds about a bundle, with its own keys: an auditor uses kept ones."""

    ok: bool
    checks: list[CheckOut]
