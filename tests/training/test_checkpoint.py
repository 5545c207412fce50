import json
import os
from pathlib import Path

import pytest
import torch

from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import list_checkpoints
from gptstar.training import checkpoint as module
from gptstar.training.checkpoint import Checkpoints, read_progress, restore_checkpoint, restore_weights
from gptstar.training.optimizers import OptimizerConfig, build_optimizer
from gptstar.training.state import TrainState
from gptstar.training.world import World
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))


def new_state(seed: int = 0, scaler=None, **optimizer) -> TrainState:
    torch.manual_seed(seed)
    model = GPT(tiny_model())
    return TrainState(
        model,
        build_optimizer(model, OptimizerConfig(**optimizer)),
        scaler or torch.amp.GradScaler("cpu"),
        lambda step: {"step": step},
    )


def save(run: Path, state: TrainState, keep_last: int, loss: float | None) -> Path:
    return Checkpoints(run, TOKENIZER, keep_last, World(torch.device("cpu"))).save(state, loss)


def restore(folder: Path, state: TrainState) -> None:
    restore_weights(folder, state.model)
    restore_checkpoint(folder, state)


def advance(state: TrainState) -> None:
    tokens = torch.randint(0, 300, (2, 8))  # the run's random state decides
    state.model(tokens, tokens).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    state.tokens += 16


def test_everything_that_decides_the_future_comes_back(tmp_path):
    state = new_state()
    advance(state)
    saved = save(tmp_path, state, 2, 1.5)
    advance(state)
    other = new_state(seed=1)
    restore(saved, other)
    assert other.counters() == {"step": 1, "tokens": 16, "skipped": 0, "data": {"step": 1}}
    advance(other)
    for a, b in zip(state.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weight_decay_follows_the_new_configuration_not_the_old_checkpoint(tmp_path):
    state = new_state(weight_decay=0.1)
    advance(state)
    other = new_state(weight_decay=0.3)
    restore(save(tmp_path, state, 2, None), other)
    assert [g["weight_decay"] for g in other.optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("before", [True, False])
def test_a_run_may_go_on_in_another_precision(tmp_path, before):
    state = new_state(scaler=torch.amp.GradScaler("cpu", enabled=before))
    advance(state)
    saved = save(tmp_path, state, 2, None)
    restore(saved, new_state(scaler=torch.amp.GradScaler("cpu", enabled=not before)))


def test_a_checkpoint_that_does_not_know_its_data_is_refused(tmp_path):
    folder = save(tmp_path, new_state(), 2, None)
    path = folder / "training" / "progress.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "data"}))
    with pytest.raises(UserError, match=r"made by an older version.* begin a new run with init_from="):
        read_progress(folder)


def test_a_failed_write_is_reported_and_touches_no_older_checkpoint(tmp_path, monkeypatch):
    state = new_state()
    advance(state)
    first = save(tmp_path, state, 1, None)
    before = {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}
    advance(state)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(
        UserError, match=r"step-00000002 cannot be written .*No space left.*older checkpoints are untouched"
    ):
        save(tmp_path, state, 1, None)
    assert {p: p.read_bytes() for p in first.rglob("*") if p.is_file()} == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [first.name]


def test_half_written_and_half_removed_folders_are_never_seen_and_cleared_later(tmp_path):
    state = new_state()
    advance(state)
    (tmp_path / "checkpoints" / ".step-00000007.part").mkdir(parents=True)
    save(tmp_path, state, 1, None)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_last_k_and_the_best_are_kept(tmp_path):
    state = new_state()
    for loss in (3.0, 1.0, None, 2.0, 4.0):
        advance(state)
        save(tmp_path, state, 2, loss)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]


@pytest.mark.parametrize("file", ["progress.json", "state.pt"])
def test_a_damaged_training_folder_is_named(tmp_path, file):
    state = new_state()
    advance(state)
    saved = save(tmp_path, state, 1, None)
    path = saved / "training" / file
    path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(UserError, match=r"step-00000001: training/ is damaged"):
        restore(saved, new_state())


def test_weights_only_cannot_be_resumed(tmp_path):
    state = new_state()
    saved = save(tmp_path, state, 1, None)
    for path in (saved / "training").iterdir():
        os.remove(path)
    Path(saved / "training").rmdir()
    with pytest.raises(UserError, match="weights only"):
        restore(saved, state)
