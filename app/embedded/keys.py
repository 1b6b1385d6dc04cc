"""The secrets of a deployment, as files that only their owner may read."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.artifacts.keys import MasterKey
from app.evidence.keys.keysources import derived_passphrase, generate_key_file


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where a deployment's secrets lie."""

    master_key: Path
    signing_key: Path
    log_key: Path

    @classmethod
    def inside(cls, directory: Path) -> Self:
        """Return the files' places in a directory, whether they exist or not."""
        return cls(directory / "master.key", directory / "signing.pem", directory / "log.pem")

    def __iter__(self) -> Iterator[Path]:
        return iter((self.master_key, self.signing_key, self.log_key))


def create_key_files(directory: Path, passphrase: bytes | None = None) -> KeyFiles:
    """Write a new master key, and new keys for records and for checkpoints.

    Args:
        directory: Where to write them.
        passphrase: What the two signing keys are encrypted with; derived from the new master key
            if None, so that neither file is worth anything without that one.

    Raises:
        FileExistsError: One of them is there already. Overwriting it would make every artifact
            unreadable, or records unverifiable.
    """
    files = KeyFiles.inside(directory)
    for path in files:
        if path.exists():
            raise FileExistsError(
                f"{path} exists, and what it protects would be lost with it: choose another"
                " directory"
            )
    master = MasterKey.generate(files.master_key)
    passphrase = passphrase or derived_passphrase(master)
    generate_key_file(files.signing_key, passphrase)
    generate_key_file(files.log_key, passphrase)
    return files


def ensure_key_files(directory: Path, passphrase: bytes | None = None) -> KeyFiles:
    """Return the secrets of a state folder, made at its first start.

    A folder of before there was a key for checkpoints gets one. Where one was lost this makes
    another, too, and nothing is signed with that: the log knows which key is its own.

    Args:
        directory: The folder of the secrets.
        passphrase: What signing keys are encrypted with; None: derived from the folder's master
            key.

    Raises:
        FileNotFoundError: One of them was lost: what it protected cannot be read without it.
        MasterKeyError: The master key's file is malformed.
    """
    if not directory.exists():
        # Made aside and renamed: an interrupted start leaves all or none.
        half_made = directory.with_name(f"{directory.name}.new")
        shutil.rmtree(half_made, ignore_errors=True)
        create_key_files(half_made, passphrase)
        half_made.rename(directory)
    files = KeyFiles.inside(directory)
    for path in (files.master_key, files.signing_key):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: restore it from a backup, or start anew in another state"
                " folder; the data of this one cannot be read without it"
            )
    if not files.log_key.is_file():
        generate_key_file(
            files.log_key, passphrase or derived_passphrase(MasterKey.load(files.master_key))
        )
    return files
