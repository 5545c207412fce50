"""Throughput of variants, measured in turns: speed.json.

A machine is never as fast twice: neighbours, heat, clocks. So each variant is a process of its own that takes a few
steps when asked, and all are asked in turn, round after round, beside a matrix product that tells what the machine
could do in that round. A step is the trainer's: forward and backward in microbatches, clipping, the optimizer; on
made-up tokens, for reading them takes no time beside it (benchmarks/loader.py).

    python -m gptstar.lab.speed RUN/config.yaml     such a process
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from gptstar.errors import UserError
from gptstar.files import replace_text

if TYPE_CHECKING:
    import torch

SPEED_FILE = "speed.json"


@dataclass(frozen=True)
class Measured:
    """Of one variant, a value a round. tokens_per_second; mfu: by that round's matmul peak; memory_gib: the largest."""

    tokens_per_second: list[float]
    mfu: list[float]
    memory_gib: float


@dataclass(frozen=True)
class Speeds:
    """variants: by name; settings: the digests of their configurations, for which alone this holds.

    hardware, commit, rounds, steps (a round): how it was measured
    """

    hardware: str
    commit: str | None
    rounds: int
    steps: int
    variants: dict[str, Measured] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


def measure(configs: dict[str, Path], rounds: int, steps: int, told: Callable[[str], None]) -> Speeds:
    """Rounds of all variants in turn. configs: {variant: the config.yaml of one of its runs}; told: of each round."""
    from gptstar.environment import commit

    revision = commit()  # of the code that runs, whatever is committed meanwhile
    workers: dict[str, _Worker] = {}
    try:
        for name, path in configs.items():
            workers[name] = _Worker(name, path)
        for worker in workers.values():
            worker.ask("2")  # warms up
        found: dict[str, list[dict]] = {name: [] for name in configs}
        for number in range(rounds):
            order = list(workers.items())
            if number % 2:  # there and back, so that a drift within a round favours nobody
                order.reverse()
            for name, worker in order:
                found[name].append(worker.ask(str(steps)))
            peak = statistics.median(one["peak"] for one in (f[-1] for f in found.values()))
            for rows in found.values():
                rows[-1]["mfu"] = rows[-1]["tokens_per_second"] * rows[-1]["flops_per_token"] / peak
            told(
                f"round {number + 1} of {rounds}: "
                + ", ".join(f"{n} {f[-1]['tokens_per_second']:,.0f}" for n, f in found.items())
            )
    finally:
        for worker in workers.values():
            worker.close()
    variants = {
        name: Measured(
            [round(row["tokens_per_second"], 1) for row in rows],
            [round(row["mfu"], 4) for row in rows],
            rows[-1]["memory_gib"],
        )
        for name, rows in found.items()
    }
    hardware = next(iter(found.values()))[0]["hardware"]
    return Speeds(hardware, revision, rounds, steps, variants)


def write_speeds(speeds: Speeds, folder: Path) -> None:
    """speed.json in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / SPEED_FILE, json.dumps(asdict(speeds), indent=1) + "\n")


def read_speeds(folder: Path) -> Speeds | None:
    """What `write_speeds` has left there; None: nothing. Raises UserError where it cannot be read."""
    path = folder / SPEED_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        variants = {name: Measured(**one) for name, one in values.pop("variants").items()}
        return Speeds(**values, variants=variants)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): measure again with measure=8, or remove it") from error


class _Worker:
    """A variant's process."""

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        command = [sys.executable, "-m", "gptstar.lab.speed", str(config)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> dict:
        """What it answers: one JSON object."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            raise UserError(f"{self.name} could not be measured: its process ended with code {code} (see above)")
        return json.loads(answer)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()


def _work(path: Path) -> None:
    """Reads from stdin how many steps to take and answers with their speed."""
    from gptstar.allocator import keep_freed_memory

    keep_freed_memory()  # before torch is imported
    import torch

    from gptstar.environment import cpu_name
    from gptstar.training.throughput import measure_matmul_peak, peak_flops, peak_gib

    step, device, n_token, flops = _step_of(yaml.safe_load(path.read_text()), path.parent)
    on_cuda = device.type == "cuda"
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            step()
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - began
        answer = {
            "tokens_per_second": int(line) * n_token / seconds,
            "flops_per_token": flops,
            "memory_gib": round(peak_gib(device), 3),
            "peak": (on_cuda and peak_flops(device)) or measure_matmul_peak(device, size=1536, repeats=2),
            "hardware": torch.cuda.get_device_name(device)
            if on_cuda
            else f"{cpu_name()}, {torch.get_num_threads()} threads",
        }
        print(json.dumps(answer), flush=True)


def _step_of(values: dict, folder: Path) -> tuple[Callable[[], None], torch.device, int, int]:
    """A step of a run's configuration, with its own ideas, its device, and the tokens and FLOPs a token of it."""
    import torch
    from omegaconf import OmegaConf

    from gptstar.device import autocast, pick_device, pick_precision
    from gptstar.ideas import use_those_of
    from gptstar.model.describe import flops_per_token
    from gptstar.model.matmul import fast_gradients
    from gptstar.model.transformer import GPT
    from gptstar.training.config import TrainConfig
    from gptstar.training.optimizers import build_optimizer, set_learning_rate

    use_those_of(folder)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), values))
    assert isinstance(config, TrainConfig)
    options, length = config.trainer, config.sequence_length
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    torch.manual_seed(options.seed)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    model = GPT(config.model).to(device)
    model.recomputed, model.attention_kernel = options.recompute, options.attention
    compiled = options.compile if options.compile is not None else device.type == "cuda"
    run = torch.compile(model, dynamic=False) if compiled else model
    optimizer = build_optimizer(model, config.optimizer)
    set_learning_rate(optimizer, config.optimizer.lr)
    size = options.batch_size if options.microbatch in (None, "auto") else int(options.microbatch)
    tokens = torch.randint(0, config.model.vocab_size, (options.batch_size, length + 1), device=device)
    pieces = list(zip(tokens[:, :-1].split(size), tokens[:, 1:].split(size), strict=True))

    def step() -> None:
        with fast_gradients():
            for x, y in pieces:
                with autocast(precision, device):
                    loss = run(x.contiguous(), y.contiguous()) / len(pieces)
                loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, device, options.batch_size * length, flops_per_token(config.model, length)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
