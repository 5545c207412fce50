"""Files that are never seen half-written, and where those lie that can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from gptstar.errors import UserError


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/gptstar`, ~/.cache/gptstar by default; it may not exist. RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptstar"


def make_folder(folder: Path, key: str = "output_dir") -> None:
    """Makes what `key` names. UserError for one that cannot be made or written to: before hours are spent, not after"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key}={folder} cannot be made ({error.strerror}): choose another one") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"{key}={folder} cannot be written to: choose another one")


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames: a kill leaves the old content or the new."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
