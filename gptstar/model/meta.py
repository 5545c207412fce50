"""Models of shapes alone: built where tensors have no storage, without drawing the numbers nobody will see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
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
