"""Many prompts from a file of JSON lines to another, decoded together.

A line in is {"prompt": "...", ...}; any setting of `SamplingSettings` beside it counts for this line alone, and what is
no setting is copied. A line out is the line in with "text", "tokens", "finish_reason" and "seed", in the same order;
where n asks for several sequences there is a line for each, with "index".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

from gptstar.errors import UserError, valid_json
from gptstar.generation.engine import Engine
from gptstar.generation.generate import Generation
from gptstar.generation.settings import SamplingSettings

SETTINGS = {field.name for field in fields(SamplingSettings)}


@dataclass(frozen=True)
class Request:
    """A line: where it stands, what is in it, and what it asks for."""

    where: str
    values: dict
    wish: SamplingSettings


def read_requests(path: Path, common: SamplingSettings, vocab_size: int) -> list[Request]:
    """The lines of a file and what each asks for. UserError names file and line of the first that makes no sense."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        with valid_json(where):
            values = json.loads(line)
            json.dumps(values, ensure_ascii=False).encode()  # half of a character cannot be written
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str) or not values["prompt"]:
            raise UserError(f'{where}: "prompt" is missing, empty or no text')
        wish = replace(common, **{key: value for key, value in values.items() if key in SETTINGS})
        try:
            wish.check(vocab_size)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found.append(Request(where, values, wish))
    if not found:
        raise UserError(f"{path} is empty: it needs one JSON object a line")
    return found


def submit_many(engine: Engine, requests: list[Request]) -> list[int]:
    """The engine's number of each. UserError, with file and line, for a prompt that is too long."""
    numbers = []
    for request in requests:
        try:
            numbers.append(engine.submit(request.values["prompt"], request.wish))
        except UserError as error:
            raise UserError(f"{request.where}: {error}") from error
    return numbers


def continue_many(
    engine: Engine, requests: list[Request], numbers: list[int], out: TextIO, advance: Callable[[int], Any]
) -> int:
    """Writes a line as soon as it and all before it are finished; tells `advance` how many sequences are done.

    How many tokens were written.
    """
    lines = dict(zip(numbers, requests, strict=True))
    wanted = [(number, index) for number, request in lines.items() for index in range(request.wish.n)]
    done: dict[tuple[int, int], Generation] = {}
    written = n_token = 0
    for event in engine.run():
        n_token += len(event.tokens)
        if event.done is None:
            continue
        done[event.request, event.index] = event.done
        advance(1)
        while written < len(wanted) and wanted[written] in done:
            number, index = wanted[written]
            line = _line(lines[number], index, done.pop(wanted[written]))
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
        out.flush()
    return n_token


def _line(request: Request, index: int, made: Generation) -> dict:
    new = {"text": made.text, "tokens": made.tokens, "finish_reason": made.finish_reason, "seed": made.seed}
    line = {**request.values, **new}
    if request.wish.n > 1:
        line["index"] = index
    if made.logprobs is not None:
        line["logprobs"] = [one.logprob for one in made.logprobs]
    return line
