"""Python's search for cyclic garbage, kept out of the steps."""

from __future__ import annotations

import gc


def search_all() -> None:
    """All generations: a fifth of a second where many libraries are loaded."""
    gc.collect()


class GarbageCollection:
    """While entered, Python searches for cyclic garbage only when told to.

    By default it does so at any allocation, and walks through every object of the imported libraries. Here those that
    exist at the start are set aside (`gc.freeze`), and `after_step` searches the rest once in `every` steps. Memory
    without cycles, tensors above all, is freed at once as ever.
    """

    def __init__(self, every: int = 100) -> None:
        self.every, self._steps = every, 0

    def after_step(self) -> None:
        """Collects where it is due."""
        self._steps += 1
        if self._steps % self.every == 0:
            self.collect()

    def collect(self) -> None:
        """Now: between other long work, such as validation."""
        gc.collect()

    def __enter__(self) -> GarbageCollection:
        self._enabled = gc.isenabled()
        gc.disable()
        search_all()  # what is garbage now is not to be kept
        gc.freeze()
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        if self._enabled:
            gc.enable()
