"""Files that hold a secret: readable by their owner alone, complete or absent.

None is ever replaced by the way; the rotation of a key does it on purpose.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_secret_file(path: Path, content: bytes) -> None:
    """Write `content` so that only this user can read it, in a folder made likewise if need be.

    Raises:
        FileExistsError: A file is there already. A replaced key is a lost key, so it stays.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _written_aside(path, content) as temporary:
        # A link fails where a rename would silently replace.
        os.link(temporary, path)
    sync_folder(path.parent)


def replace_secret_file(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file's; whoever reads it sees all of the old or the new."""
    with _written_aside(path, content) as temporary:
        temporary.rename(path)
    sync_folder(path.parent)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time change the files of a folder; the kernel frees it with its end."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _written_aside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file of another name into the folder of `path`, mode 0600, for a moment."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as fsync does for a file's bytes."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
