"""Stop strings: found wherever tokens cut them, and never given out."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Reads text piece by piece and gives out what is certain to come before any stop string.

    The stop string that is complete first counts, of several complete at one character the longest: what is found does
    not depend on how the text is cut into pieces. Text that may yet turn out to begin a stop string is held back, so
    at most one character less than the longest. `found` is the stop string, once there is one; from then on nothing
    more comes out.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = list(stops)
        self.found: str | None = None
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that is decided now that `piece` has come."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            return text[:at]
        keep = max((_begun(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The text held back, where nothing more comes."""
        held, self._held = self._held, ""
        return "" if self.found is not None else held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`, which is not complete."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
