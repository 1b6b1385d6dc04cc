"""The folder that a registration is written to, one file a part of `POST /v1/models`."""

import json
import os
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from core.registration import NetworkRegistration
from training.errors import BadInputError

MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint.safetensors"
_PARTS = tuple(
    f"{part}.safetensors" for part in ("network", "weights", "statistics", "membership", "holdout")
)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all; nobody but the owner may read it.

    Raises:
        BadInputError: There is no room, or no right to write.
    """
    try:
        # Readable by its owner alone, as all that is written here should be.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as new:
                new.write(content)
                new.flush()
                os.fsync(new.fileno())
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise BadInputError(
            f"--output: {path} cannot be written: {error.strerror}; make room, and go on with "
            "--resume"
        ) from error


def read_tensors(option: str, path: Path, *, required: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        BadInputError: There is none, or it lacks a tensor.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except OSError as error:
        # What safetensors says of a missing file has no `strerror`.
        reason = (error.strerror or str(error)) if path.exists() else "there is none"
        raise BadInputError(
            f"{option}: {path} cannot be read: {reason}; name a safetensors file"
        ) from error
    except SafetensorError as error:
        raise BadInputError(
            f"{option}: {path} is no safetensors file ({error}); write it with "
            "safetensors.torch.save_file"
        ) from error
    for name in required:
        if name not in tensors:
            found = ", ".join(sorted(tensors)[:5]) or "no tensor"
            raise BadInputError(
                f"{option}: {path} has {found}, but no `{name}`; write x, the samples, and y, "
                "labels or targets"
            )
    return tensors


class OutputFolder:
    """Where everything goes. Complete once it has its manifest, which is written last."""

    def __init__(self, path: Path) -> None:
        """Take a folder, which need not exist."""
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """Return where an unfinished training is kept."""
        return self.path / CHECKPOINT

    def prepare(self, *, resume: bool) -> None:
        """Make the folder, or refuse one that is in use.

        Raises:
            BadInputError: Something would be overwritten, or it cannot be made.
        """
        if (self.path / MANIFEST).exists():
            raise BadInputError(
                f"--output: {self.path} holds a finished registration; choose another folder, or "
                "remove this one"
            )
        used = [name for name in (CHECKPOINT, *_PARTS) if (self.path / name).exists()]
        if used and not resume:
            raise BadInputError(
                f"--output: {self.path} already has {used[0]}; go on from there with --resume, or "
                "choose another folder"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(
                f"--output: {self.path} cannot be made, {error.strerror}; name a folder"
            ) from error

    def write(self, registration: NetworkRegistration) -> None:
        """Write the parts; what an interrupted run left behind of others goes."""
        parts = {f"{name}.safetensors": part for name, part in registration.files().items()}
        for name in set(_PARTS) - parts.keys():
            (self.path / name).unlink(missing_ok=True)
        for name, part in parts.items():
            write_atomically(self.path / name, part)
        manifest = json.dumps(registration.manifest, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(self.path / MANIFEST, manifest.encode())
        self.checkpoint.unlink(missing_ok=True)

    def contents(self) -> list[str]:
        """Return the names of the parts that were written."""
        return [name for name in (MANIFEST, *_PARTS) if (self.path / name).exists()]

    def upload_command(self) -> str:
        """Return the command that registers what was written."""
        fields = [f"{name.partition('.')[0]}=@{self.path / name}" for name in self.contents()]
        fields[0] += ";type=application/json"
        parts = [f"-F {shlex.quote(field)}" for field in fields]
        key = '-H "Authorization: Bearer $(cat .lethe/keys/admin.key)"'
        return f"curl {key} {' '.join(parts)} http://127.0.0.1:8000/v1/models"
