"""The five default tasks by our adapter and by lm-evaluation-harness's own HFLM: the same weights, the same numbers?

    python benchmarks/hflm_equality.py [--documents 200] [--tasks piqa ...] [--json FILE]

Three random models (the shapes of GPT-2, GPT-Neo with a local window, and GPT* through its export with a modelling
file) with GPT-2's vocabulary, made by transformers where it has the architecture. Every log-likelihood of every
document is compared, every greedy flag and every metric; WikiText has all its pages whatever --documents says. HFLM
sums in float64 here (softmax_dtype), as ours always does: in fp32 the sum alone is off by more than the models are.
WikiText's pages are compared with models in float64: a page is thousands of tokens and some 60,000 nats, and in fp32
the rounding of two ways to multiply matrices adds up to 1.6e-4 of them. Where transformers computes in fp32 whatever
the model's dtype is (GPT-Neo's attention), it is made to use float64 there: `Wide`.
The largest differences are printed; the exit status is 1 where a log-likelihood is off by more than 1e-4 or an accuracy
by anything at all.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from corpus import SHARED

from gptstar.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4  # nats, of a log-likelihood
EXACT = ("acc", "acc_norm")
LONG = ("wikitext",)  # in float64, and all documents


class Wide:
    """torch, as a module of transformers sees it, with float64 in the place of fp32."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, "float64" if name == "float32" else name)


def make_model(kind: str, folder: Path, tokenizer: Any) -> None:
    """Random weights and a tokenizer in transformers' layout."""
    import gptstar
    from gptstar.configuration import preset

    if kind == "gptstar":
        model = gptstar.GPT(preset("star_3m", vocab_size=50257, context=1024, init_std=0.1))
        gptstar.export(model, tokenizer, folder)
        return
    import transformers

    common: Any = {"vocab_size": 50257, "initializer_range": 0.1}
    if kind == "gpt2":
        shape: Any = transformers.GPT2Config(n_embd=96, n_layer=3, n_head=4, n_positions=1024, **common)
        theirs: Any = transformers.GPT2LMHeadModel(shape)
    else:
        layers = [[["global", "local"], 2]]
        sizes: Any = {"hidden_size": 96, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 1024}
        shape = transformers.GPTNeoConfig(**sizes, attention_types=layers, window_size=128, **common)
        theirs = transformers.GPTNeoForCausalLM(shape)
    theirs.save_pretrained(folder)
    tokenizer.save(folder / "tokenizer.json")
    special = {"eos_token": tokenizer.eot_token, "bos_token": tokenizer.eot_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def answers(lm: Any, task: Any, limit: int | None) -> tuple[dict[str, float], list, float]:
    """Metrics, what the model answered to every request, and seconds."""
    from lm_eval.evaluator import evaluate

    start = time.perf_counter()
    found = evaluate(lm, task.loaded, limit=limit, bootstrap_iters=0)
    metrics = {k: v for k, v in found["results"][task.name].items() if isinstance(v, float) and "stderr" not in k}
    responses = [[r[0] for r in sample["resps"]] for sample in found["samples"][task.name]]
    return metrics, responses, time.perf_counter() - start


def compare(theirs: tuple, ours: tuple) -> dict:
    """The largest differences between two evaluations of a task."""
    values: list[tuple[float, float]] = []
    flags = 0
    for a, b in zip(theirs[1], ours[1], strict=True):
        for x, y in zip(a, b, strict=True):
            if isinstance(x, float):
                values.append((x, y))
            else:
                values.append((x[0], y[0]))
                flags += x[1] != y[1]
    metrics = {k.removesuffix(",none"): (value, ours[0][k]) for k, value in theirs[0].items()}
    return {
        "documents": len(ours[1]),
        "requests": len(values),
        "largest_difference": max(abs(x - y) for x, y in values),
        "greedy_flags_that_differ": flags,
        "metrics": {k: {"hflm": x, "ours": y} for k, (x, y) in metrics.items()},
        "same": all(abs(x - y) <= TOLERANCE for x, y in values)
        and not flags
        and all(x == y for k, (x, y) in metrics.items() if k in EXACT),
        "seconds": {"hflm": round(theirs[2], 1), "ours": round(ours[2], 1)},
    }


def main() -> None:
    """All models, all tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = SHARED.is_dir()
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=["gpt2", "gpt_neo", "gptstar"])
    parser.add_argument("--tasks", nargs="+", help="default: all five")
    parser.add_argument("--data-dir", default=str(SHARED / "eval") if here else "", help="'': the hub")
    parser.add_argument("--tokenizer", default=str(SHARED / "tokenizers" / "gpt2") if here else "gpt2")
    parser.add_argument("--json", type=Path, help="also write the results here, beside other models' that are there")
    options = parser.parse_args()
    keep_freed_memory()  # before torch is imported: HFLM's logits of a batch are gigabytes
    os.environ |= {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import gptstar
    from gptstar.data.tokenizer import load_tokenizer
    from gptstar.environment import commit, cpu_name
    from gptstar.evaluation.command import DEFAULT_TASKS
    from gptstar.evaluation.harness import GPTStarLM
    from gptstar.evaluation.tasks import load_tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    revision, tokenizer = commit(), load_tokenizer(options.tokenizer, "<|endoftext|>")
    tasks = load_tasks(options.tasks or DEFAULT_TASKS, options.data_dir or None)
    table: dict[str, dict[str, dict]] = {}
    for kind in options.models:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as name, torch.inference_mode():
            folder = Path(name) / "model"
            make_model(kind, folder, tokenizer)
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
            fast = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            hflm = HFLM(pretrained=model, tokenizer=fast, batch_size=2, softmax_dtype="float64")
            ours = GPTStarLM(*gptstar.load(folder))
            for task in sorted(tasks, key=lambda task: task.name in LONG):
                limit = options.documents
                if task.name in LONG:
                    limit, ours = None, GPTStarLM(ours.model.double(), tokenizer)
                    model.double()
                theirs = sys.modules[type(model).__module__]
                with patch.object(theirs, "torch", Wide() if task.name in LONG else torch, create=True):
                    reference = answers(hflm, task, limit)
                row = compare(reference, answers(ours, task, limit))
                table.setdefault(kind, {})[task.name] = row
                precision = "float64" if task.name in LONG else "fp32"
                print(
                    f"{kind:8} {task.name:14} {row['documents']:4} documents {row['requests']:5} log-likelihoods, "
                    f"{precision}, largest difference {row['largest_difference']:.1e}, greedy flags that differ "
                    f"{row['greedy_flags_that_differ']}: {'same' if row['same'] else 'DIFFERENT'}",
                    flush=True,
                )
    same = all(row["same"] for rows in table.values() for row in rows.values())
    if options.json:
        about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
        known = json.loads(options.json.read_text())["models"] if options.json.is_file() else {}
        known |= {kind: about | {"tasks": rows} for kind, rows in table.items()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"tolerance": TOLERANCE, "models": known}, indent=1) + "\n")
    print("every metric of every task is HFLM's" if same else "NOT the same")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
