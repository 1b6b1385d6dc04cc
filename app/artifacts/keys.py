"""The master key, and what is derived from it and wrapped under it."""

import base64
import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.artifacts.keyfiles import write_secret_file

KEY_BYTES = 32
NONCE_BYTES = 12


class MasterKeyError(ValueError):
    """The master key file is malformed, or is not the one that a key was wrapped under."""


class MasterKey:
    """32 bytes that open every stored key; itself used only to derive others (HKDF, RFC 5869)."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise MasterKeyError(
                f"master key: expected {KEY_BYTES} bytes, found {len(secret)}; make one with "
                "`lethe keys init`"
            )
        self._secret = secret
        self._wrapper = AESGCM(self.derive("lethe/wrap/v1"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the key from a file of base64 text.

        Raises:
            MasterKeyError: The file is missing or holds something else.
        """
        try:
            secret = base64.b64decode(path.read_bytes().strip(), validate=True)
        except FileNotFoundError:
            raise MasterKeyError(
                f"MASTER_KEY_FILE: {path} does not exist; make one with `lethe keys init`"
            ) from None
        except ValueError as error:
            raise MasterKeyError(
                f"MASTER_KEY_FILE: {path} is not base64 ({error}); it has to hold 32 random bytes "
                "in base64"
            ) from error
        return cls(secret)

    @classmethod
    def generate(cls, path: Path) -> Self:
        """Make a new key and write it to `path`, mode 0600.

        Raises:
            FileExistsError: A file is there already; without the old key all artifacts are lost.
        """
        secret = os.urandom(KEY_BYTES)
        write_secret_file(path, base64.b64encode(secret) + b"\n")
        return cls(secret)

    def derive(self, purpose: str) -> bytes:
        """Return the 32 bytes that belong to `purpose`; the same every time."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose.encode()).derive(self._secret)

    def wrap(self, key: bytes, purpose: str) -> bytes:
        """Encrypt a key for storage; only the same `purpose` opens it again."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._wrapper.encrypt(nonce, key, purpose.encode())

    def unwrap(self, wrapped: bytes, purpose: str) -> bytes:
        """Return the key that `wrap` was given.

        Raises:
            MasterKeyError: It was wrapped under another master key or purpose, or was changed.
        """
        nonce, ciphertext = wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]
        try:
            return self._wrapper.decrypt(nonce, ciphertext, purpose.encode())
        except (InvalidTag, ValueError):
            raise MasterKeyError(
                f"the stored key for {purpose} does not open; is MASTER_KEY_FILE the one that this "
                "database was used with?"
            ) from None
