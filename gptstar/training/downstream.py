"""`trainer.eval_tasks`: tasks of lm-evaluation-harness on the model as it trains, logged beside the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gptstar.data.tokenizer import Tokenizer
from gptstar.hub import offline_without_network
from gptstar.model.transformer import GPT
from gptstar.training.config import TrainerConfig

if TYPE_CHECKING:
    from gptstar.evaluation.tasks import LoadedTask


def load_downstream(options: TrainerConfig) -> list[LoadedTask]:
    """The tasks with their data. Raises UserError for an unknown name and for data that is missing or damaged."""
    if not options.eval_tasks:
        return []
    from gptstar.evaluation.tasks import load_tasks  # the harness is slow to import, and not always needed

    if options.eval_tasks_dir is None:
        offline_without_network()
    return load_tasks(list(dict.fromkeys(options.eval_tasks)), options.eval_tasks_dir)


def measure_downstream(model: GPT, tokenizer: Tokenizer, task: LoadedTask, limit: float | None) -> dict[str, float]:
    """{"TASK/METRIC": value} on the task's first `limit` documents, in the precision of the weights.

    The numbers that `evaluate.py limit=...` gives for a checkpoint of this step; those that are not finite are left
    out. Random states are left as found. Raises whatever the task's own code raises.
    """
    from gptstar.evaluation.harness import GPTStarLM
    from gptstar.evaluation.run import run_task

    rows = run_task(GPTStarLM(model, tokenizer), task, limit)
    found = {f"{row['task']}/{name}": metric["value"] for row in rows for name, metric in row["metrics"].items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)}
