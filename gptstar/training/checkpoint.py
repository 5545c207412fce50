"""Checkpoints of a run: RUN/checkpoints/step-N, a weights folder (`gptstar.pretrained.native`) and

    training/progress.json    step, tokens, skipped steps
    training/state.pt         optimizer moments, loss scale, random states

A checkpoint is written beside, forced to disk and renamed, so a kill or a power cut at any instant leaves the last
good one in place.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.pretrained.native import STEP_PREFIX, best_checkpoint, list_checkpoints, load_weights, save_weights
from gptstar.training.state import TrainState


def save_checkpoint(
    run: Path, state: TrainState, tokenizer: Tokenizer, keep_last: int, validation_loss: float | None
) -> Path:
    """Writes the checkpoint of the current step, then drops all but the last `keep_last` and the best one.

    Raises UserError where it cannot be written; older checkpoints are untouched then.
    """
    final = run / "checkpoints" / f"{STEP_PREFIX}{state.step:08d}"
    if final.is_dir():  # interrupted right after this step was saved
        return final
    work = final.with_name(f".{final.name}.part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        (work / "training").mkdir(parents=True)
        save_weights(work, state.model, tokenizer, {**state.counters(), "validation_loss": validation_loss})
        (work / "training" / "progress.json").write_text(json.dumps(state.counters()))
        torch.save(state.tensors(), work / "training" / "state.pt")
        for path in (*work.rglob("*"), work):
            _to_disk(path)
        os.rename(work, final)
        _to_disk(final.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # the two libraries report a full disk in their own ways
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(f"checkpoint {final} cannot be written ({error}): older checkpoints are untouched") from error
    _prune(run, keep_last)
    return final


def restore_checkpoint(folder: Path, state: TrainState) -> None:
    """Continues from a checkpoint. Raises UserError for one without its training/ part, or a damaged one."""
    training = folder / "training"
    if not training.is_dir():
        raise UserError(f"resume={folder}: weights only, without a training/ folder, cannot be resumed")
    load_weights(folder, state.model)
    try:
        counters = json.loads((training / "progress.json").read_text())
        if counters["corpus"] != state.corpus:
            raise UserError(
                f"resume={folder}: the corpus or its tokenizer is not what the run was trained on (key "
                f"{counters['corpus']}, now {state.corpus}): bring back the old files, or start a new run"
            )
        state.restore(counters, torch.load(training / "state.pt", map_location="cpu", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"resume={folder}: training/ is damaged ({reason}): resume an older checkpoint") from error


def _prune(run: Path, keep_last: int) -> None:
    folders = list_checkpoints(run)
    kept = {*folders[-keep_last:], best_checkpoint(folders)}
    for folder in folders:
        if folder not in kept:
            # Renamed first: a kill during the removal must not leave half a checkpoint under a good name.
            gone = folder.with_name(f".{folder.name}.part")
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
