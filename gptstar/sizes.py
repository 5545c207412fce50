"""Amounts of memory as people write them."""

from __future__ import annotations

import math
import re

from gptstar.errors import UserError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str) -> int:
    """20G, 16GiB or a plain number of bytes. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    if not found or len(found[1]) > 20:
        raise UserError("must be a number of bytes, as in 20G or 16GiB")
    return int(float(found[1]) * UNITS[found[2]])


def say_bytes(n_byte: float) -> str:
    """In GiB, or in MiB, KiB or bytes where that is little."""
    if 0 < n_byte < 2**20:
        return f"{n_byte:.0f} bytes" if n_byte < 2**14 else f"{n_byte / 2**10:.0f} KiB"
    return f"{n_byte / 2**30:.2f} GiB" if n_byte >= 2**27 else f"{n_byte / 2**20:.3g} MiB"


def at_least(n_byte: float) -> str:
    """In MiB, rounded up: whoever asks for that much has enough."""
    return f"{math.ceil(n_byte / 2**20)} MiB"
