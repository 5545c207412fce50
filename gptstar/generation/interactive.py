"""A text that a person and the model write in turns.

What is typed is added to the text, and the model goes on from there, streaming. The text before is not read again: the
engine keeps what it has read of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TextIO

import yaml

from gptstar.errors import UserError, reason
from gptstar.generation.engine import Engine
from gptstar.generation.settings import SamplingSettings

HELP = "a line continues the text; /new begins another, /set KEY=VALUE changes a setting, /quit ends"


def converse(
    engine: Engine, settings: SamplingSettings, ask: Callable[[str], str], out: TextIO, err: TextIO, text: str = ""
) -> None:
    """Reads lines from `ask` until it raises EOFError. What is wrong is said in one line, and the text stays.

    settings.n counts as 1. Where the text grows beyond what the model can read, its beginning is left out.
    """
    settings = replace(settings, n=1, truncate=True)
    print(HELP, file=err)
    while True:
        try:
            typed = ask("> ")
        except (EOFError, KeyboardInterrupt):
            return
        command, _, rest = typed.partition(" ")
        try:
            if command == "/quit":
                return
            if command == "/set":
                settings = _changed(settings, rest, engine.tokenizer.vocab_size)
                continue
            text = _turn(engine, settings, rest if command == "/new" else text + typed, out)
        except UserError as error:
            print(f"error: {error}", file=err)


def _turn(engine: Engine, settings: SamplingSettings, text: str, out: TextIO) -> str:
    """What the model adds, written as it comes; the text with it. Ctrl-C ends the turn, and what was shown stays."""
    request = engine.submit(text, settings)
    try:
        for event in engine.run():
            text += event.text
            print(event.text, end="", file=out, flush=True)
    except KeyboardInterrupt:
        pass
    finally:  # what is broken off must not go on in the next turn
        engine.cancel(request)
    print(file=out)
    return text


def _changed(settings: SamplingSettings, assignment: str, vocab_size: int) -> SamplingSettings:
    """The settings after KEY=VALUE, the value as in YAML."""
    key, equals, value = assignment.partition("=")
    names = [field.name for field in fields(SamplingSettings) if field.name not in ("n", "truncate")]
    if not equals or key not in names:
        raise UserError(f"/set {assignment}: write KEY=VALUE, with one of {', '.join(names)}")
    try:
        parsed: Any = yaml.safe_load(value)
        if isinstance(parsed, str) and key != "stop":  # YAML takes 1e-3 for text
            parsed = float(parsed)
        changed = replace(settings, **{key: parsed})
        changed.check(vocab_size)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"/set {assignment}: that is no value for {key} ({reason(error)})") from error
    return changed
