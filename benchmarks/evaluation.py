"""Evaluation wall time: ours against lm-evaluation-harness's own HFLM, same weights, same documents, same scores.

    python benchmarks/evaluation.py [--rounds 3] [--model gpt2_small] [--data-dir ../shared/data/eval]

Both are processes of their own, so that HFLM runs with the allocator it gets by default. HFLM's batch size is tuned
first, task by task, over --batch-sizes; then the two take turns. A turn is the harness's `evaluate` from building the
requests to the metrics, without the bootstrap of standard errors; weights are random, GPT-2 Small's shape by default.
The ratio of medians is printed last. Tasks and tokenizer come from ../shared/data where that is, else from the hub.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from contestants import Contestant, serve
from corpus import SHARED

from gptstar.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"lambada_openai": 1.5, "wikitext": 1.5, "hellaswag": 2.5}


def worker(name: str, folder: Path, data_dir: str, limits: dict[str, int]) -> None:
    """For every line on stdin, a task and HFLM's batch size, evaluates and prints seconds and metrics."""
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    if name != "hf":
        keep_freed_memory()  # before torch is imported
    from lm_eval.evaluator import evaluate

    from gptstar.evaluation.tasks import load_tasks

    if name.startswith("hf"):
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    else:
        import gptstar
        from gptstar.evaluation.harness import GPTStarLM

        lm = GPTStarLM(*gptstar.load(folder))
    tasks = {task.name: task.loaded for task in load_tasks(list(limits), data_dir or None)}
    samples = {task: _spread(len(tasks[task]["tasks"][task].eval_docs), limit) for task, limit in limits.items()}

    def answer(request: dict) -> dict:
        task = request["task"]
        if name.startswith("hf"):
            lm.batch_size_per_gpu = request["batch_size"]
        start = time.perf_counter()
        found = evaluate(lm, tasks[task], samples={task: samples[task]}, bootstrap_iters=0, log_samples=False)
        seconds = time.perf_counter() - start
        metrics = {key: value for key, value in found["results"][task].items() if key.endswith(",none")}
        return {"seconds": seconds, "metrics": {k: v for k, v in metrics.items() if not isinstance(v, str)}}

    serve(answer)


def _spread(total: int, n: int) -> list[int]:
    """n documents from all over the data: HellaSwag's first third are captions with short contexts."""
    return [place * total // n for place in range(min(n, total))]


def main() -> None:
    """The race and its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="gpt2_small", help="a preset in GPT-2's architecture")
    here = SHARED.is_dir()
    parser.add_argument("--data-dir", default=str(SHARED / "eval") if here else "", help="'': the hub")
    parser.add_argument("--tokenizer", default=str(SHARED / "tokenizers" / "gpt2") if here else "gpt2")
    parser.add_argument("--limits", type=json.loads, default={"lambada_openai": 100, "wikitext": 3, "hellaswag": 60})
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--same-allocator", action="store_true", help="HFLM with our allocator setting")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder, data_dir, limits = options.worker
        worker(name, Path(folder), data_dir, json.loads(limits))
        return
    import torch

    import gptstar
    from gptstar.configuration import preset
    from gptstar.data.tokenizer import load_tokenizer
    from gptstar.environment import commit, cpu_name

    revision = commit()  # of the code that runs, whatever is committed meanwhile
    torch.manual_seed(0)
    model = gptstar.GPT(preset(options.model, vocab_size=50257, init_std=0.1))
    with tempfile.TemporaryDirectory() as name:
        gptstar.export(model, load_tokenizer(options.tokenizer, "<|endoftext|>"), name + "/model")
        common = (f"{name}/model", options.data_dir, json.dumps(options.limits))
        hf = Contestant(__file__, "hf+kept" if options.same_allocator else "hf", *common)
        ours = Contestant(__file__, "ours", *common)
        print(f"{cpu_name()}, commit {revision}, {options.model}, {options.rounds} rounds")
        table = {task: race(task, hf, ours, options) for task in options.limits}
    for task, row in table.items():
        print(f"{task}: {row['ratio']:.2f} x HFLM (target {TARGETS.get(task, 1.0)} x)")
    if options.json:
        about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(about | {"model": options.model, "tasks": table}, indent=1))


def race(task: str, hf: Contestant, ours: Contestant, options: argparse.Namespace) -> dict:
    """One task: HFLM's best batch size, then turns."""
    ours.turn({"task": task})  # warms up
    tuning = {size: hf.turn({"task": task, "batch_size": size})["seconds"] for size in options.batch_sizes}
    best = min(tuning, key=tuning.__getitem__)
    seconds: dict[str, list[float]] = {"hf": [], "ours": []}
    for _ in range(options.rounds):
        theirs, mine = hf.turn({"task": task, "batch_size": best}), ours.turn({"task": task})
        seconds["hf"].append(theirs["seconds"])
        seconds["ours"].append(mine["seconds"])
    ratio = statistics.median(seconds["hf"]) / statistics.median(seconds["ours"])
    print(f"{task}, {options.limits[task]} documents")
    for name, title, found in (("hf", f"HFLM, batch size {best}", theirs), ("ours", "GPTStarLM", mine)):
        scores = ", ".join(f"{key.removesuffix(',none')} {value:.6g}" for key, value in found["metrics"].items())
        spread = f"{min(seconds[name]):.1f} - {max(seconds[name]):.1f}"
        print(f"  {title:20} {statistics.median(seconds[name]):6.1f} s ({spread})  {scores}", flush=True)
    metrics = {"hf": theirs["metrics"], "ours": mine["metrics"]}
    return {"batch_size": best, "tuning": tuning, "seconds": seconds, "metrics": metrics, "ratio": ratio}


if __name__ == "__main__":
    main()
