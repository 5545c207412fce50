"""How fast a model with layers on disk is while it runs, and how near to what its plan says limits it."""

from __future__ import annotations

from gptstar.model.transformer import GPT
from gptstar.offload.stream import layers_of
from gptstar.sizes import say_bytes


class Speed:
    """Of the passes since the last look. A model without layers on disk has none."""

    def __init__(self, model: GPT) -> None:
        self._layers = layers_of(model)
        self._seen = self._now()

    @property
    def streams(self) -> bool:
        """Whether a pass reads from disk, so that each is worth a line."""
        return self._layers is not None and bool(self._layers.streamed)

    def since(self, n_token: int | None = None) -> str:
        """A line on the passes since the last call, which have given n_token tokens, or one each."""
        assert self._layers is not None
        before, self._seen = self._seen, self._now()
        n_pass, seconds, n_byte = (now - then for now, then in zip(self._seen, before, strict=True))
        if not n_pass:
            return "no pass"
        each = seconds / n_pass
        told = [f"{each:.3g} s a pass", f"{(n_pass if n_token is None else n_token) / seconds:.3g} tok/s"]
        if n_byte:
            told.append(f"{say_bytes(n_byte / seconds)}/s from disk")
        if self._layers.limit:
            told.append(f"{self._layers.limit / each:.0%} of what the plan's bottleneck allows")
        return ", ".join(told)

    def _now(self) -> tuple[float, ...]:
        layers = self._layers
        return (0, 0.0, 0) if layers is None else (layers.n_pass, layers.ended, layers.n_byte)
