"""Every table of names, and the setting that chooses from it; what a run's ideas add to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptstar.ideas import module_of
from gptstar.model import choices
from gptstar.training.config import TrainConfig
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.schedules import SCHEDULES

TABLES: dict[str, dict[str, Any]] = {**choices.TABLES, "optimizer.name": OPTIMIZERS, "schedule.name": SCHEDULES}


def unused_ideas(config: TrainConfig) -> Iterator[str]:
    """A remark for each file that `ideas` names and of which the run uses nothing; one that adds no name may change
    something else.
    """
    used = [*choices.chosen(config.model), OPTIMIZERS[config.optimizer.name], SCHEDULES[config.schedule.name]]
    for file in config.ideas:
        module = module_of(Path(file))
        added = [f"{key}={name}" for key, table in TABLES.items() for name in table if _home(table[name]) == module]
        if added and module not in map(_home, used):
            yield f"{Path(file).name} adds {', '.join(added)}, and this run uses none of it"


def _home(thing: object) -> str | None:
    return getattr(thing, "__module__", None)
