"""Names of one's own in the tables (`BLOCKS`, `SCHEMES`, `OPTIMIZERS`, ...), and the settings they bring.

@add(SCHEMES, "kerple", power=1.0)
class Kerple(NoPosition): ...                   # reads config.own["power"]; set by model.own.power=2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
_EMPTY = {torch.empty, torch.empty_like, torch.empty_strided, Tensor.new_empty}


def add(table: dict[str, Any], name: str, **settings: bool | int | float | str) -> Callable[[T], T]:
    """Puts a class or function into a table under a name.

    settings: what it reads from its configuration's `own`, each with its usual value; a norm and an activation are
    given them, `own={...}`, after what they take anyway. Raises ValueError for a name that is taken, and for a usual
    value of another kind than these.
    """
    for key, value in settings.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"the usual value of {key} is {value!r}: settings are numbers, words, true and false")

    def put(thing: T) -> T:
        if name in table:
            taken = getattr(table[name], "__qualname__", table[name])
            raise ValueError(f"{name!r} is taken by {taken}: choose another name")
        thing.own_settings = {**getattr(thing, "own_settings", {}), **settings}  # type: ignore[attr-defined]
        table[name] = thing
        return thing

    return put


def completed(own: dict[str, Any], things: Iterable[object], key: str, table: Iterable[object] = ()) -> dict[str, Any]:
    """The settings of some things of the tables: those given, and the usual value of the others.

    key: where they are given. table: what else could have been chosen; its settings are left out, for in a sweep they
    are given to the baseline too. Raises ValueError for a setting that nothing has, or that is of another kind.
    """
    usual: dict[str, Any] = {}
    for thing in things:
        usual.update(getattr(thing, "own_settings", {}))
    elsewhere = {name for thing in table for name in getattr(thing, "own_settings", {})}
    own = {name: value for name, value in own.items() if name in usual or name not in elsewhere}
    for name, value in own.items():
        if name not in usual:
            known = f"choose one of {', '.join(usual)}" if usual else "nothing that is chosen has settings of its own"
            raise ValueError(f"{key}.{name}={value} is not a setting: {known}")
        kind = type(usual[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{key}.{name}={value!r} must be a {kind.__name__}, as its usual value {usual[name]!r} is")
    return {**usual, **own}


def with_own(thing: Callable[..., T], own: dict[str, Any]) -> Callable[..., T]:
    """A norm or an activation, given the settings that it was added with."""
    mine = {name: value for name, value in own.items() if name in getattr(thing, "own_settings", {})}
    return partial(thing, own=mine) if mine else thing


def is_own(thing: object) -> bool:
    """Whether it comes from an idea's file (in an exported folder gptstar_idea_NAME.py) or a notebook."""
    home = str(getattr(getattr(thing, "func", thing), "__module__", ""))  # func: of a partial
    return "gptstar_idea" in home or home == "__main__"


class _EmptyIsMarked(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.fill_(torch.nan) if func in _EMPTY and made.is_floating_point() else made


@contextmanager
def empty_is_marked(marked: bool) -> Iterator[None]:
    """Where what torch.empty makes can be told from what somebody gave a value (`has_values`)."""
    if not marked:
        yield
        return
    with _EmptyIsMarked():
        yield


def has_values(module: nn.Module, parameter: Tensor) -> bool:
    """Whether a module of one's own has given its parameter values, within `empty_is_marked`."""
    return is_own(type(module)) and not parameter.is_meta and not bool(parameter.isnan().any())
