"""Whole files in an fsspec location: written completely or not at all."""

import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from app.artifacts.keyfiles import sync_folder

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Only names that this module gives are ever listed or removed, whatever else lies there.
_OURS = re.compile(rf"[0-9a-f]{{2}}/(?:{_UUID}|\.{_UUID}\.partial)")


class BlobFolder:
    """A folder, or a bucket's prefix, of one deployment alone: its sweeper removes strays."""

    def __init__(self, url: str) -> None:
        self._files, root = url_to_fs(url)
        self._root = str(root).rstrip("/")

    def write(self, location: str, content: bytes) -> None:
        """Store `content`; a reader sees all of it or no file."""
        path = self._path(location)
        if isinstance(self._files, LocalFileSystem):
            _write_file(Path(path), content)
        else:
            # One PUT (or one completed multipart upload) is atomic in an object store.
            self._files.pipe_file(path, content)

    def read(self, location: str) -> bytes:
        """Return a file's content; `FileNotFoundError` if there is none."""
        return cast("bytes", self._files.cat_file(self._path(location)))

    def remove(self, location: str) -> None:
        """Remove a file; no error if it is gone already."""
        try:
            self._files.rm_file(self._path(location))
        except FileNotFoundError:
            return

    def locations(self) -> Iterator[str]:
        """Return every file that `write` made or left half made."""
        self._files.invalidate_cache()
        for path in self._files.find(self._root):
            location = path.removeprefix(self._root).lstrip("/")
            if _OURS.fullmatch(location):
                yield location

    def modified(self, location: str) -> datetime.datetime:
        """Return when a file was last written."""
        return cast("datetime.datetime", self._files.modified(self._path(location)))

    def _path(self, location: str) -> str:
        return f"{self._root}/{location}"


def _write_file(path: Path, content: bytes) -> None:
    """Write beside the target and rename.

    fsspec's own transactions are no help here: their temporary file lies in /tmp, often another
    file system, so that the "rename" is a copy; the result is world-readable; and the flag that
    starts one is shared by all threads.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The row that names this file must not outlive it in a power cut.
    sync_folder(path.parent)
