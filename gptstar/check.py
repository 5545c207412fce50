"""Asks ideas of your own what every model of GPT* is asked: python -m gptstar.check kerple.py [own settings: power=2]

For every block, position, norm, activation, optimizer and schedule that a file adds: is it causal, does decoding with
the cache equal reading all at once, do padded rows equal rows alone, is save and load exact, are gradients complete,
does it compile to the same; does the optimizer learn, continue from its state, follow its learning rate.

From then on checkpoints that bring the file along are loaded on this machine. The exit status is 1 where an answer is
wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import yaml

from gptstar.configuration import preset
from gptstar.errors import EXIT_BAD_INPUT, UserError, complain, say_interrupted
from gptstar.ideas import use
from gptstar.lab.battery import OPTIMIZER_QUESTIONS, gives_factors, rounds, shrunk, wrong
from gptstar.model.choices import with_own_settings
from gptstar.model.config import ModelConfig
from gptstar.training.optimizers import OptimizerConfig
from gptstar.training.tables import TABLES

BASES = ("gpt2_3m", "star_3m")  # what a part of a model is tried in: sequential and parallel, learned and ALiBi


def check(files: Sequence[str], own: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(what is asked, the question, what is wrong or "") for everything that files add.

    own: settings for whatever has them. Raises UserError for a file that cannot be imported or adds nothing, and for a
    setting that nothing has.
    """
    if not files:
        raise UserError("no file is named: begin with the one that adds your idea, FILE.py")
    before = {key: set(table) for key, table in TABLES.items()}
    use(files)
    added = [(key, name) for key, table in TABLES.items() for name in table if name not in before[key]]
    if not added:
        raise UserError(f"{', '.join(files)}: nothing is added to a table: mark it with gptstar.model.own.add")
    of_all = {name for key, table in TABLES.items() for k, n in added if k == key for name in _settings(table[n])}
    if unknown := own.keys() - of_all:
        raise UserError(
            f"{min(unknown)} is not a setting of these: choose one of {', '.join(sorted(of_all)) or 'none'}"
        )
    for key, name in added:
        mine = {k: v for k, v in own.items() if k in _settings(TABLES[key][name])}
        for where, question, found in _asked(key, name, mine):
            yield f"{key}={name}{where}", question, found


def _asked(key: str, name: str, own: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    if key == "schedule.name":
        yield "", gives_factors.__name__, wrong(partial(gives_factors, name))
        return
    if key == "optimizer.name":
        model, optimizer = _model("star_3m"), OptimizerConfig(name=name, lr=3e-3, own=own)
        for asked in OPTIMIZER_QUESTIONS:
            yield "", asked.__name__, wrong(partial(asked, optimizer, model))
        return
    for base in BASES:
        changes: dict[str, Any] = {key.removeprefix("model."): name, "own": own}
        try:
            config = with_own_settings(_model(base, **changes))
        except ValueError as error:  # of the block's own check, say: not every position suits it
            yield f" in {base}", "fits", str(error)
            continue
        for question, found in rounds(config):
            yield f" in {base}", question, found


def _model(base: str, **changes: Any) -> ModelConfig:
    return replace(shrunk(preset(base)), **changes)


def _settings(thing: object) -> dict[str, Any]:
    return getattr(thing, "own_settings", {})


def _own_setting(word: str) -> tuple[str, Any]:
    name, _, value = word.partition("=")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "it is no YAML"
        raise UserError(f"{word} cannot be read ({reason}): write NAME=VALUE, as in power=2 or sizes=[1,2]") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gptstar.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE.py", help="an idea, or NAME=VALUE of its own settings")
    given = parser.parse_args(arguments).files
    failures, last = 0, ""
    try:
        own = dict(_own_setting(word) for word in given if "=" in word)
        for what, question, found in check([word for word in given if "=" not in word], own):
            if what != last:
                print(what)
                last = what
            failures += bool(found)
            print(f"  {'FAILED' if found else 'ok':7}{question.replace('_', ' ')}" + (f": {found}" if found else ""))
    except UserError as error:
        complain(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return say_interrupted()
    print(f"{failures} answers are wrong" if failures else "all answers are right")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
