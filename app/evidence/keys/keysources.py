"""Where the two private keys come from: files encrypted at rest, or the environment."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.artifacts.keyfiles import write_secret_file
from app.artifacts.keys import MasterKey
from app.errors import SigningKeyError
from app.evidence.models import KeyRole
from app.settings import KeySettings, PassphraseSettings

__all__ = [
    "SETTINGS",
    "KeySource",
    "SigningKeyError",
    "Stamp",
    "chosen_passphrase",
    "derived_passphrase",
    "file_passphrase",
    "generate_key_file",
    "key_source",
    "private_pem",
]

logger = structlog.get_logger(__name__)


class KeySetting(NamedTuple):
    """The two settings that a key can be given by, one at a time."""

    file: str
    value: str


SETTINGS: Mapping[KeyRole, KeySetting] = MappingProxyType(
    {
        KeyRole.RECORDS: KeySetting("SIGNING_KEY_FILE", "SIGNING_KEY"),
        KeyRole.CHECKPOINTS: KeySetting("LOG_KEY_FILE", "LOG_KEY"),
    }
)

# A key file stretches its passphrase 2,048 times (PBKDF2) only: it must be hard to guess itself.
SHORTEST_PASSPHRASE = 20
_PURPOSE = "lethe/key-files/v1"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What tells one state of a file from another without reading it."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """Return what a file's status says."""
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where the private key of a role comes from, and what opens it.

    Attributes:
        role: What the key signs.
        path: Its file; None if the environment holds the key.
        pem: The key itself; None if it is in a file.
        passphrase: What it is encrypted with; None opens plain PEM only.
        passphrase_from: Where the passphrase comes from, for people.
    """

    role: KeyRole
    path: Path | None = None
    pem: bytes | None = field(default=None, repr=False)
    passphrase: bytes | None = field(default=None, repr=False)
    passphrase_from: str = "the given passphrase"  # noqa: S105 - not one

    @property
    def name(self) -> str:
        """The setting that the key is from, with its file."""
        setting = SETTINGS[self.role]
        return setting.value if self.path is None else f"{setting.file}: {self.path}"

    def stamp(self) -> Stamp | None:
        """Return the state of the key's file; None if there is none."""
        if self.path is None:
            return None
        try:
            return Stamp.of(self.path.stat())
        except OSError:
            return None  # reading it will say why

    def read(self) -> tuple[Ed25519PrivateKey, Stamp | None]:
        """Return the private key, and the state of the file that it was read from.

        Raises:
            SigningKeyError: It is missing, unreadable, does not open, or is no Ed25519 key.
        """
        if self.path is None:
            return self._parse(self.pem or b""), None
        try:
            with self.path.open("rb") as file:
                # The same open file: a replacement between the two would go unnoticed for ever.
                stamp, content = Stamp.of(os.fstat(file.fileno())), file.read()
        except FileNotFoundError:
            raise SigningKeyError(
                f"{self.name} does not exist; make one with `lethe keys init`, or restore it from a"
                " backup if there was one"
            ) from None
        except OSError as error:
            raise SigningKeyError(
                f"{self.name} cannot be read ({error.strerror}); give this user the right to"
            ) from error
        return self._parse(content), stamp

    def beside(self, path: Path) -> "KeySource":
        """Return the same source with another file."""
        return KeySource(
            self.role,
            path=path,
            passphrase=self.passphrase,
            passphrase_from=self.passphrase_from,
        )

    def is_plain(self) -> bool:
        """Tell whether the key lies in a file that whoever copies it can sign with."""
        return self.path is not None and _ENCRYPTED not in self.path.read_bytes()

    def encrypt(self, key: Ed25519PrivateKey) -> bytes:
        """Return `key` as PEM, encrypted as this source is."""
        return private_pem(key, self.passphrase)

    def _parse(self, content: bytes) -> Ed25519PrivateKey:
        is_encrypted = _ENCRYPTED in content
        if is_encrypted and self.passphrase is None:
            raise SigningKeyError(
                f"{self.name} is encrypted and no passphrase was given; set KEY_PASSPHRASE_FILE"
            )
        try:
            key = serialization.load_pem_private_key(
                content, self.passphrase if is_encrypted else None
            )
        except (ValueError, TypeError) as error:
            if is_encrypted:
                raise SigningKeyError(
                    f"{self.name} does not open with {self.passphrase_from}; give the passphrase"
                    " (KEY_PASSPHRASE_FILE) or the master key (MASTER_KEY_FILE) that it was"
                    " encrypted with"
                ) from error
            raise SigningKeyError(
                f"{self.name} is not a PEM private key ({error}); make one with `lethe keys init`"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise SigningKeyError(
                f"{self.name} holds {type(key).__name__}; make an Ed25519 key with"
                " `lethe keys init`"
            )
        if not is_encrypted and self.passphrase is not None:
            _warn_of_plain_key(self.name)
        return key


def key_source(settings: KeySettings, role: KeyRole, master: MasterKey) -> KeySource:
    """Return where the settings say that a role's key is.

    Raises:
        SigningKeyError: The passphrase is missing or too short.
    """
    passphrase, passphrase_from = file_passphrase(settings, master)
    path, value = {
        KeyRole.RECORDS: (settings.signing_key_file, settings.signing_key),
        KeyRole.CHECKPOINTS: (settings.log_key_file, settings.log_key),
    }[role]
    # Files of environment variables hold no line breaks, so people write them as \n.
    pem = None if value is None else value.get_secret_value().replace("\\n", "\n").encode()
    return KeySource(
        role, path=path, pem=pem, passphrase=passphrase, passphrase_from=passphrase_from
    )


def file_passphrase(settings: PassphraseSettings, master: MasterKey) -> tuple[bytes, str]:
    """Return what key files are encrypted with, and where that comes from.

    Raises:
        SigningKeyError: The passphrase's file is missing, or the passphrase too short.
    """
    if (chosen := chosen_passphrase(settings)) is not None:
        return chosen
    return derived_passphrase(master), "the passphrase derived from MASTER_KEY_FILE"


def chosen_passphrase(settings: PassphraseSettings) -> tuple[bytes, str] | None:
    """Return the passphrase that an operator chose and the setting's name; None if nobody did.

    Raises:
        SigningKeyError: Its file is missing, or it is too short.
    """
    if settings.key_passphrase_file is not None:
        name = "KEY_PASSPHRASE_FILE"
        try:
            passphrase = settings.key_passphrase_file.read_bytes().strip()
        except OSError as error:
            raise SigningKeyError(
                f"{name}: {settings.key_passphrase_file} cannot be read ({error.strerror})"
            ) from error
    elif settings.key_passphrase is not None:
        name, passphrase = "KEY_PASSPHRASE", settings.key_passphrase.get_secret_value().encode()
    else:
        return None
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise SigningKeyError(
            f"{name}: expected {SHORTEST_PASSPHRASE} characters or more, found {len(passphrase)};"
            " make one with `openssl rand -base64 24`"
        )
    return passphrase, name


def derived_passphrase(master: MasterKey) -> bytes:
    """Return what key files are encrypted with where nobody chose a passphrase."""
    return base64.b64encode(master.derive(_PURPOSE))


def private_pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    """Return a key in PKCS #8 PEM, encrypted if there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = (
        serialization.NoEncryption()
        if passphrase is None
        else serialization.BestAvailableEncryption(passphrase)
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def generate_key_file(path: Path, passphrase: bytes | None) -> Ed25519PrivateKey:
    """Make a new key and write it to `path`, mode 0600.

    Raises:
        FileExistsError: A file is there already.
    """
    key = Ed25519PrivateKey.generate()
    write_secret_file(path, private_pem(key, passphrase))
    return key


_warned: set[str] = set()


def _warn_of_plain_key(name: str) -> None:
    """Say once a process and key that whoever copies it can sign with it."""
    if name not in _warned:
        _warned.add(name)
        logger.warning(
            "signing_key.not_encrypted",
            key=name,
            remedy="`lethe keys encrypt` encrypts it with KEY_PASSPHRASE_FILE or the master key",
        )
