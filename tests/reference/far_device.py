"""A second device for machines without one: arithmetic on the CPU, the rules of an accelerator.

Inside `far_device()` tensors can be `.to(FAR)`; they compute as on the CPU, but mixing them with
CPU tensors, reading them as numpy arrays, or making a tensor for them without its device fails, as
it would on a GPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FAR = torch.device("cuda", 7)
_NEAR = torch.device("cpu")


class FarTensor(Tensor):
    """A tensor on the far device."""


class MixedDevicesError(RuntimeError):
    """Something that an accelerator refuses."""


# An accelerator takes a CPU tensor here: it copies.
_COPIES = {Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__}
_READS = {Tensor.numpy, Tensor.__array__}


class far_device(TorchFunctionMode):  # noqa: N801 - used like a function
    """Plays a device named `FAR` while it is entered."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = list(_tensors((args, kwargs)))
        if func == Tensor.device.__get__:
            return FAR if isinstance(args[0], FarTensor) else _NEAR
        if func == Tensor.is_cuda.__get__:
            return isinstance(args[0], FarTensor)
        far = any(isinstance(tensor, FarTensor) for tensor in given)
        if far and func in _READS:
            raise MixedDevicesError("can't convert a far tensor to numpy; use .cpu() first")
        goal = _destination(func, args, kwargs, far=far)
        if func not in _COPIES and func is not Tensor.to:
            _require_one_device(func, given, far=far)
        args, kwargs = _near((args, kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return _place(result, far=goal)


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _near(value):
    # The very same numbers, without their place, and the far device's name as the CPU's.
    if isinstance(value, FarTensor):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if isinstance(value, torch.device) or value in ("cuda", "cpu"):
        return _NEAR
    if isinstance(value, dict):
        return {key: _near(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_near(item) for item in value)
    return value


def _destination(func, args, kwargs, *, far) -> bool:
    if func is Tensor.cpu:
        return False
    named = [item for item in (*args[1:], *kwargs.values()) if isinstance(item, torch.device)]
    if named:
        return named[0] == FAR
    if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
        return isinstance(args[1], FarTensor)
    if func is Tensor.to:
        return isinstance(args[0], FarTensor)
    return far


def _require_one_device(func, given, *, far) -> None:
    # A CPU scalar is taken along by an accelerator.
    near = [t for t in given if not isinstance(t, FarTensor) and _dimensions(t) > 0]
    if far and near:
        raise MixedDevicesError(
            f"{getattr(func, '__name__', func)}: expected all tensors on one device, found a CPU "
            f"tensor of shape {tuple(near[0].shape)} beside far ones"
        )


def _dimensions(tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.dim()


def _place(value, *, far):
    if isinstance(value, Tensor):
        kind = FarTensor if far else Tensor
        with torch._C.DisableTorchFunctionSubclass():
            return value if type(value) is kind else value.as_subclass(kind)
    if type(value) in (tuple, list):
        return type(value)(_place(item, far=far) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value
    if isinstance(value, tuple) and any(isinstance(item, Tensor) for item in value):
        # torch.return_types: named results of a decomposition.
        return type(value)([_place(item, far=far) for item in value])
    return value
