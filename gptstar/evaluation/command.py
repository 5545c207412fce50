"""What `evaluate.py` does: tasks of lm-evaluation-harness, and the loss on a run's held-out text."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import DTYPES, pick_precision
from gptstar.errors import UserError, reason
from gptstar.evaluation.budget import token_budget
from gptstar.evaluation.checkpoint import context_length, load_for_evaluation
from gptstar.evaluation.held_out import checkpoint_of_run, held_out_losses, open_held_out
from gptstar.evaluation.provenance import about, evaluation_folder
from gptstar.evaluation.report import write_markdown
from gptstar.evaluation.results import read_results, write_results
from gptstar.evaluation.store import RequestStore, fingerprint
from gptstar.files import make_folder
from gptstar.hub import offline_without_network
from gptstar.model.transformer import GPT
from gptstar.offload.load import Limits
from gptstar.pretrained.load import load_config
from gptstar.quantization.quantize import KINDS

if TYPE_CHECKING:
    from gptstar.evaluation.tasks import LoadedTask

Job = Callable[[], list[dict]]  # measures, and returns rows
HELD_OUT = "held_out"  # not the harness's: the loss on the run's own validation text
DEFAULT_TASKS = ["lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande"]


@dataclass
class EvaluateConfig:
    """What is measured, and how.

    checkpoint    what gptstar.load takes: a run folder, RUN/best, a transformers folder, a hub name, ...
    tasks         names of lm-evaluation-harness (also of its groups), and held_out: the loss on the run's own
                  validation text
    data_dir      a folder with TASK.jsonl files; null: the Hugging Face hub
    output_dir    where results.json goes, and requests that are finished; null: RUN/evaluation, or
                  evaluations/NAME for what is no run
    limit         documents a task, or below 1 their share; null: all
    num_fewshot   examples in front of each question; null: what the task says
    max_length    tokens the model reads at once; null: its own context
    batch_tokens  tokens a forward pass; auto: what memory holds and the device is fast at
    dtype         auto (as saved), fp32, bf16, fp16, int8 or int4
    memory_budget, gpu_memory_budget, quantized_dir  as `sample.py` takes them
    """

    checkpoint: str = "???"  # must be given
    tasks: list[str] = field(default_factory=lambda: list(DEFAULT_TASKS))
    data_dir: str | None = None
    output_dir: str | None = None
    limit: float | None = None
    num_fewshot: int | None = None
    max_length: int | None = None
    batch_tokens: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    memory_budget: str | None = None
    gpu_memory_budget: str | None = None
    quantized_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty: name at least one")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit={self.limit} must be above 0, or null for all documents")
        for key in ("limit", "num_fewshot"):
            if getattr(self, key) is not None and {*self.tasks} == {HELD_OUT}:
                raise ValueError(
                    f"{key}={getattr(self, key)} is of tasks with documents, not of {HELD_OUT}: leave it out"
                )
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot={self.num_fewshot} must not be negative")
        if self.dtype not in ("auto", *DTYPES, *KINDS):
            raise ValueError(f"dtype={self.dtype!r} is unknown: choose one of auto, fp32, bf16, fp16, int8, int4")


@dataclass(frozen=True)
class Evaluation:
    """rows: of results.json (`results.py`), in the order they were measured. failed: {task: what went wrong}."""

    rows: list[dict]
    failed: dict[str, str]


def evaluate(config: EvaluateConfig, console: Console | None = None) -> Evaluation:
    """Measures one task after the other, each on disk as soon as it is done.

    A task that fails leaves its traceback in the output folder, and the others go on. Raises UserError, before
    anything is measured, for what cannot be: an unknown task, missing or damaged data, a context too long.
    """
    folder = Path(config.output_dir).expanduser() if config.output_dir else evaluation_folder(config.checkpoint)
    read_results(folder / "results.json")  # refuses one it could not add to
    tasks = _load_tasks(config)
    load_config(config.checkpoint)  # refuses what is no model, for which no folder is to be made
    if HELD_OUT in config.tasks:
        checkpoint_of_run(config.checkpoint)
    make_folder(folder)
    limits = Limits(config.memory_budget, config.gpu_memory_budget, config.quantized_dir)
    model, tokenizer = load_for_evaluation(
        config.checkpoint, config.device, config.dtype, limits, config.batch_tokens, config.max_length
    )
    length = context_length(model, config.max_length)
    weights = fingerprint(model, tokenizer, max_length=length, device=model.device.type)
    jobs: dict[str, Job] = {}
    if HELD_OUT in config.tasks:
        jobs[HELD_OUT] = _held_out_job(config, model, tokenizer)
    if tasks:
        from gptstar.evaluation.harness import GPTStarLM
        from gptstar.evaluation.run import run_task

        lm = GPTStarLM(model, tokenizer, length, config.batch_tokens, console=console)
        lm.store = RequestStore(folder / f"requests-{weights[:12]}.jsonl")
        jobs |= {task.name: partial(run_task, lm, task, config.limit) for task in tasks}
    origin = {**about(config.checkpoint, model), "harness": version("lm_eval"), "fingerprint": weights}
    rows: list[dict] = []
    failed: dict[str, str] = {}
    for name in dict.fromkeys(config.tasks):
        try:
            measured = [{**row, **origin, "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"} for row in jobs[name]()]
        except Exception as error:  # tasks are other people's code
            failed[name] = _note_failure(folder, name, error)
            continue
        write_results(folder / "results.json", measured)
        write_markdown(folder / "results.json")
        rows += measured
        if console is not None:
            for row in measured:
                console.print(describe(row), highlight=False, markup=False, soft_wrap=True)
    return Evaluation(rows, failed)


def _load_tasks(config: EvaluateConfig) -> list[LoadedTask]:
    names = [name for name in dict.fromkeys(config.tasks) if name != HELD_OUT]
    if not names:
        return []
    from gptstar.evaluation.tasks import load_tasks  # the harness is slow to import, and not always needed

    if config.data_dir is None:
        offline_without_network()
    return load_tasks(names, config.data_dir, config.num_fewshot)


def _held_out_job(config: EvaluateConfig, model: GPT, tokenizer: Tokenizer) -> Job:
    streams, length, loss = open_held_out(config.checkpoint, model, tokenizer, config.max_length)
    device = model.device
    batch = 8 if config.batch_tokens == "auto" else max(1, token_budget(config.batch_tokens, model) // length)
    precision = pick_precision("auto", device) if config.dtype == "auto" else "fp32"  # auto: as in training

    def job() -> list[dict]:
        start = time.perf_counter()
        found, each = held_out_losses(loss, streams, length, batch, device, precision)
        values = {"loss": found.loss, "bits_per_byte": found.bits_per_byte}
        if len(each) > 1:
            values |= {f"loss/{name}": of_corpus.loss for name, of_corpus in each.items()}
        metrics = {name: {"value": value, "stderr": None, "higher_is_better": False} for name, value in values.items()}
        row = {"task": HELD_OUT, "metrics": metrics, "tokens": found.tokens, "max_length": length}
        return [{**row, "seconds": round(time.perf_counter() - start, 3)}]

    return job


def _note_failure(folder: Path, name: str, error: Exception) -> str:
    path = folder / f"{name.replace('/', '_')}.error.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    said = reason(error)
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said} (traceback in {path})"


def describe(row: dict) -> str:
    """One line: task, value and standard error of each metric, how many documents, how long."""
    parts = []
    for name, metric in row["metrics"].items():
        error = "" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}"
        parts.append(f"{name} {metric['value']:.4f}{error}")
    size = f"{row['documents']:,} documents" if row.get("documents") else f"{row.get('tokens', 0):,} tokens"
    return f"{row['task']}: {', '.join(parts)} ({size}, {row['seconds']:.0f} s)"
