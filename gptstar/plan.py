"""train.py plan=true, or python -m gptstar.plan: what a run would take on a machine, before anything runs.

After a run, beside what it took.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from gptstar.configuration import config_directory, run_door
from gptstar.errors import EXIT_BAD_INPUT, UserError, complain
from gptstar.files import replace_text
from gptstar.lab.planning.hardware import Hardware, measured
from gptstar.lab.planning.plan import Plan, plan
from gptstar.lab.planning.plan_text import Sheet, markdown, show
from gptstar.pretrained.native import find_run
from gptstar.training.config import TrainConfig
from gptstar.training.metrics import read_metrics

EXIT_DOES_NOT_FIT = 1


@dataclass
class PlanConfig(TrainConfig):
    """A run and the machine it is planned for; none of this goes into a run's own configuration.

    hardware  the machine (configs/hardware, `gptstar/lab/planning/hardware.py`)
    mfu       assumed share of the peak, instead of the roofline's
    output    a folder for plan.md and plan.json
    """

    hardware: Hardware = field(default_factory=Hardware)
    mfu: float | None = None
    output: str | None = None


def plan_or_train(main: Callable[[TrainConfig], None]) -> None:
    """What a command line with plan=... asks for; main: what trains."""
    try:
        arguments = plan_arguments(sys.argv[1:])
    except UserError as error:
        complain(error)
        sys.exit(EXIT_BAD_INPUT)
    if arguments is None:
        sys.argv[1:] = [argument for argument in sys.argv[1:] if not argument.startswith("plan=")]
        run_door("train", TrainConfig, main)
    else:
        sys.argv[1:] = arguments
        run_door("train", PlanConfig, lambda config: print_plan(config, Console()))


def plan_arguments(arguments: Sequence[str]) -> list[str] | None:
    """The command line of a plan as Hydra is to see it; None for plan=false. Raises UserError for a sweep."""
    said = [argument for argument in arguments if argument.startswith("plan=")]
    kept = [argument for argument in arguments if argument not in said]
    value = said[-1].partition("=")[2].lower()
    if value not in ("true", "false"):
        raise UserError(f"{said[-1]} is neither plan=true nor plan=false: choose one of them")
    if value == "false":
        return None
    if {"-m", "--multirun"} & {*arguments}:
        raise UserError("plan=true plans one run: leave -m out, and plan each run of the sweep by itself")
    # A group that training does not have; in quotes, because 3090 is a number otherwise.
    kept = [f"+hardware='{a.partition('=')[2]}'" if a.startswith("hardware=") else a for a in kept]
    return [*kept, "hydra.run.dir=."]  # nothing is run, so no folder is made


def load_hardware(name: str, **changes: Any) -> Hardware:
    """The machine of configs/hardware/NAME.yaml, with some fields changed. UserError for an unknown name."""
    folder = config_directory() / "hardware"
    if name not in hardware_names():
        raise UserError(f"hardware={name} is unknown: choose one of {', '.join(hardware_names())}")
    own = OmegaConf.load(folder / f"{name}.yaml")
    assert isinstance(own, DictConfig)
    bases = [base for base in own.pop("defaults", []) if base != "_self_"]
    parts = [OmegaConf.load(folder / f"{base}.yaml") for base in bases]
    if deeper := [base for base, part in zip(bases, parts, strict=True) if "defaults" in part]:
        raise UserError(
            f"hardware={name} is made of {deeper[0]}, which has defaults of its own: name in {folder}/{name}.yaml what "
            f"{deeper[0]} is made of"
        )
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Hardware), *parts, own, changes))
    assert isinstance(made, Hardware)
    return made


def data_sheets() -> list[Hardware]:
    """The machines of configs/hardware but the one at hand."""
    return [load_hardware(name) for name in hardware_names() if name != "this"]


def hardware_names() -> list[str]:
    """What hardware= can be."""
    return sorted(path.stem for path in (config_directory() / "hardware").glob("*.yaml"))


def print_plan(config: PlanConfig, console: Console) -> None:
    """Prints it, and writes what `output` asks for. Ends the process with EXIT_DOES_NOT_FIT where it does not.

    Raises UserError for what cannot be planned.
    """
    run = find_run(config.resume) if config.resume else None
    training = TrainConfig(**{each.name: getattr(config, each.name) for each in fields(TrainConfig)})
    hardware = measured(config.hardware, config.trainer.precision, config.optimizer.name, data_sheets())
    found = plan(training, hardware, mfu=config.mfu)
    more = [] if run is None else [beside(found, read_metrics(run / "metrics.jsonl"), str(run))]
    show(found, console, more)
    if config.output:
        folder = Path(config.output).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / "plan.md", markdown(found, more))
            found.write(folder / "plan.json")
        except OSError as error:
            raise UserError(f"output={folder} cannot be written ({error.strerror or error}): choose another") from error
    if not found.fits:
        sys.exit(EXIT_DOES_NOT_FIT)


def _memory(lines: list[dict]) -> float:
    """GiB, the largest before the first validation."""
    first = next((i for i, line in enumerate(lines) if "validation_loss" in line), len(lines))
    return max((line.get("memory_gib") or 0.0 for line in lines[: first or None]), default=0.0)


def beside(planned: Plan, lines: list[dict], run: str) -> Sheet:
    """Measured of a run, medians over all but its first steps, beside what was planned. UserError without steps.

    MFU is the measured rate's, of the peak that was planned with. Memory is that before the first validation: nothing
    else is planned, and on a CPU it is never less afterwards. On a GPU a run reports that of its tensors alone.
    """
    steps = [line for line in lines if "seconds" in line and line.get("tokens_per_second")]
    if not steps:
        raise UserError(f"resume={run} has no steps in metrics.jsonl: plan without resume=, or train it first")
    settled = steps[min(3, len(steps) - 1) :]
    rate = statistics.median(line["tokens_per_second"] for line in settled)
    seconds = sum(line["seconds"] for line in steps)
    tokens = steps[-1]["tokens"]
    mfu = rate * planned.flops_per_token / planned.peak_flops
    memory = planned.needed - (planned.memory["libraries"] if planned.device == "cuda" else 0)
    rows = [
        ("tokens/s", planned.tokens_per_second, rate, "{:,.0f}"),
        ("MFU", planned.mfu, mfu, "{:.1%}"),
        (f"hours for {tokens:,} tokens", tokens / planned.tokens_per_second / 3600, seconds / 3600, "{:,.3g}"),
        ("memory of a step, GiB", memory / 2**30, _memory(lines), "{:,.2f}"),
    ]
    table: list[tuple[str, ...]] = [(name, form.format(a), form.format(b), f"{b / a:.2f}") for name, a, b, form in rows]
    return Sheet(f"measured in {run}", ("", "planned", "measured", "measured / planned"), table)


if __name__ == "__main__":
    sys.argv.append("plan=true")
    plan_or_train(lambda config: None)
