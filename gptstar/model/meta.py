"""Models of shapes alone: built where tensors have no storage, without drawing the numbers nobody will see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_}


class _DrawsNothing(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    """torch.device("meta"), in which nothing is drawn: torch writes those draws in Python there, and the first of them
    loads its compiler, most of a second.
    """
    with torch.device("meta"), _DrawsNothing():
        yield


def with_storage(module: Module, device: torch.device | str) -> Module:
    """The same module with uninitialised tensors on a device: `to_empty`, which first loads sympy, 0.4 s."""
    return module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))


def unsaved(module: nn.Module) -> Iterator[tuple[str, str]]:
    """(submodule, attribute) of each tensor that the state dict does not hold, so that no file can bring it back."""
    for name, part in module.named_modules():
        for key in part._non_persistent_buffers_set:
            if part._buffers[key] is not None:
                yield name, key
        for key, value in vars(part).items():
            if isinstance(value, Tensor):
                yield name, key


def with_unsaved(module: Module, source: nn.Module, names: Iterable[tuple[str, str]]) -> Module:
    """The same module with those tensors as they are in another one that was built in earnest."""
    for name, key in names:
        here, there = module.get_submodule(name), getattr(source.get_submodule(name), key)
        if (empty := here._buffers.get(key)) is not None:
            there = there.to(device=empty.device, dtype=empty.dtype)
        setattr(here, key, there)
    return module
