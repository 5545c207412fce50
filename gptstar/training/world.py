"""The processes that train one model together, started by torchrun (or a job of Slurm's): who they are, how they agree.

Rank 0 decides and writes: whatever may be refused is refused by it alone, and the others learn what it found. Every
wait for another rank ends after `trainer.timeout` seconds, but for work that only rank 0 does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from gptstar.device import pick_device
from gptstar.errors import UserError, reason

T = TypeVar("T")
PARALLEL = ("auto", "none", "ddp", "fsdp")
PATIENCE = timedelta(days=7)  # while rank 0 prepares a corpus or evaluates
# What gloo and NCCL say when another process is gone or silent.
SIGNS = ("closed by peer", "Connection reset", "Connection refused", "Timed out", "timed out", "Broken pipe")


class LostRank(UserError):
    """Another rank died, or did not answer in time."""


@dataclass(frozen=True)
class World:
    """This process among all of them.

    parallel: none, ddp or fsdp. agreement: a group for objects and long waits, on the CPU. n_tensor: how many
    consecutive ranks compute every layer together and so read the same share of the batch; timeout: of their waits.
    """

    device: torch.device
    parallel: str = "none"
    rank: int = 0
    size: int = 1
    agreement: dist.ProcessGroup | None = None
    n_tensor: int = 1
    timeout: timedelta | None = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    @property
    def n_share(self) -> int:
        """How many shares a batch is read in."""
        return self.size // self.n_tensor

    @property
    def share(self) -> int:
        """Which of them is this rank's, from 0."""
        return self.rank // self.n_tensor

    def same(self, value: T) -> T:
        """Rank 0's value, everywhere."""
        if self.agreement is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.agreement)
        return box[0]

    def decided(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, everywhere; the others wait."""
        return self.same(work() if self.main else None)  # type: ignore[return-value, arg-type]

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by the first rank of each machine before the others, who find what it left there."""
        ahead = os.environ.get("LOCAL_RANK", "0") == "0"
        if ahead:
            result = work()
        self.wait()
        if not ahead:
            result = work()
        self.wait()
        return result

    def wait(self) -> None:
        """Until all have come here, however long that takes."""
        if self.agreement is not None:
            dist.barrier(self.agreement)

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.agreement is not None:
            dist.all_reduce(values)
        return values

    def share_total(self, values: Tensor) -> Tensor:
        """The sum over shares of the batch, whose ranks all have the same."""
        total = self.total(values)
        return total / self.n_tensor if total.is_floating_point() else total // self.n_tensor

    def least(self, value: int) -> int:
        """The smallest over ranks."""
        if self.agreement is None:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MIN, self.agreement)
        return int(found)


def lost(error: BaseException) -> bool:
    """Whether torch says with it that another process is gone or silent."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS)


def launched() -> bool:
    """Whether torchrun, srun with several tasks, or what sets the same variables as torchrun started this process."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        _take_over_from_slurm()
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def _take_over_from_slurm() -> None:
    """What srun tells its tasks, under the names that torchrun gives it."""
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
    os.environ.update({ours: os.environ[theirs] for ours, theirs in names.items()})
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"]
        ask = ["scontrol", "show", "hostnames", nodes]
        try:
            hosts = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"scontrol cannot tell where rank 0 is ({error}): set MASTER_ADDR") from error
        os.environ["MASTER_ADDR"] = hosts[0]
    # Known to all without asking, and seldom another job's.
    known = int(os.environ["SLURM_JOB_ID"]) * 7 + int(os.environ.get("SLURM_STEP_ID") or 0)
    os.environ.setdefault("MASTER_PORT", str(20_000 + known % 20_000))


@contextmanager
def open_world(parallel: str, device: str, timeout: float, n_tensor: int = 1) -> Iterator[World]:
    """Joins the other processes while entered. Raises UserError where the launch and the configuration disagree,
    and LostRank for what torch raises when another process is gone.
    """
    if not launched():
        if parallel in ("ddp", "fsdp"):
            raise UserError(
                f"trainer.parallel={parallel} needs several processes: start it with torchrun "
                "--nproc-per-node=N train.py ..., or set trainer.parallel=none"
            )
        yield World(pick_device(device), n_tensor=n_tensor)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if parallel == "none" and size > 1:
        raise UserError(
            f"trainer.parallel=none, but {size} processes were started: choose ddp or fsdp, or start one process"
        )
    place = _place(device)
    kind = ("ddp" if size > 1 else "none") if parallel == "auto" else parallel
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=timeout)))
        store = _unwritten_part(store, rank, size, timeout)
        limit = timedelta(seconds=timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
        yield World(place, kind, rank, size, dist.new_group(backend="gloo", timeout=PATIENCE), n_tensor, limit)
    except RuntimeError as error:  # torch's own DistErrors are RuntimeErrors too
        if lost(error):
            what = f"rank {rank} of {size} lost another one, or waited {timeout:g} s for it ({reason(error)})"
            raise LostRank(f"{what}: resume the run, or start torchrun with --max-restarts") from error
        raise
    dist.destroy_process_group()  # not after an error: it may wait for processes that are gone


def _unwritten_part(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """A part of the launcher's store that no process has written to which was killed and started again since.

    The store outlives them, and with it the addresses they had. So every process says hello by a new name, and rank 0
    answers by that name, until all have heard from it. Raises RuntimeError where one does not come.
    """
    own, end = uuid4().hex, time.monotonic() + timeout
    if rank:
        store.set(f"hello/{rank}", own)
        part = store.get(f"welcome/{own}").decode()  # waits for it
        store.set(f"{part}/{rank}", "here")
        return dist.PrefixStore(part, store)
    missing = list(range(1, size))
    while missing:
        if time.monotonic() > end:
            raise RuntimeError(f"Timed out waiting for rank {missing[0]}")
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", own)
        time.sleep(0.01)
        missing = [other for other in missing if not store.check([f"{own}/{other}"])]
    return dist.PrefixStore(own, store)


def _place(device: str) -> torch.device:
    """The device of this process: the one of its number, where the machine has several."""
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    if device.startswith("cuda:") and several:
        raise UserError(f"trainer.device={device} would be the device of every process of this machine: set it to cuda")
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return pick_device(device)
    local, n_device = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if n_device == 1 and "SLURM_PROCID" in os.environ:  # srun shows each task its own
        local = 0
    if local >= n_device:
        raise UserError(f"process {local} of this machine has no GPU, there are {n_device}: lower --nproc-per-node")
    return torch.device("cuda", local)
