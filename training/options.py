"""Options as the core takes them, and the core's refusals in the words of options."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.architectures import Architecture, NetworkSpec
from core.linearised.architectures import tensors as all_tensors
from core.problem import Ridge
from core.vocabulary import RidgeConvention
from training.errors import BadInputError
from training.files import read_tensors

_MOST_NAME = 200
_BOUNDS = 2  # of a range
_REAL = frozenset({torch.float32, torch.float64})
_X_HINT = "send the samples that --input-shape and --samples describe"
_Y_HINT = "number the classes from 0, or pass --task regression with a column an output"
# What the core calls things, the option that they come from, and what the file calls them.
_FIELDS: Mapping[str, tuple[str, str]] = {
    "X": ("--data", "x"),
    "features": ("--data", "x"),
    "y": ("--data", "y"),
    "targets": ("--data", "y"),
    "holdout": ("--holdout", ""),
    "public_inputs": ("--public", ""),
}
_HINTS = {"x": _X_HINT, "y": _Y_HINT, "rank": "pass a smaller --rank, or more --public samples"}
_OPTIONS = frozenset(
    ("input_shape", "layers", "widths", "channels", "task", "statistics", "rank", "input_range")
) | {"device"}


@dataclass(frozen=True, slots=True)
class Layout:
    """What is declared of the network's shape, as it was typed.

    Attributes:
        architecture: Which network.
        input_shape: Of one input.
        layers: How many of the last are linearised.
        widths: Of hidden dense layers.
        channels: Of convolutions.
    """

    architecture: Architecture
    input_shape: str
    layers: int
    widths: str
    channels: str

    def spec(self, tensors: Mapping[str, Tensor]) -> NetworkSpec:
        """Return the network; its last layer says how many outputs there are.

        Raises:
            BadInputError: A number is none, or the file has no last layer.
            InvalidOptionError: There is no such network.
        """
        bias = list(all_tensors(self._with_outputs(1)))[-1]
        if bias not in tensors or tensors[bias].ndim != 1 or len(tensors[bias]) == 0:
            found = tuple(tensors[bias].shape) if bias in tensors else "none"
            raise BadInputError(
                f"--network: expected the last layer's `{bias}`, one number an output, got "
                f"{found}; pass the state dict of this {self.architecture}, with its --widths"
            )
        return self._with_outputs(len(tensors[bias]))

    def _with_outputs(self, num_outputs: int) -> NetworkSpec:
        return NetworkSpec(
            self.architecture,
            _sizes("--input-shape", self.input_shape),
            num_outputs,
            self.layers,
            _sizes("--widths", self.widths),
            _sizes("--channels", self.channels),
        )


def name_of(name: str) -> str:
    """Return a model's name, checked as the service will.

    Raises:
        BadInputError: It is empty, long, or not printable.
    """
    if not 1 <= len(name) <= _MOST_NAME or not name.isprintable():
        raise BadInputError(
            f"--name: expected 1 to {_MOST_NAME} printable characters, got {name[:40]!r}; choose "
            "a name that people will recognise"
        )
    return name


def tolerance_of(tolerance: float) -> float:
    """Return how far to train.

    Raises:
        BadInputError: It is no tolerance.
    """
    if not 0 < tolerance < 1:
        raise BadInputError(
            f"--tolerance: expected a number between 0 and 1, got {tolerance:g}; 1e-10 serves most"
        )
    return tolerance


def ridge_of(strength: float, convention: RidgeConvention) -> Ridge:
    """Return the L2 term.

    Raises:
        BadInputError: The strength is not positive.
    """
    if not 0 < strength < math.inf:
        raise BadInputError(
            f"--ridge: expected a positive number, got {strength:g}; without one a network has no "
            "single optimum, 1e-3 is a start"
        )
    return Ridge(convention, strength)


def range_of(text: str | None) -> tuple[float, float] | None:
    """Return the range that inputs lie in, if it was declared.

    Raises:
        BadInputError: It is not two numbers.
    """
    if text is None:
        return None
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError:
        bounds = []
    if len(bounds) != _BOUNDS or not all(map(math.isfinite, bounds)):
        raise BadInputError(
            f"--input-range: expected two numbers, got {text!r}; write the least and the largest, "
            "e.g. 0,1"
        )
    return bounds[0], bounds[1]


def read_samples(option: str, path: Path, required: tuple[str, ...]) -> dict[str, Tensor]:
    """Read x, and y where it is required.

    Raises:
        BadInputError: The file lacks one, or x is not of real numbers.
    """
    found = read_tensors(option, path, required=required)
    if found["x"].dtype not in _REAL:
        raise BadInputError(
            f"{option}: {path}, x: expected float64 or float32, got {found['x'].dtype}; convert "
            "it as it was for the network's own training"
        )
    return {name: found[name] for name in required}


def read_optional(
    option: str, path: Path | None, required: tuple[str, ...]
) -> dict[str, Tensor] | None:
    """Read as `read_samples` does, where a file is named at all.

    Raises:
        BadInputError: As there.
    """
    return None if path is None else read_samples(option, path, required)


@contextmanager
def in_words_of_options(files: Mapping[str, Path | None]) -> Iterator[None]:
    """Turn what the core refuses into a sentence about the option that it came from.

    Args:
        files: The files that options name.

    Raises:
        BadInputError: Instead.
    """
    try:
        yield
    except (InvalidOptionError, InvalidTensorError) as error:
        raise BadInputError(_sentence(str(error), files)) from error


def _sentence(message: str, files: Mapping[str, Path | None]) -> str:
    field, _, finding = message.partition(": ")
    if field in _OPTIONS:
        return f"--{field.replace('_', '-')}: {finding}{_hint(field, finding)}"
    option, part = _FIELDS.get(field, ("--network", field))
    if not part and finding.partition(": ")[0] in _FIELDS:
        inner, _, finding = finding.partition(": ")
        part = _FIELDS[inner][1]
    place = f"{files[option]}, {part}" if part else f"{files[option]}"
    return f"{option}: {place}: {finding}{_hint(part, finding)}"


def _hint(part: str, finding: str) -> str:
    # Most findings end in a remedy of their own.
    return "" if ";" in finding or part not in _HINTS else f"; {_HINTS[part]}"


def _sizes(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise BadInputError(
            f"{option}: expected whole numbers, got {text!r}; separate them by commas, e.g. 28,28"
        ) from None
