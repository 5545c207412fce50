"""Files of JSON lines that a person made: checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gptstar.errors import UserError, valid_json


def check_jsonl(path: Path) -> str:
    """The sha256 of a file of JSON objects, one a line. UserError with file and line for anything else.

    Every line must have the fields of the first.
    """
    digest = hashlib.sha256()
    fields: set[str] | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                fields = _check_line(f"{path}, line {number}", line, fields)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if fields is None:
        raise UserError(f"{path} is empty: it needs one JSON object a line")
    return digest.hexdigest()


def _check_line(where: str, line: bytes, fields: set[str] | None) -> set[str]:
    with valid_json(where):
        value = json.loads(line)
    if not isinstance(value, dict):
        raise UserError(f"{where}: a {type(value).__name__} where a JSON object is needed")
    if fields is not None and not fields <= value.keys():
        raise UserError(f"{where}: the field {min(fields - value.keys())!r} of line 1 is missing")
    return fields or set(value)
