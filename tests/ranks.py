"""Processes for tests of several ranks: started once, then given one training run after another."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptstar.training.config import TrainConfig


@dataclass(frozen=True)
class Accident:
    """What befalls one rank when it is about to take a step (from 0): exit, hang, nan or signal."""

    kind: str
    rank: int
    step: int


class Ranks:
    """Workers that train together, as torchrun would have started them."""

    def __init__(self, n: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.workers = []
        for _ in range(n):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            self.workers.append((process, here))

    def train(self, config: TrainConfig, n: int, accident: Accident | None = None) -> list[Any]:
        """What `train` gives on each of n ranks: an Outcome, or the exception; None of a rank that died."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank, (_, pipe) in enumerate(self.workers[:n]):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            pipe.send((config, {k: str(v) for k, v in (world | address).items()}, accident))
        found = []
        for _, pipe in self.workers[:n]:
            try:
                found.append(pipe.recv() if pipe.poll(120) else None)
            except EOFError:
                found.append(None)
        return found

    def close(self) -> None:
        for process, _ in self.workers:
            process.kill()
            process.join()


def _serve(pipe) -> None:
    import torch
    import torch.distributed as dist

    from gptstar.training import loop

    torch.set_num_threads(1)
    plain = loop.Trainer._take_step
    while True:
        config, environment, accident = pipe.recv()
        os.environ.update(environment)

        def step(trainer, accident=accident) -> None:
            world = trainer.world
            if accident is not None and (world.rank, trainer.state.step) == (accident.rank, accident.step):
                _befall(accident.kind, trainer)
            plain(trainer)

        loop.Trainer._take_step = step
        try:
            pipe.send(loop.train(config))
        except Exception as error:
            pipe.send(error)
            if dist.is_initialized():
                dist.destroy_process_group()


def _befall(kind: str, trainer) -> None:
    import torch

    if kind == "exit":
        os._exit(1)
    if kind == "hang":
        time.sleep(3600)
    if kind == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "nan":
        with torch.no_grad():
            next(trainer.state.model.parameters()).fill_(torch.nan)


def metrics(run: str | Path, *keys: str) -> list[list[float]]:
    """The named numbers of a run, one list a key."""
    from gptstar.training.metrics import read_metrics

    lines = read_metrics(Path(run) / "metrics.jsonl")
    return [[line[key] for line in lines if key in line] for key in keys]
