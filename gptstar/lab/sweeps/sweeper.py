"""A study: named variants times seeds, run in an order that a drifting machine cannot bias, and continued after a kill.

`python train.py -m experiment=NAME` runs what configs/experiment/NAME.yaml lists below hydra.sweeper:

    baseline   the variant that the others are compared with
    seeds      trainer.seed of each repetition; all variants of a seed run one after another, those of the next seed in
               reverse, so that whatever changes in the meantime (heat, neighbours, drivers) touches all of them alike
    variants   {NAME: {why: in words, set: [overrides]}}
    only       some of the variants; empty: all
    equal_parameters  the share by which parameter counts may differ from the baseline's; null: by anything

Each run gets a folder, RUN_DIR/VARIANT-SEED, and study.yaml beside them says what they are. The same command again
leaves out what has finished and goes on with what has not.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from rich.console import Console

from gptstar.configuration import config_folders, forced, made_of, quoted
from gptstar.environment import door_command
from gptstar.errors import UserError
from gptstar.files import replace_text
from gptstar.ideas import changed_since
from gptstar.lab.reading.description import STUDY_FILE, read_study
from gptstar.model.describe import parameter_count
from gptstar.training.config import TrainConfig
from gptstar.training.metrics import read_metrics
from gptstar.training.run_folder import plain, told_changes


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    variant: str
    seed: int
    overrides: list[str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.variant}-{self.seed}"


class StudySweeper(Sweeper):
    """See above; `reports` is kept for compare.py: the parts of an ablation, sizes that a scaling law is tested on."""

    def __init__(
        self,
        variants: DictConfig,
        baseline: str,
        seeds: ListConfig,
        why: str = "",
        only: ListConfig | None = None,
        equal_parameters: float | None = None,
        reports: DictConfig | None = None,
    ) -> None:
        self.variants = {str(name): plain(value) for name, value in _container(variants, "variants", dict).items()}
        self.baseline, self.why, self.equal_parameters = baseline, why, equal_parameters
        self.seeds = _container(seeds, "seeds", list)
        self.only = [str(name) for name in _container(only or [], "only", list)]
        self.reports = plain(_container(reports or {}, "reports", dict))

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.own_config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Everything is composed and checked before the first run starts."""
        self._check(arguments)
        folder = Path(str(self.own_config.hydra.sweep.dir))
        jobs = self._jobs(arguments, folder)
        configs = {job.name: self._composed(job) for job in jobs}
        self._check_sizes(arguments, jobs, configs)
        waiting = [job for job in jobs if not finished(folder / job.name, configs[job.name])]
        self._describe(folder, jobs, arguments)
        done = len(jobs) - len(waiting)
        console = Console()
        there = f", {done} of them finished already" if done else ""
        console.print(
            f"{len(self.variants)} variants x {len(self.seeds)} seeds: {len(jobs)} runs in {folder}{there}",
            soft_wrap=True,
        )
        failed = []
        if waiting:
            for job, result in zip(waiting, self.launcher.launch([j.overrides for j in waiting], 0), strict=True):
                if result.status is not JobStatus.COMPLETED:
                    failed.append(f"{job.name} ({_reason(result)})")
        if failed:
            console.print(f"not finished: {', '.join(failed)}; the same command tries them again", soft_wrap=True)
            sys.exit(1)
        console.print(f"\ntry next\n  {door_command('compare')} {shlex.quote(os.path.relpath(folder))}", soft_wrap=True)

    def _check(self, arguments: list[str]) -> None:
        """Raises UserError for a study that cannot be run as it is written."""
        if not self.variants or not self.seeds:
            raise UserError("a study needs hydra.sweeper.variants and hydra.sweeper.seeds: set both in its experiment")
        if unknown := [name for name in self.only if name not in self.variants]:
            raise UserError(f"hydra.sweeper.only={unknown[0]} is no variant: choose some of {', '.join(self.variants)}")
        if self.baseline not in self.variants:
            raise UserError(
                f"hydra.sweeper.baseline={self.baseline} is no variant: choose one of {', '.join(self.variants)}"
            )
        if not all(isinstance(seed, int) for seed in self.seeds):
            raise UserError(f"hydra.sweeper.seeds={self.seeds} must be whole numbers")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"hydra.sweeper.seeds={self.seeds} has a seed twice: that would be the same run")
        for name, value in self.variants.items():
            if not re.fullmatch(r"[\w.+-]+", name):
                raise UserError(f"variant {name!r} becomes a folder's name: use letters, digits, '.', '+', '_' and '-'")
            if not isinstance(value, dict) or set(value) - {"why", "set"} or "set" not in value:
                raise UserError(f"variant {name} must be {{why: TEXT, set: [KEY=VALUE, ...]}}")
        for override in OverridesParser.create().parse_overrides(arguments):
            key = override.get_key_element().lstrip("+~")
            if override.is_sweep_override():
                raise UserError(f"{override.input_line}: a study has its variants in its experiment: give one value")
            own = [n for n, v in self.variants.items() if any(_key(o) == key for o in v["set"])]
            if own or key == "trainer.seed":
                whose = f"variant {own[0]} sets it" if own else "hydra.sweeper.seeds does"
                raise UserError(f"{override.input_line} cannot be set for the whole study: {whose}")

    def _jobs(self, arguments: list[str], folder: Path) -> list[Job]:
        """Seed by seed, all variants of each; there and back, so that a steady drift favours none."""
        told = self._told(arguments)
        if not any(a.startswith("logger.group=") for a in told):
            told.append(f"logger.group={quoted(folder.name)}")
        chosen = [name for name in self.variants if not self.only or name in self.only]
        return [
            Job(
                name,
                seed,
                [
                    *told,
                    *self._set(name),
                    f"trainer.seed={seed}",
                    "resume=auto",
                    f"run_dir={quoted(str(folder))}",
                    f"hydra.sweep.subdir={name}-{seed}",
                ],
            )
            for turn, seed in enumerate(self.seeds)
            for name in (reversed(chosen) if turn % 2 else chosen)
        ]

    def _set(self, variant: str) -> list[str]:
        """What is its own."""
        return [forced(override) for override in self.variants[variant]["set"]]

    def _told(self, arguments: list[str]) -> list[str]:
        """What the command line says for all runs."""
        ours = ("run_dir=", "resume=", "hydra.", "hydra/")
        return [argument for argument in arguments if not argument.lstrip("+~").startswith(ours)]

    def _composed(self, job: Job) -> TrainConfig:
        try:
            config = self.context.config_loader.load_sweep_config(self.own_config, job.overrides)
            with open_dict(config):
                del config["hydra"]
                config.resume = None
            made = made_of(config)
            assert isinstance(made, TrainConfig)
            made.check()
        except (UserError, ValueError) as error:
            raise UserError(f"variant {job.variant}: {error}") from error
        return made

    def _check_sizes(self, arguments: list[str], jobs: list[Job], configs: dict[str, TrainConfig]) -> None:
        if self.equal_parameters is None:
            return
        baseline = self._composed(Job(self.baseline, 0, [*self._told(arguments), *self._set(self.baseline)]))
        wanted = parameter_count(baseline.model)
        for name, size in {job.variant: parameter_count(configs[job.name].model) for job in jobs}.items():
            if abs(size / wanted - 1) > self.equal_parameters:
                raise UserError(
                    f"variant {name} has {size:,} parameters and {self.baseline} {wanted:,}: make them equal to within "
                    f"{self.equal_parameters:.1%} (model.d_ff), or set hydra.sweeper.equal_parameters=null"
                )

    def _describe(self, folder: Path, jobs: Sequence[Job], arguments: list[str]) -> None:
        """study.yaml: what compare.py has to know. Variants of an earlier command on the same folder stay in it."""
        folder.mkdir(parents=True, exist_ok=True)
        before = read_study(folder)
        runs = {job.name: {"variant": job.variant, "seed": job.seed} for job in jobs}
        told = [o for o in self.own_config.hydra.overrides.hydra if not o.startswith("hydra.mode=")]
        command = shlex.join(["python", "train.py", *config_folders(), "-m", *arguments, *told])
        study = {
            "name": folder.name,
            "why": self.why,
            "commands": list(dict.fromkeys([*before.get("commands", []), command])),
            "baseline": self.baseline,
            "reports": self.reports,
            "variants": self.variants,
            "runs": {**before["runs"], **runs},
        }
        path = folder / STUDY_FILE
        replace_text(path, yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=120))


def finished(run: Path, config: TrainConfig) -> bool:
    """Whether a run has taken all its steps. Raises UserError where the folder holds a run with other settings."""
    if not (run / "config.yaml").is_file():
        return False
    texts = [f"another text of {name}" for name in changed_since(run, config.ideas)]
    if changed := told_changes(run, config) + texts:
        raise UserError(
            f"{run} holds a run with other settings ({'; '.join(changed[:5])}): choose another run_dir, or remove it"
        )
    lines = read_metrics(run / "metrics.jsonl")
    return bool(lines) and "final_loss" in lines[-1] and lines[-1]["step"] == config.total_steps


def _container(value: Any, key: str, kind: type) -> Any:
    """Plain, or a UserError for what is neither a list nor a dictionary."""
    made = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not isinstance(made, kind):
        form = "[A, B]" if kind is list else "{A: B}"
        raise UserError(f"hydra.sweeper.{key}={made!r} must be of the form {form}")
    return made


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _reason(result: Any) -> str:
    try:
        return str(result.return_value)
    except Exception as error:
        return next(iter(str(error).splitlines()), type(error).__name__)
