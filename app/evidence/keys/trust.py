"""Which keys a verifier trusts for what: lists that the service publishes, and other key files.

What is trusted comes from files that the verifier was given by another way than what it verifies.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import Field, ValidationError, model_validator

from app.evidence._fields import Name, Sha256, Strict, Timestamp
from app.evidence.formats import SignedEnvelope
from app.evidence.keys.keysources import SigningKeyError
from app.evidence.keys.signing import Verifier, key_id_of
from app.evidence.models import KeyRole
from app.evidence.transparency.notes import NoteKey
from app.strict_json import read_object

_SHOWN = 16


class InvalidRootsError(SigningKeyError):
    """What was given as the certificates of timestamping authorities is none."""


class PublishedKey(Strict):
    """The public half of a signing key, and how long it counts."""

    id: Sha256 = Field(description="SHA-256 of the key's SubjectPublicKeyInfo (DER)")
    role: KeyRole = Field(description="records: signs records; checkpoints: signs the log's")
    algorithm: Literal["Ed25519"]
    public_key: Name = Field(description="SubjectPublicKeyInfo, PEM")
    origin: Name | None = Field(
        description="Name of the log whose checkpoints it signs; null for keys of records"
    )
    valid_from: Timestamp
    valid_until: Timestamp | None = Field(description="null: no end is set")
    revoked_at: Timestamp | None
    compromised: bool = Field(
        description="true: others may have had the private key; what it signed counts only where a "
        "checkpoint that was kept from before covers it"
    )
    endorsement: SignedEnvelope | None = Field(
        description="Of this key by the one before it; null for the first"
    )

    @model_validator(mode="after")
    def _is_one_key(self) -> Self:
        found = key_id_of(_read_pem(self.public_key.encode()))
        if found != self.id:
            raise ValueError(f"id: {self.id} is not that of public_key, which has {found}")
        if (self.origin is not None) != (self.role is KeyRole.CHECKPOINTS):
            raise ValueError("origin: keys of checkpoints have one, and no others")
        if self.origin is not None:
            NoteKey.from_public(self.origin, _read_pem(self.public_key.encode()))
        if self.compromised and self.revoked_at is None:
            raise ValueError("revoked_at: null, but the key is marked as compromised")
        return self


class KeyList(Strict):
    """Every key that signs or once signed, as `GET /v1/audit/keys` returns them."""

    format: Literal["lethe.keys/v1"]
    keys: tuple[PublishedKey, ...]

    @model_validator(mode="after")
    def _names_each_key_once(self) -> Self:
        # Of two entries for one key a reader might see the one that is not revoked.
        names = [(key.id, key.origin) for key in self.keys]
        if twice := [key_id for key_id, origin in names if names.count((key_id, origin)) > 1]:
            raise ValueError(f"keys: {twice[0][:_SHOWN]} stands twice")
        return self


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key, and what it is trusted for.

    Attributes:
        id: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.
        role: What it may sign.
        public_bytes: The 32 bytes of RFC 8032.
        origin: For checkpoints, of which log.
        valid_from: From when it counts; None: always.
        valid_until: Until when it counts; None: always.
        revoked_at: When it was revoked; None: never.
        compromised: Whether others may have had the private key.
    """

    id: str
    role: KeyRole
    public_bytes: bytes
    origin: str | None = None
    valid_from: datetime.datetime | None = None
    valid_until: datetime.datetime | None = None
    revoked_at: datetime.datetime | None = None
    compromised: bool = False

    @classmethod
    def of(cls, role: KeyRole, key: Ed25519PublicKey, origin: str | None = None) -> Self:
        """Return a key that counts at any time."""
        return cls(key_id_of(key), role, key.public_bytes_raw(), origin)

    @classmethod
    def published(cls, key: PublishedKey) -> Self:
        """Return a key as a key list describes it."""
        found = cls.of(key.role, _read_pem(key.public_key.encode()), key.origin)
        return replace(
            found,
            valid_from=key.valid_from,
            valid_until=key.valid_until,
            revoked_at=key.revoked_at,
            compromised=key.compromised,
        )

    @property
    def always_counts(self) -> bool:
        """Whether its signatures count whenever they were made."""
        return not self.compromised and (self.valid_from, self.valid_until, self.revoked_at) == (
            None,
            None,
            None,
        )

    def verifier(self) -> Verifier:
        """Return what opens the envelopes that this key signed."""
        key = Ed25519PublicKey.from_public_bytes(self.public_bytes)
        return Verifier(
            key.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def narrowed(self, other: "TrustedKey") -> "TrustedKey":
        """Return this key where it counts by `other`, too."""
        starts = [time for time in (self.valid_from, other.valid_from) if time is not None]
        ends = [time for time in (self.valid_until, other.valid_until) if time is not None]
        revocations = [time for time in (self.revoked_at, other.revoked_at) if time is not None]
        return replace(
            self,
            valid_from=max(starts, default=None),
            valid_until=min(ends, default=None),
            revoked_at=min(revocations, default=None),
            compromised=self.compromised or other.compromised,
        )


class TrustedKeys:
    """All keys that a verifier was given; what several files say of one key holds together."""

    def __init__(self, keys: Iterable[TrustedKey]) -> None:
        """Take keys.

        Raises:
            SigningKeyError: One is given for records and for checkpoints: then a signature for the
                one would count for the other.
        """
        self._records: dict[str, TrustedKey] = {}
        self._checkpoints: dict[tuple[str, str], TrustedKey] = {}
        for key in keys:
            if key.origin is None:
                self._records[key.id] = key.narrowed(self._records.get(key.id, key))
            else:
                place = (key.origin, key.id)
                self._checkpoints[place] = key.narrowed(self._checkpoints.get(place, key))
        if both := self._records.keys() & {key_id for _, key_id in self._checkpoints}:
            raise SigningKeyError(
                f"the key {min(both)[:_SHOWN]} is given for records and for checkpoints; each key"
                " is for one of them, so give it in one file only"
            )

    @classmethod
    def of(cls, key_list: KeyList) -> Self:
        """Return the keys of a list.

        Raises:
            SigningKeyError: It names one key for both roles.
        """
        return cls(TrustedKey.published(key) for key in key_list.keys)

    @classmethod
    def read(cls, *files: bytes) -> Self:
        """Read key files: key lists (JSON), PEM (for records), lines `name+hint+key` (checkpoints).

        Raises:
            SigningKeyError: One is none of these, or holds no key.
        """
        return cls(key for content in files for key in _read_file(content))

    def of_record(self, key_id: str) -> TrustedKey:
        """Return the key of this id that may sign records.

        Raises:
            ValueError: None was given.
        """
        if (found := self._records.get(key_id)) is not None:
            return found
        if any(key_id == other for _, other in self._checkpoints):
            raise ValueError(
                f"the key {key_id[:_SHOWN]} was given for checkpoints, not for records"
            )
        given = ", ".join(sorted(known[:_SHOWN] for known in self._records)) or "none"
        raise ValueError(
            f"it is signed with the key {key_id[:_SHOWN]}, and the given keys for records are"
            f" {given}"
        )

    @property
    def has_logs(self) -> bool:
        """Whether any key for checkpoints was given."""
        return bool(self._checkpoints)

    def of_log(self, origin: str) -> dict[NoteKey, TrustedKey]:
        """Return the keys that may sign checkpoints of a log.

        Raises:
            ValueError: None was given.
        """
        found = {
            NoteKey(origin, key.public_bytes): key
            for (name, _), key in self._checkpoints.items()
            if name == origin
        }
        if not found:
            names = ", ".join(sorted({repr(name) for name, _ in self._checkpoints})) or "none"
            raise ValueError(
                f"it is of the log {origin!r}, and the given keys for checkpoints are of {names}"
            )
        return found


def _read_file(content: bytes) -> list[TrustedKey]:
    text = content.lstrip()
    if text.startswith(b"{"):
        return [TrustedKey.published(key) for key in read_key_list(content).keys]
    if text.startswith(b"-----BEGIN"):
        return [TrustedKey.of(KeyRole.RECORDS, _read_pem(content))]
    try:
        lines = [line.strip() for line in content.decode().split("\n")]
        keys = [NoteKey.parse(line) for line in lines if line]
    except ValueError as error:
        raise SigningKeyError(
            f"a key file is none of those that are read: a key list from GET /v1/audit/keys, a PEM"
            f" public key, or lines name+hint+key ({error})"
        ) from error
    if not keys:
        raise SigningKeyError("a key file is empty; give a key list from GET /v1/audit/keys")
    return [
        TrustedKey.of(
            KeyRole.CHECKPOINTS, Ed25519PublicKey.from_public_bytes(key.public_bytes), key.name
        )
        for key in keys
    ]


def read_key_list(content: bytes) -> KeyList:
    """Return the key list that a file holds.

    Raises:
        SigningKeyError: It is none, or not spelled as this service spells it.
    """
    try:
        found = KeyList.model_validate_json(content, strict=True)
        if found.model_dump(mode="json") != read_object(content):
            raise ValueError("a value is not spelled as this service spells it")  # noqa: TRY301
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SigningKeyError(f"key list: {place}: {first['msg']}") from error
    except ValueError as error:
        raise SigningKeyError(f"key list: {error}") from error
    return found


def _read_pem(content: bytes) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(f"public key: not a PEM public key ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningKeyError(
            f"public key: expected Ed25519, found {type(key).__name__}; GET /v1/audit/keys returns"
            " the right ones"
        )
    return key
