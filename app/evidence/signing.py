"""Ed25519 signatures in DSSE envelopes: making them, and opening them with a public key."""

import hashlib
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import (  # type: ignore[attr-defined]  # exported without __all__
    CryptoSigner,
    SSlibKey,
)

from app.artifacts.keyfiles import write_secret_file
from app.evidence.formats import SignedEnvelope
from app.strict_json import read_base64


class SigningKeyError(ValueError):
    """A key file is missing or holds no Ed25519 key."""


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
        self.key_id = _key_id(key)
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


class Signer:
    """Holds the private key that signs records and checkpoints."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        public_key = private_key.public_key()
        self.key_id = _key_id(public_key)
        self._public_key = public_key
        self._signer = CryptoSigner(
            private_key, SSlibKey.from_crypto(public_key, keyid=self.key_id)
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an unencrypted PKCS #8 PEM file.

        Raises:
            SigningKeyError: The file is missing or holds something else.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except FileNotFoundError:
            raise SigningKeyError(
                f"SIGNING_KEY_FILE: {path} does not exist; make one with `lethe keys init`"
            ) from None
        except (ValueError, TypeError) as error:
            raise SigningKeyError(
                f"SIGNING_KEY_FILE: {path} is not an unencrypted PEM private key ({error})"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningKeyError(
                f"SIGNING_KEY_FILE: {path} holds {type(key).__name__}; make an Ed25519 key with "
                "`lethe keys init`"
            )
        return cls(key)

    @classmethod
    def generate(cls, path: Path) -> Self:
        """Make a new key and write it to `path`, mode 0600.

        Raises:
            FileExistsError: A file is there already.
        """
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_secret_file(path, pem)
        return cls(key)

    def public_pem(self) -> bytes:
        """Return the public key, which auditors should get by a way of their own."""
        return self._public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifier(self) -> Verifier:
        """Return the verifier of this key."""
        return Verifier(self.public_pem())

    def sign_envelope(self, payload_type: str, payload: bytes) -> SignedEnvelope:
        """Return a DSSE envelope. Its type is signed too: no record passes as a checkpoint."""
        envelope = Envelope(payload, payload_type, {})
        envelope.sign(self._signer)
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


def _key_id(key: Ed25519PublicKey) -> str:
    """Return SHA-256 of the key's SubjectPublicKeyInfo, in hexadecimal."""
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()
