"""How fast a model with layers on disk is while it runs, and how near to what its plan says limits it."""

from __future__ import annotations

from collections.abc import Sequence

from gptstar.model.transformer import GPT
from gptstar.offload.stream import Pass, layers_of
from gptstar.sizes import say_bytes


class Speed:
    """Of the passes since the last look. A model without layers on disk has none."""

    def __init__(self, model: GPT) -> None:
        self._layers = layers_of(model)
        self._seen = 0 if self._layers is None else self._layers.n_pass

    @property
    def streams(self) -> bool:
        """Whether a pass reads from disk, so that each is worth a line."""
        return self._layers is not None and bool(self._layers.streamed)

    def since(self, n_token: int | None = None) -> str:
        """A line on the passes since the last call, which have given n_token tokens, or one each."""
        assert self._layers is not None
        n_new = self._layers.n_pass - self._seen
        self._seen = self._layers.n_pass
        passes = list(self._layers.passes)[len(self._layers.passes) - min(n_new, len(self._layers.passes)) :]
        return describe(passes, len(passes) if n_token is None else n_token, self._layers.limit)


def describe(passes: Sequence[Pass], n_token: int, limit: float) -> str:
    """limit: seconds that a pass takes by the plan's bottleneck alone."""
    if not passes:
        return "no pass"
    seconds, n_byte = sum(p.seconds for p in passes), sum(p.n_byte for p in passes)
    each = seconds / len(passes)
    told = [f"{each:.3g} s a pass", f"{n_token / seconds:.3g} tok/s"]
    if n_byte:
        told.append(f"{say_bytes(n_byte / seconds)}/s from disk")
    if limit:
        told.append(f"{limit / each:.0%} of what the plan's bottleneck allows")
    return ", ".join(told)
