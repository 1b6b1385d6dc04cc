"""What is kept of an unfinished training: w, and a digest of all that its optimum depends on."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from training.errors import BadInputError
from training.files import read_tensors, write_atomically

_SECONDS = 5.0
# Writing millions of weights takes time that training would use better.
_SHARE_OF_TIME = 0.05


def inputs_digest(settings: Sequence[str], **files: Mapping[str, Tensor]) -> bytes:
    """Return SHA-256 of what an optimum depends on.

    Tensors count, not files: the same ones written in another order are the same inputs.
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for file, tensors in sorted(files.items()):
        for name, tensor in sorted(tensors.items()):
            title = json.dumps([file, name, str(tensor.dtype), list(tensor.shape)])
            digest.update(title.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


@dataclass(frozen=True, slots=True, eq=False)
class Reached:
    """How far a training had come.

    Attributes:
        weights: w, shape (D, 1), float64.
        iteration: Of all runs together.
    """

    weights: Tensor
    iteration: int


class Checkpoint:
    """The file of one training; replaced every few seconds, never half written."""

    def __init__(self, path: Path, inputs: bytes) -> None:
        """Take the file's place and the digest of the inputs."""
        self._path = path
        self._inputs = inputs
        self._due = 0.0

    def load(self, num_parameters: int) -> Reached | None:
        """Return what was reached; None where there is no checkpoint.

        Raises:
            BadInputError: The file is none, or of other inputs.
        """
        if not self._path.exists():
            return None
        found = read_tensors("--resume", self._path)
        try:
            inputs = bytes(found["inputs_sha256"].tolist())
            weights, iteration = found["weights"], int(found["iteration"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise BadInputError(
                f"--resume: {self._path} is no checkpoint of this command; remove it to start anew"
            ) from error
        if inputs != self._inputs:
            raise BadInputError(
                f"--resume: {self._path} is of other inputs ({inputs.hex()[:12]}…, these are "
                f"{self._inputs.hex()[:12]}…): network, data, layers and ridge have to be those "
                "that it began with; pass them, or choose another --output"
            )
        if weights.shape != (num_parameters, 1) or weights.dtype != torch.float64:
            raise BadInputError(
                f"--resume: {self._path} holds {tuple(weights.shape)} weights where "
                f"({num_parameters}, 1) are trained; remove it to start anew"
            )
        return Reached(weights, iteration)

    def save(self, reached: Reached) -> None:
        """Write what was reached."""
        began = time.monotonic()
        content = safetensors.torch.save(
            {
                "weights": reached.weights.detach().cpu().contiguous(),
                "iteration": torch.tensor(reached.iteration),
                "inputs_sha256": torch.tensor(list(self._inputs), dtype=torch.uint8),
            }
        )
        write_atomically(self._path, content)
        now = time.monotonic()
        self._due = now + max(_SECONDS, (now - began) / _SHARE_OF_TIME)

    def save_if_due(self, reached: Reached) -> None:
        """Write what was reached, unless that was done a few seconds ago."""
        if time.monotonic() >= self._due:
            self.save(reached)
