"""Shards into one file."""

import dataclasses

import pytest
import torch

import gptstar
from gptstar.consolidate import ConsolidateConfig, consolidate
from gptstar.errors import UserError


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("gptstar.consolidate.find_checkpoint", lambda name: name)
    monkeypatch.setattr("gptstar.consolidate.load_native", None)
    with pytest.raises(UserError, match=r"output_dir=/proc/x cannot be made .* choose another one"):
        consolidate(ConsolidateConfig("checkpoint", "/proc/x"))


@pytest.mark.slow
def test_one_file_from_shards(ranks, train_config, tmp_path, capsys):
    trainer = dataclasses.replace(train_config.trainer, parallel="fsdp", max_steps=4)
    outcomes = ranks().train(dataclasses.replace(train_config, trainer=trainer), 2)
    assert outcomes[0].final, outcomes
    folder = tmp_path / "weights"
    consolidate(ConsolidateConfig(train_config.run_dir, str(folder)))
    assert capsys.readouterr().out == f"{folder}/model.safetensors\n"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    (found, tokenizer), (expected, _) = gptstar.load(folder), gptstar.load(train_config.run_dir)
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    assert gptstar.generate(found, tokenizer, "abc", max_new_tokens=3).startswith("abc")
    with pytest.raises(UserError, match=r"output_dir=.*weights is not empty"):
        consolidate(ConsolidateConfig(train_config.run_dir, str(folder)))
