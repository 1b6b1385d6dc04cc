"""Where the numbers live: CPU or GPU, the same functions on both.

Every function of the core works where its inputs are; this module brings inputs there and results
back. Random draws come from the CPU whatever the device, so a seed means the same on both.
"""

import dataclasses
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from core.errors import InvalidOptionError

DeviceName = Literal["auto", "cpu", "cuda"]

_Value = TypeVar("_Value")


def choose(name: DeviceName) -> torch.device:
    """Return the device that a setting names.

    Args:
        name: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Returns:
        The device.

    Raises:
        InvalidOptionError: The name is unknown, or `cuda` is asked for and there is none.

    >>> choose("cpu")
    device(type='cpu')
    """
    if name not in get_args(DeviceName):
        raise InvalidOptionError(
            f"device: expected one of {', '.join(get_args(DeviceName))}, got {name!r}"
        )
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        built = "built without CUDA" if torch.version.cuda is None else "sees no GPU"
        raise InvalidOptionError(
            f"device: `cuda` is asked for, but torch {torch.__version__} {built}; set the device "
            "to `auto` or `cpu`, or install a driver and torch's CUDA build"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def to_device(value: _Value, device: torch.device) -> _Value:
    """Return a record with every tensor in it on a device.

    Args:
        value: A tensor, a dataclass of the core, or a tuple, list or dictionary of these; anything
            else is returned as it is.
        device: Where the tensors shall be.

    Returns:
        The same kind of record; `value` is unchanged. What is already there is not copied.

    >>> to_device((torch.ones(1), "name"), torch.device("cpu"))
    (tensor([1.]), 'name')
    """
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = _move_fields(value, device)
    elif isinstance(value, dict):
        moved = {key: to_device(item, device) for key, item in value.items()}
    elif isinstance(value, tuple | list):
        moved = type(value)(to_device(item, device) for item in value)
    result: _Value = moved
    return result


def _move_fields(record: Any, device: torch.device) -> Any:
    changes = {}
    for field in dataclasses.fields(record):
        before = getattr(record, field.name)
        after = to_device(before, device)
        if field.init and after is not before:
            changes[field.name] = after
    return dataclasses.replace(record, **changes)
