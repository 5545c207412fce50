"""Many prompts from a file of JSON lines to another, decoded together.

A line in is {"prompt": "...", ...}; any setting of `SamplingSettings` beside it counts for this line alone, and what is
no setting is copied. A line out is the line in with "text", "tokens", "finish_reason" and "seed", in the same order;
where n asks for several sequences there is a line for each, with "index".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TextIO

from gptstar.errors import UserError
from gptstar.generation.engine import Engine
from gptstar.generation.generate import Generation
from gptstar.generation.settings import SamplingSettings

SETTINGS = {field.name for field in fields(SamplingSettings)}


def read_requests(path: Path, common: SamplingSettings, vocab_size: int) -> list[tuple[dict, SamplingSettings]]:
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
        try:
            values = json.loads(line)
        except ValueError as error:  # not UTF-8 is one too
            raise UserError(f"{where}: no valid JSON ({error}): mend or remove the line") from error
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str) or not values["prompt"]:
            raise UserError(f'{where}: "prompt" is missing, empty or no text')
        wish = replace(common, **{key: value for key, value in values.items() if key in SETTINGS})
        try:
            wish.check(vocab_size)
        except (UserError, TypeError) as error:
            raise UserError(f"{where}: {error}") from error
        found.append((values, wish))
    if not found:
        raise UserError(f"{path} is empty: it needs one JSON object a line")
    return found


def continue_many(
    engine: Engine, requests: list[tuple[dict, SamplingSettings]], out: TextIO, advance: Callable[[int], Any]
) -> None:
    """Writes a line as soon as it and all before it are finished; tells `advance` how many sequences are done.

    Raises UserError, before anything is written, for a prompt that is too long.
    """
    order = [engine.submit(values["prompt"], wish) for values, wish in requests]
    wanted = [(request, index) for request, (_, wish) in zip(order, requests, strict=True) for index in range(wish.n)]
    lines = dict(zip(order, requests, strict=True))
    done: dict[tuple[int, int], Generation] = {}
    written = 0
    for event in engine.run():
        if event.done is None:
            continue
        done[event.request, event.index] = event.done
        advance(1)
        while written < len(wanted) and wanted[written] in done:
            request, index = wanted[written]
            values, wish = lines[request]
            out.write(json.dumps(_line(values, wish, index, done.pop(wanted[written])), ensure_ascii=False) + "\n")
            written += 1
        out.flush()


def _line(values: dict, wish: SamplingSettings, index: int, made: Generation) -> dict:
    line = {**values, "text": made.text, "tokens": made.tokens, "finish_reason": made.finish_reason, "seed": made.seed}
    if wish.n > 1:
        line["index"] = index
    if made.logprobs is not None:
        line["logprobs"] = [one.logprob for one in made.logprobs]
    return line
