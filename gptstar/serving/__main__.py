"""`python -m gptstar.serving`, and the command gptstar-serve: what `python serve.py` is, without a checkout."""

from __future__ import annotations

import sys

from gptstar.allocator import keep_freed_memory
from gptstar.errors import EXIT_BAD_INPUT, UserError, complain


def main() -> None:
    """Serves until it is told to end; exits with one line for what cannot be."""
    keep_freed_memory()  # before torch is imported

    from gptstar.serving.command import run

    try:
        run(sys.argv[1:])
    except UserError as error:
        complain(error)
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
