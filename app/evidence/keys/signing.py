"""Ed25519 signatures on envelopes (DSSE) and checkpoints (notes), and opening envelopes."""

import hashlib
import threading
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without __all__
    CryptoSigner,
    SSlibKey,
)

from app.evidence.formats import SignedEnvelope
from app.evidence.keys.keysources import KeySource, SigningKeyError, Stamp, generate_key_file
from app.evidence.models import KeyRole
from app.evidence.transparency.notes import NoteKey, sign_note
from app.strict_json import read_base64

__all__ = [
    "CheckpointSigner",
    "InvalidEnvelopeError",
    "KeyHolder",
    "Signer",
    "SigningKeyError",
    "Verifier",
    "encode_public_key",
    "kept_path",
    "key_id_of",
    "read_payload",
    "sign_envelope",
]

logger = structlog.get_logger(__name__)


class InvalidEnvelopeError(ValueError):
    """An envelope is of another type, or its signature is not that of the given key."""


class Verifier:
    """Opens envelopes that one public key signed."""

    def __init__(self, public_pem: bytes) -> None:
        try:
            key = serialization.load_pem_public_key(public_pem)
        except ValueError as error:
            raise SigningKeyError(f"public key: not a PEM public key ({error})") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SigningKeyError(
                f"public key: expected Ed25519, found {type(key).__name__}; GET /v1/audit/key "
                "returns the right one"
            )
        self.key_id = key_id_of(key)
        self._key = SSlibKey.from_crypto(key, keyid=self.key_id)

    def open(self, envelope: SignedEnvelope, *payload_types: str) -> bytes:
        """Return the payload of an envelope that this key signed as one of the types.

        Raises:
            InvalidEnvelopeError: It is of another type, or not signed by this key.
        """
        payload = read_payload(envelope, *payload_types)
        named = envelope.signatures[0].keyid
        if named != self.key_id:
            raise InvalidEnvelopeError(
                f"it is signed with key {named[:16]}, and the given key is {self.key_id[:16]}"
            )
        # A dictionary of its own: from_dict empties what it is given.
        parsed = Envelope.from_dict(envelope.model_dump(mode="json"))
        try:
            parsed.verify([self._key], threshold=1)
        except (VerificationError, UnverifiedSignatureError):
            raise InvalidEnvelopeError(
                f"its content is not what key {self.key_id[:16]} signed"
            ) from None
        return payload


class _Held(NamedTuple):
    """A private key as it was at one moment."""

    private_key: Ed25519PrivateKey
    key_id: str
    stamp: Stamp | None  # of the file that it was read from


class KeyHolder:
    """Holds the private key of one role, and notices when its file was replaced.

    Every call takes the key as it is then, from any thread. What has to be done with one and the
    same key (asking whether it may sign, then signing) is done with `pinned()`.
    """

    role: ClassVar[KeyRole]

    def __init__(
        self,
        private_key: Ed25519PrivateKey,
        source: KeySource | None = None,
        stamp: Stamp | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self._source = source
        self._reloads = source is not None and source.path is not None and not pinned
        self._held = _hold(private_key, stamp)
        self._seen = stamp
        self._lock = threading.Lock()

    @classmethod
    def from_source(cls, source: KeySource) -> Self:
        """Read a key from where the settings say.

        Raises:
            SigningKeyError: It is missing, unreadable, does not open, or is no Ed25519 key.
        """
        if source.role != cls.role:
            raise ValueError(f"source.role: expected {cls.role}, found {source.role}")
        key, stamp = source.read()
        return cls(key, source, stamp)

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """Read a PKCS #8 PEM file, encrypted or plain.

        Raises:
            SigningKeyError: It is missing, unreadable, does not open, or is no Ed25519 key.
        """
        return cls.from_source(KeySource(cls.role, path=path, passphrase=passphrase))

    @classmethod
    def generate(cls, path: Path, passphrase: bytes | None = None) -> Self:
        """Make a new key and write it to `path`, mode 0600, encrypted if there is a passphrase.

        Raises:
            FileExistsError: A file is there already.
        """
        generate_key_file(path, passphrase)
        return cls.load(path, passphrase)

    @property
    def key_id(self) -> str:
        """SHA-256 of the public key's SubjectPublicKeyInfo, in hexadecimal."""
        return self._current().key_id

    def public_key(self) -> Ed25519PublicKey:
        """Return the public key."""
        return self._current().private_key.public_key()

    def public_pem(self) -> bytes:
        """Return the public key, which auditors should get by a way of their own."""
        return self.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def public_der(self) -> bytes:
        """Return the public key as SubjectPublicKeyInfo, DER."""
        return encode_public_key(self.public_key())

    def pinned(self) -> Self:
        """Return this holder with the key that it has now, for good."""
        held = self._current()
        return type(self)(held.private_key, self._source, held.stamp, pinned=True)

    def _current(self) -> _Held:
        if not self._reloads or self._source is None:
            return self._held
        stamp = self._source.stamp()
        if stamp != self._seen:
            with self._lock:
                if stamp != self._seen:
                    self._reload(self._source, stamp)
        return self._held

    def _reload(self, source: KeySource, stamp: Stamp | None) -> None:
        """Take the key that is in the file now; keep the one at hand if that cannot be read.

        A key that may not sign any more is refused by the registry, whatever the file holds.
        """
        try:
            key, found = source.read()
        except SigningKeyError as error:
            logger.warning("signing_key.not_reloaded", role=str(self.role), error=str(error))
            self._seen = stamp  # once a state of the file
            return
        before = self._held.key_id
        self._held = _hold(key, found)
        self._seen = found
        if self._held.key_id != before:
            logger.info(
                "signing_key.replaced",
                role=str(self.role),
                before=before,
                key_id=self._held.key_id,
            )


class Signer(KeyHolder):
    """Signs records. Checkpoints are signed with a key of their own."""

    role = KeyRole.RECORDS

    def verifier(self) -> Verifier:
        """Return the verifier of this key."""
        return Verifier(self.public_pem())

    def sign_envelope(self, payload_type: str, payload: bytes) -> SignedEnvelope:
        """Return a DSSE envelope. Its type is signed too: no record passes as something else."""
        return sign_envelope(self._current().private_key, payload_type, payload)


class CheckpointSigner(KeyHolder):
    """Signs the log's checkpoints."""

    role = KeyRole.CHECKPOINTS

    def note_key(self, origin: str) -> NoteKey:
        """Return the public key under the name that it signs notes with: the log's origin."""
        return NoteKey.from_public(origin, self.public_key())

    def sign(self, origin: str, text: str, also: Collection[str] = ()) -> str:
        """Return `text` as a note.

        Args:
            origin: Name of the log, which the signature is made under.
            text: The checkpoint.
            also: Ids of former keys that still count (`keyring.overlapping`). Each signs too if its
                file lies beside the key's: a verifier that knows only an older key list can then
                follow for as long as the keys overlap.
        """
        held = self._current()
        keys = [held.private_key]
        keys += [key for key_id in also if (key := self._former(key_id)) is not None]
        return sign_note(text, [(origin, key) for key in keys])

    def _former(self, key_id: str) -> Ed25519PrivateKey | None:
        """Return a key that a rotation kept beside the present one, if it is at hand."""
        if self._source is None or self._source.path is None:
            return None
        former = self._source.beside(kept_path(self._source.path, key_id))
        if former.stamp() is None:
            return None
        try:
            key, _ = former.read()
        except SigningKeyError as error:
            logger.warning("signing_key.former_not_readable", error=str(error))
            return None
        return key if key_id_of(key.public_key()) == key_id else None


def kept_path(path: Path, key_id: str) -> Path:
    """Return where a rotation keeps the key that it replaces."""
    return path.with_name(f"{path.stem}.{key_id[:8]}.pem")


def sign_envelope(
    private_key: Ed25519PrivateKey, payload_type: str, payload: bytes
) -> SignedEnvelope:
    """Return a DSSE envelope with one signature."""
    public_key = private_key.public_key()
    signer = CryptoSigner(
        private_key, SSlibKey.from_crypto(public_key, keyid=key_id_of(public_key))
    )
    envelope = Envelope(payload, payload_type, {})
    envelope.sign(signer)
    return SignedEnvelope.model_validate(envelope.to_dict())


def read_payload(envelope: SignedEnvelope, *payload_types: str) -> bytes:
    """Return an envelope's payload without verifying its signature.

    Raises:
        InvalidEnvelopeError: Its payload is of another type.
    """
    if envelope.payloadType not in payload_types:
        raise InvalidEnvelopeError(
            f"expected the type {' or '.join(payload_types)}, found {envelope.payloadType}"
        )
    return read_base64(envelope.payload)


def encode_public_key(key: Ed25519PublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo, DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_id_of(key: Ed25519PublicKey) -> str:
    """Return SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal."""
    return hashlib.sha256(encode_public_key(key)).hexdigest()


def _hold(private_key: Ed25519PrivateKey, stamp: Stamp | None) -> _Held:
    return _Held(private_key, key_id_of(private_key.public_key()), stamp)
