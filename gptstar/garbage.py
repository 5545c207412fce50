"""Python's search for cyclic garbage, kept away from what lives as long as the process and out of training steps.

By default Python searches at any allocation, and now and then walks through every object of the imported libraries.
Memory without cycles, tensors above all, is freed at once as ever.
"""

from __future__ import annotations

import gc


def search_all() -> None:
    """All generations: a fifth of a second where many libraries are loaded."""
    gc.collect()


class LongLived:
    """Whatever exists when `set_aside` is called for the first time; searches leave it out until `release`."""

    def __init__(self) -> None:
        self._aside = False

    def set_aside(self) -> None:
        """Again it does nothing."""
        if not self._aside:
            search_all()  # what is garbage now is not to be kept
            gc.freeze()
            self._aside = True

    def release(self) -> None:
        """All is searched again."""
        if self._aside:
            gc.unfreeze()
            self._aside = False


class GarbageCollection:
    """While entered, what was there before is set aside, and Python searches the rest only when told to.

    `after_step` does so once in `every` steps.
    """

    def __init__(self, every: int = 100) -> None:
        self.every, self._steps = every, 0
        self._long_lived = LongLived()

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
        self._long_lived.set_aside()
        return self

    def __exit__(self, *_: object) -> None:
        self._long_lived.release()
        if self._enabled:
            gc.enable()
