"""One task of the harness on one model -> rows of results.json."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lm_eval.evaluator import evaluate

from gptstar.evaluation.bootstrap import fast_bootstrap
from gptstar.evaluation.harness import GPTStarLM
from gptstar.evaluation.results import harness_metrics
from gptstar.evaluation.tasks import FEWSHOT_SEED, LoadedTask


def run_task(lm: GPTStarLM, task: LoadedTask, limit: float | None = None) -> list[dict]:
    """What a task decides of its row; of several, where it is a group. Raises whatever the task's own code raises.

    limit: how many documents of each task, or below 1 which share of them; None: all.
    """
    start, reused = time.perf_counter(), lm.reused
    for leaf in task.loaded["tasks"].values():
        leaf.set_fewshot_seed(FEWSHOT_SEED)  # each time: the generator goes on from one evaluation to the next
    with harness_seeds(), fast_bootstrap():
        found = evaluate(lm, task.loaded, limit=limit, log_samples=False)
    seconds = round(time.perf_counter() - start, 3)
    n_request = sum(len(leaf.instances) * leaf.config.repeats for leaf in task.loaded["tasks"].values())
    rows = []
    for name, values in found["results"].items():
        size = found["n-samples"].get(name, {})
        rows.append(
            {
                "task": name,
                "part_of": task.name if name != task.name else None,
                "metrics": harness_metrics(values, found["higher_is_better"].get(name, {})),
                "documents": values.get("sample_len", size.get("effective")),
                "of": size.get("original"),
                "task_version": found["versions"].get(name),
                "num_fewshot": found["n-shot"].get(name),
                "limit": int(limit) if limit and limit >= 1 else limit,
                "files": task.files,
                "max_length": lm.max_length,
                "batch_tokens": lm.scorer.budget,
                "seconds": seconds,
                "requests": n_request,
                "requests_reused": lm.reused - reused,
            }
        )
    return [row for row in rows if row["metrics"]]


@contextmanager
def harness_seeds() -> Iterator[None]:
    """The harness's own seeds, so that what tasks draw is what they draw there; afterwards all is as before."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(1234)  # noqa: NPY002
        torch.manual_seed(1234)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(arrays)  # noqa: NPY002
