import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.errors import UserError
from gptstar.pretrained.native import find_checkpoint, save_weights
from gptstar.pretrained.stored import save_safetensors
from gptstar.training.loop import train


@pytest.fixture
def run(train_config) -> Path:
    train(train_config)
    return Path(train_config.run_dir)


def test_a_run_loads_with_its_tokenizer_ready_to_use(run):
    model, tokenizer = gptstar.load(run)
    assert not model.training and tokenizer.vocab_size == 300
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 300)
    half, _ = gptstar.load(run, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_it_is_the_model_that_was_trained(run):
    fresh = gptstar.GPT(gptstar.load(run)[0].config)
    moved = [not torch.equal(a, b) for a, b in zip(gptstar.load(run)[0].parameters(), fresh.parameters(), strict=True)]
    assert all(moved)


def test_a_checkpoint_without_its_training_folder_is_weights_only(run, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(find_checkpoint(run), folder, ignore=shutil.ignore_patterns("training"))
    ours, theirs = gptstar.load(folder)[0], gptstar.load(run)[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_layer(path: Path) -> None:
    values = json.loads(path.read_text())
    values["model"]["n_layer"] = 1
    path.write_text(json.dumps(values))


def test_who_may_read_the_folder_may_read_the_weights(tmp_path):
    for mode, wanted in ((0o755, 0o644), (0o700, 0o600)):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir(mode)
        save_safetensors({"a": torch.zeros(3)}, folder / "model.safetensors")
        assert (folder / "model.safetensors").stat().st_mode & 0o777 == wanted


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("model.safetensors", truncate, "damaged"),
        ("model.safetensors", Path.unlink, "cannot be read"),
        ("config.json", lambda p: p.write_text("{"), "damaged"),
        ("config.json", lambda p: p.write_text("{}"), "not a gptstar-1 checkpoint"),
        ("config.json", drop_layer, "does not fit its config.json.*blocks.1"),
        (
            "config.json",
            lambda p: p.write_text(p.read_text().replace("alibi", "ring")),
            "model.position='ring' is unknown",
        ),
        ("config.json", lambda p: p.write_text(p.read_text().replace("eot_token", "x")), "names no eot_token"),
        ("tokenizer.json", truncate, "tokenizer"),
    ],
)
def test_damage_is_named(run, file, damage, words):
    folder = find_checkpoint(run)
    damage(folder / file)
    with pytest.raises(UserError, match=words) as error:
        gptstar.load(folder)
    assert file in str(error.value)


def test_a_loss_that_is_not_a_number_is_never_the_best(tmp_path):
    for step, loss in ((1, 1.0), (2, 2.0), (3, math.nan)):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"format": "gptstar-1", "training": {"validation_loss": loss}}))
    assert find_checkpoint(tmp_path / "best").name == "step-00000001"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / "step-00000003.bak")
    assert find_checkpoint(tmp_path).name == "step-00000003"


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="no such run or checkpoint folder"):
        gptstar.load(tmp_path / "nothing")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        gptstar.load(tmp_path)


def test_weights_keep_the_dtype_they_were_saved_in(run, tmp_path):
    model, tokenizer = gptstar.load(run, dtype=torch.bfloat16)
    save_weights(tmp_path, model, tokenizer, {})
    again, _ = gptstar.load(tmp_path)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_checkpoint_from_before_an_option_existed_is_a_model_without_it(run):
    expected = gptstar.load(run)[0](torch.tensor([[1, 2, 3]]))
    path = find_checkpoint(run) / "config.json"
    values = json.loads(path.read_text())
    for key in ("value_residual", "embedding_shortcut", "zero_init_residual"):
        assert values["model"].pop(key) is False
    path.write_text(json.dumps(values))
    assert torch.equal(gptstar.load(run)[0](torch.tensor([[1, 2, 3]])), expected)
