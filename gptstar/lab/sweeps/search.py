"""python train.py -m experiment=search: many settings, the hopeless ones stopped early (gptstar/lab/sweeps/trials.py).

The space is configs/hydra/sweeper/search.yaml's, changed by sweeps on the command line; both are in Hydra's own words:
KEY=a,b,c and KEY=range(1,8) are choices, KEY=interval(0.0,0.3) is a number between two, KEY=int(interval(1,8)) an
integer, KEY=tag(log,interval(1e-4,1e-2)) a number that is uniform in its logarithm. Whatever else the command line says
holds for all trials. STUDY then has

search.md, search.png, search.json   what was found, written anew after each trial
trial-000, trial-001, ...            the runs; trial-000.log: what they said
search.yaml, optuna.log              what is searched, and all that Optuna needs to go on
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gptstar.configuration import config_folders, made_of
from gptstar.errors import EXIT_INTERRUPTED, UserError
from gptstar.files import replace_text
from gptstar.lab.sweeps.space import Between, Choice
from gptstar.training.config import TrainConfig

OURS = ("run_dir", "resume")  # each trial has its own
BUDGET = ("trainer.max_steps", "trainer.max_tokens")
TOKENS_A_STEP = ("trainer.batch_size", "trainer.sequence_length", "model.context")


class SearchSweeper(Sweeper):
    """Hydra's side of a search: see `gptstar.lab.sweeps.trials.Search` for what the numbers mean."""

    def __init__(
        self,
        space: dict[str, Any],
        trials: int,
        seed: int,
        reduction: int,
        rungs: int,
        startup_trials: int,
        timeout: float | None,
    ) -> None:
        self.space = dict(space)
        self.numbers: dict[str, Any] = dict(
            trials=trials, seed=seed, reduction=reduction, rungs=rungs, startup_trials=startup_trials, timeout=timeout
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader: ConfigLoader = hydra_context.config_loader
        self.master = config

    def sweep(self, arguments: list[str]) -> None:
        """The search; its arguments are what the command line overrides."""
        if find_spec("optuna") is None:
            raise UserError("experiment=search needs the optuna package: pip install 'gptstar[search]'")
        from gptstar.lab.sweeps.search_report import write_search
        from gptstar.lab.sweeps.trials import Search

        _check_numbers(self.numbers)
        words, fixed = self._split(arguments)
        space = {key: _domain(override) for key, override in words.items()}
        default, budget = self._default(space, fixed)
        folder = Path(self.master.hydra.sweep.dir).expanduser()
        command = [sys.executable, sys.argv[0], *config_folders(), *fixed]
        n = self.numbers
        search = Search(
            *(folder, command, space, default, budget, n["trials"], n["seed"], n["reduction"], n["rungs"]),
            *(n["startup_trials"], n["timeout"]),
        )
        self._check_rungs(search.first_rung, fixed)
        what = {
            "space": {key: str(override.input_line).partition("=")[2] for key, override in words.items()},
            "overrides": fixed,
            **{key: value for key, value in n.items() if key not in ("trials", "timeout")},
        }
        _claim(folder, what)
        done = search.run(
            lambda trials, study: write_search(search, trials, study), lambda text: print(text, flush=True)
        )
        if not done:
            print(f"interrupted: the same command goes on with {folder}", flush=True)
            sys.exit(EXIT_INTERRUPTED)
        print((folder / "search.md").read_text().partition("\n## ")[0].strip(), flush=True)
        print(f"\n{folder / 'search.md'}", flush=True)

    def _split(self, arguments: list[str]) -> tuple[dict[str, Override], list[str]]:
        """The space by key, and what all trials have in common."""
        parser = OverridesParser.create(config_loader=self.loader)
        words = {key: parser.parse_override(f"{key}={value}") for key, value in self.space.items()}
        fixed = []
        for override in parser.parse_overrides(arguments):
            key = override.get_key_element()
            if override.is_sweep_override():
                words[key] = override
            elif key not in OURS:
                words.pop(key, None)  # no longer searched
                fixed.append(str(override.input_line))
        if not words:
            raise UserError("there is nothing to search: set hydra.sweeper.space, or give a key several values")
        return words, fixed

    def _compose(self, overrides: list[str]) -> DictConfig:
        return self.loader.load_sweep_config(self.master, overrides)

    def _train_config(self, fixed: list[str]) -> TrainConfig:
        composed = self._compose(fixed)
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        try:
            checked = cast(TrainConfig, made_of(composed))
        except ValueError as error:  # of a dataclass's __post_init__
            raise UserError(str(error)) from error
        checked.check()
        return checked

    def _default(
        self, space: dict[str, Choice | Between], fixed: list[str]
    ) -> tuple[dict[str, str | float] | None, int]:
        """What a run has without a search, where the space has it; and the tokens of one. UserError for a key or an
        option that there is not, or that cannot be with everything else as it is without a search.
        """
        train = self._train_config(fixed)
        config = self._compose(fixed)
        config.schedule.warmup_steps = train.schedule.warmup_steps  # which null stands for
        found: dict[str, str | float] = {}
        for key, domain in space.items():
            if key in BUDGET or (key in TOKENS_A_STEP and train.trainer.max_tokens is None):
                other = "" if key in BUDGET else ": set trainer.max_tokens=N trainer.max_steps=null"
                raise UserError(f"{key} would give trials different budgets, which cannot be compared{other}")
            for end in domain.ends():
                self._train_config([*fixed, f"{key}={end}"])
            name = key.lstrip("+")
            choices = config.hydra.runtime.choices
            place = domain.place(choices[name] if name in choices else OmegaConf.select(config, name))
            if place is not None:
                found[key] = place
        return found if len(found) == len(space) else None, train.total_steps * train.tokens_per_step

    def _check_rungs(self, first: int, fixed: list[str]) -> None:
        """Raises UserError where a trial is not validated before its first rung has passed."""
        train = self._train_config(fixed)
        every = train.trainer.eval_every
        if not every or every * train.tokens_per_step > first:
            steps = max(1, first // train.tokens_per_step)
            raise UserError(
                f"trainer.eval_every={every}, but trials are first compared after {first:,} tokens: set "
                f"trainer.eval_every={steps}, or lower hydra.sweeper.rungs"
            )


def _check_numbers(numbers: dict[str, Any]) -> None:
    least = {"trials": 1, "seed": 0, "reduction": 2, "rungs": 0, "startup_trials": 1}
    for key, low in least.items():
        if not isinstance(numbers[key], int) or numbers[key] < low:
            raise UserError(f"hydra.sweeper.{key}={numbers[key]} must be a whole number from {low} on")
    timeout = numbers["timeout"]
    if timeout is not None and (not isinstance(timeout, int | float) or timeout <= 0):
        raise UserError(f"hydra.sweeper.timeout={timeout} must be seconds above 0, or null")


def _domain(override: Override) -> Choice | Between:
    """What a sweep in Hydra's words allows."""
    value, key = override.value(), override.get_key_element()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if low is None or high is None or not low < high or (log and low <= 0):
            raise UserError(
                f"{override.input_line}: the interval is empty or not above 0: write KEY=interval(LOW,HIGH)"
            )
        return Between(low, high, log, isinstance(low, int) and isinstance(high, int))
    if not override.is_sweep_override():
        return Choice((override.get_value_element_as_str(),))
    written = {"True": "true", "False": "false"}  # as on a command line
    options = tuple(written.get(option, option) for option in map(str, override.sweep_string_iterator()))
    if len(set(options)) < len(options):
        raise UserError(f"{key} has an option twice: {override.input_line}")
    return Choice(options)


def _claim(folder: Path, what: dict[str, Any]) -> None:
    """Makes the search's folder, or refuses one with something else in it."""
    path = folder / "search.yaml"
    if path.is_file():
        before = yaml.safe_load(path.read_text())
        changed = [key for key in what if what[key] != before.get(key)]
        if changed:
            raise UserError(
                f"run_dir={folder} holds a search with another {changed[0]} ({before.get(changed[0])}, now "
                f"{what[changed[0]]}): choose another run_dir"
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"run_dir={folder} holds something else: choose another run_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, yaml.safe_dump(what, sort_keys=False))
    except OSError as error:
        raise UserError(f"run_dir={folder} cannot be made ({error.strerror}): choose another one") from error
