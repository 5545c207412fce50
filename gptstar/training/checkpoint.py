"""Checkpoints of a run: RUN/checkpoints/step-N, a weights folder (`gptstar.pretrained.native`) and

    training/progress.json    step, tokens, skipped steps
    training/state.pt         optimizer moments, loss scale, random states

A model whose layers are cut up is put together first. One in shards has distributed/ (`gptstar.pretrained.sharded`) in
place of model.safetensors and the moments; it is written while training goes on. A checkpoint is written beside, forced
to disk and renamed, so a kill or a power cut at any instant leaves the last good one in place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError, reason
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import empty_model
from gptstar.pretrained.native import (
    STEP_PREFIX,
    best_checkpoint,
    list_checkpoints,
    load_weights,
    save_description,
    save_tensors,
)
from gptstar.pretrained.sharded import DAMAGE, read_shards, write_shards
from gptstar.pretrained.stored import is_sharded
from gptstar.training.spread import gather_model, like_its_parameter
from gptstar.training.state import TrainState
from gptstar.training.tensor_parallel import cut_of
from gptstar.training.world import PATIENCE, World, lost

# The libraries report a full disk in their own ways.
_FAILURES = (OSError, RuntimeError, SafetensorError, CheckpointException)


class Checkpoints:
    """Those of one run. All ranks call every method; rank 0 writes what is not in shards."""

    def __init__(self, run: Path, tokenizer: Tokenizer, keep_last: int, world: World) -> None:
        self.run, self.tokenizer, self.keep_last, self.world = run, tokenizer, keep_last, world
        self._sharded = world.parallel == "fsdp"
        self._group = (
            dist.new_group(backend="gloo", timeout=PATIENCE) if self._sharded else None
        )  # of the thread that writes
        self._cut = world.n_tensor > 1
        self._begun: tuple[Future, Path] | None = None

    def save(self, state: TrainState, validation_loss: float | None) -> Path:
        """The checkpoint of the current step, after which all but the last `keep_last` and the best one are dropped.

        In shards it is only begun: `finish` waits for it. Raises UserError where it cannot be written; older
        checkpoints are untouched then.
        """
        self.finish()
        final = self.run / "checkpoints" / f"{STEP_PREFIX}{state.step:08d}"
        if self.world.same(final.is_dir()):  # interrupted right after this step was saved
            return final
        model = gather_model(state.model, self.world, "cpu") if self._cut else state.model
        tensors = state.tensors(with_moments=not self._sharded, kept=self.world.main)
        if self.world.main and model is not None:
            with self._explained(final):
                self._write_plain(final, state, model, tensors, validation_loss)
        self.world.wait()
        if self._sharded:
            with self._explained(final):
                self._begun = write_shards(_work(final), state.model, state.optimizer, self._group), final
        return final

    def look(self) -> None:
        """Lands what has been written meanwhile, without waiting."""
        if self._begun is not None and self._begun[0].done() and self.world.main:
            self._land()

    def finish(self) -> None:
        """Waits for what was begun. Raises UserError where it could not be written."""
        if self._begun is not None:
            self._land()
        if self._sharded:
            self.world.wait()

    def _land(self) -> None:
        assert self._begun is not None
        (written, final), self._begun = self._begun, None
        with self._explained(final):
            written.result()
            if self.world.main:
                self._rename(final)

    def _write_plain(
        self, final: Path, state: TrainState, model: GPT, tensors: dict, validation_loss: float | None
    ) -> None:
        work = _work(final)
        shutil.rmtree(work, ignore_errors=True)
        (work / "training").mkdir(parents=True)
        training = {**state.counters(), "validation_loss": validation_loss}
        save_description(work, model, self.tokenizer, training)
        (work / "training" / "progress.json").write_text(json.dumps(state.counters()))
        torch.save(tensors, work / "training" / "state.pt")
        if not self._sharded:
            save_tensors(work, model)
            self._rename(final)

    def _rename(self, final: Path) -> None:
        work = _work(final)
        for path in (*work.rglob("*"), work):
            _to_disk(path)
        os.rename(work, final)
        _to_disk(final.parent)
        _prune(self.run, self.keep_last)

    @contextmanager
    def _explained(self, final: Path) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            if lost(error):
                raise
            if self.world.main:
                shutil.rmtree(_work(final), ignore_errors=True)
            what = f"checkpoint {final} cannot be written ({reason(error)})"
            raise UserError(f"{what}: older checkpoints are untouched") from error


def restore_weights(folder: Path, model: GPT) -> None:
    """The weights of a checkpoint into a model that is not spread over processes yet; those in shards come later."""
    if not is_sharded(folder):
        load_weights(folder, model)


def restore_checkpoint(folder: Path, state: TrainState, group: dist.ProcessGroup | None = None) -> None:
    """Continues from a checkpoint, on however many ranks `group` has (None: this one), after `restore_weights`.

    Raises UserError for a damaged one.
    """
    training = folder / "training"
    try:
        counters = read_progress(folder)
        if is_sharded(folder):
            _read_shards(folder, state, group)
        state.restore(counters, torch.load(training / "state.pt", map_location="cpu", weights_only=True))
    except DAMAGE as error:
        raise UserError(
            f"resume={folder}: training/ is damaged ({reason(error)}): resume an older checkpoint"
        ) from error


def read_progress(folder: Path) -> dict:
    """What `TrainState.counters` gave. Raises UserError for a damaged checkpoint and for one of weights only."""
    if not (folder / "training").is_dir():
        raise UserError(f"resume={folder}: weights only, without a training/ folder, cannot be resumed")
    try:
        counters = json.loads((folder / "training" / "progress.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"resume={folder}: training/ is damaged ({error}): resume an older checkpoint") from error
    if "data" not in counters:
        raise UserError(
            f"resume={folder}: it was made by an older version, whose order of the data is not known here: begin a new "
            f"run with init_from={folder}"
        )
    return counters


@torch.no_grad()
def _read_shards(folder: Path, state: TrainState, group: dist.ProcessGroup | None) -> None:
    model, optimizer = state.model, state.optimizer
    if not any(cut_of(parameter) for parameter in model.parameters()):
        read_shards(folder, model, optimizer, group)
        return
    whole = empty_model(model.config, "cpu", torch.float32, torch.float32)
    holder = torch.optim.SGD(whole.parameters())  # of the moments; it takes no step
    read_shards(folder, whole, holder, group)
    for parameter, read in zip(model.parameters(), whole.parameters(), strict=True):
        parameter.copy_(like_its_parameter(read, parameter))
        for key, value in holder.state[read].items():
            optimizer.state[parameter][key] = like_its_parameter(value, parameter).to(parameter.device)


def _work(final: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return final.with_name(f".{final.name}.part")


def _prune(run: Path, keep_last: int) -> None:
    folders = list_checkpoints(run)
    kept = {*folders[-keep_last:], best_checkpoint(folders)}
    for folder in folders:
        if folder not in kept:
            # Renamed first: a kill during the removal must not leave half a checkpoint under a good name.
            gone = _work(folder)
            os.rename(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
    for leftover in (run / "checkpoints").glob(f".{STEP_PREFIX}*.part"):
        shutil.rmtree(leftover, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
