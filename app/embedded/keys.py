"""The two secrets of a deployment, as files that only their owner may read."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.artifacts.keys import MasterKey
from app.evidence.signing import Signer


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where a deployment's secrets lie."""

    master_key: Path
    signing_key: Path

    @classmethod
    def inside(cls, directory: Path) -> Self:
        """Return the files' places in a directory, whether they exist or not."""
        return cls(directory / "master.key", directory / "signing.pem")

    def __iter__(self) -> Iterator[Path]:
        return iter((self.master_key, self.signing_key))


def create_key_files(directory: Path) -> KeyFiles:
    """Write a new master key and a new signing key.

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
    MasterKey.generate(files.master_key)
    Signer.generate(files.signing_key)
    return files


def ensure_key_files(directory: Path) -> KeyFiles:
    """Return the secrets of a state folder, made at its first start.

    Raises:
        FileNotFoundError: One of them was lost: what it protected cannot be read without it.
    """
    if not directory.exists():
        # Made aside and renamed: an interrupted start leaves both or none.
        half_made = directory.with_name(f"{directory.name}.new")
        shutil.rmtree(half_made, ignore_errors=True)
        create_key_files(half_made)
        half_made.rename(directory)
    files = KeyFiles.inside(directory)
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: restore it from a backup, or start anew in another state"
                " folder; the data of this one cannot be read without it"
            )
    return files
