"""Names of one's own in the tables (`BLOCKS`, `SCHEMES`, `OPTIMIZERS`, ...), and the settings they bring.

@add(SCHEMES, "kerple", power=1.0)
class Kerple(NoPosition): ...                   # reads config.own["power"]; set by model.own.power=2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def add(table: dict[str, Any], name: str, **settings: bool | int | float | str) -> Callable[[T], T]:
    """Puts a class or function into a table under a name.

    settings: what it reads from its configuration's `own`, each with its usual value. Raises ValueError for a name
    that is taken.
    """

    def put(thing: T) -> T:
        if name in table:
            raise ValueError(f"{name!r} is taken by {table[name]!r}: choose another name")
        thing.own_settings = {**getattr(thing, "own_settings", {}), **settings}  # type: ignore[attr-defined]
        table[name] = thing
        return thing

    return put


def completed(own: dict[str, Any], things: Iterable[object], key: str) -> dict[str, Any]:
    """The settings of some things of the tables: those given, and the usual value of the others.

    key: where they are given. Raises ValueError for one that none of them has, or that is of another kind.
    """
    usual: dict[str, Any] = {}
    for thing in things:
        usual.update(getattr(thing, "own_settings", {}))
    for name, value in own.items():
        if name not in usual:
            known = f"choose one of {', '.join(usual)}" if usual else "nothing that is chosen has settings of its own"
            raise ValueError(f"{key}.{name}={value} is not a setting: {known}")
        kind = type(usual[name])
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{key}.{name}={value!r} must be a {kind.__name__}, as its usual value {usual[name]!r} is")
    return {**usual, **own}
