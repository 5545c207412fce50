"""The one error for what a user can mend: a wrong value, a missing file, a damaged shard."""

from __future__ import annotations


class UserError(Exception):
    """Says in one line what is wrong: the thing, its value, the remedy. Doors print it without a traceback."""
