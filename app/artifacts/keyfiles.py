"""Files that hold a secret: readable by their owner alone, complete or absent, never replaced."""

import os
import tempfile
from pathlib import Path


def write_secret_file(path: Path, content: bytes) -> None:
    """Write `content` so that only this user can read it, in a folder made likewise if need be.

    Raises:
        FileExistsError: A file is there already. A replaced key is a lost key, so it stays.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes the file 0600; a link fails where a rename would silently replace.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as fsync does for a file's bytes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
