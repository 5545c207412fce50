"""Does a run survive kill -9? Kills one at random instants, half of them while a checkpoint is being written, resumes
it each time, and compares everything with a run that was left alone.

    python benchmarks/kill_resume.py [--kills 20] [--json FILE]

Compared bit for bit: weights, optimizer moments, random states, loss scale, counters, and every metrics line but its
timing. Prints the number of kills of each kind and ends with exit code 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from gptstar.data.config import DataConfig
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.environment import commit, cpu_name
from gptstar.model.config import ModelConfig
from gptstar.pretrained.native import list_checkpoints
from gptstar.training.config import TrainConfig, TrainerConfig
from gptstar.training.loop import train
from gptstar.training.metrics import TIMING_KEYS, read_metrics

STEPS = 40


def configuration(folder: Path) -> TrainConfig:
    """Forty short steps over a corpus of invented text, a checkpoint every other step."""
    words = random.Random(0)
    for i in range(20):
        text = " ".join("".join(words.choices("abcdef", k=4)) for _ in range(400))
        (folder / f"{i}.txt").write_text(text)
    model = ModelConfig(
        vocab_size=300, n_layer=2, d_model=64, n_head=2, d_ff=256, context=64, block="parallel_shared", position="alibi"
    )
    return TrainConfig(
        model=model,
        data=DataConfig(corpus="text_files", paths=[f"{folder}/*.txt"], cache_dir=f"{folder}/cache"),
        tokenizer=TokenizerConfig(vocab_size=300),
        trainer=TrainerConfig(
            device="cpu",
            batch_size=8,
            max_steps=STEPS,
            eval_every=10,
            eval_tokens=512,
            checkpoint_every=2,
            peak_flops=1e11,
        ),
        run_dir=str(folder / "killed"),
    )


def start(config: TrainConfig) -> int:
    """The run in a process of its own, continued if there is something to continue from; its process number.

    A fork of this process, which has imported everything but computed nothing, so it starts in milliseconds.
    """
    if child := os.fork():
        return child
    code = 1
    try:
        run = Path(config.run_dir)
        if list_checkpoints(run):
            config = replace(config, resume=config.run_dir)
        elif run.exists():  # killed before its first checkpoint
            os.rename(run, f"{run}-{time.monotonic_ns()}")
        train(config)
        code = 0
    finally:
        os._exit(code)


def kill_at_random(config: TrainConfig, rng: random.Random, in_checkpoint: bool, longest: float) -> bool | None:
    """One life of the run. True: killed with a checkpoint half written; False: at another instant; None: it ended."""
    child = start(config)
    deadline = time.monotonic() + rng.uniform(0.05, longest)
    checkpoints = Path(config.run_dir) / "checkpoints"
    while True:
        if os.waitpid(child, os.WNOHANG)[0]:
            return None
        now = time.monotonic() > deadline
        if now and (not in_checkpoint or any(checkpoints.glob(".step-*.part"))):
            if in_checkpoint:
                time.sleep(rng.uniform(0, 0.004))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return any(checkpoints.glob(".step-*.part"))
        time.sleep(0.0002)


def same(a, b) -> bool:
    """Equality of nested state, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(one: Path, two: Path) -> list[str]:
    """What is not identical between two finished runs."""
    found = []
    folders = [list_checkpoints(run) for run in (one, two)]
    if [p.name for p in folders[0]] != [p.name for p in folders[1]]:
        return [f"checkpoints {folders}"]
    for a, b in zip(*folders, strict=True):
        if not same(load_file(a / "model.safetensors"), load_file(b / "model.safetensors")):
            found.append(f"{a.name}: weights")
        states = [torch.load(p / "training" / "state.pt", weights_only=True) for p in (a, b)]
        found += [f"{a.name}: {key}" for key in states[0] if not same(states[0][key], states[1][key])]
        if (a / "training" / "progress.json").read_text() != (b / "training" / "progress.json").read_text():
            found.append(f"{a.name}: progress")
    lines = [
        [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in read_metrics(run / "metrics.jsonl")]
        for run in (one, two)
    ]
    if lines[0] != lines[1]:
        found.append("metrics.jsonl")
    return found


def main() -> int:
    """Kills, resumes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    rng, revision = random.Random(options.seed), commit()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = configuration(folder)
        prepare(config.data, config.tokenizer)
        whole = replace(config, run_dir=str(folder / "whole"))
        began = time.monotonic()
        if os.waitpid(start(whole), 0)[1]:
            print("the undisturbed run failed")
            return 1
        longest = (time.monotonic() - began) / 3
        kills = {True: 0, False: 0}
        finished = 0
        while sum(kills.values()) < options.kills:
            outcome = kill_at_random(config, rng, in_checkpoint=sum(kills.values()) % 2 == 0, longest=longest)
            if outcome is None:  # it reached the end first: compare, and start another
                finished += 1
                if found := differences(Path(config.run_dir), Path(whole.run_dir)):
                    print(f"after {sum(kills.values())} kills: {', '.join(found)} differ")
                    return 1
                os.rename(config.run_dir, folder / f"finished-{finished}")
            else:
                kills[outcome] += 1
        failed = os.waitpid(start(config), 0)[1]
        found = ["the resumed run failed"] if failed else differences(Path(config.run_dir), Path(whole.run_dir))
        print(
            f"{sum(kills.values())} kills (-9), {kills[True]} of them while a checkpoint was being written; "
            f"{finished + 1} runs finished; {'identical' if not found else 'DIFFERENT: ' + ', '.join(found)}"
        )
        if options.json:
            about = {"command": "python " + " ".join(sys.argv), "cpu": cpu_name(), "commit": revision}
            result = {"kills": options.kills, "while_saving": kills[True], "identical": not found}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(about | result, indent=1) + "\n")
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
