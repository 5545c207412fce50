"""Folders of our own architectures in transformers' layout: back again bit for bit, and never half written."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import gptstar
from gptstar.configuration import preset
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.pretrained import transformers_folder
from gptstar.pretrained.remote_code import remote_code
from support import tiny_model

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260, eot_token="<end>"))


def make(**changes):
    torch.manual_seed(0)
    model = gptstar.GPT(tiny_model(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(block="gmlp", position="none", dtype=torch.float64),
        dict(block="amlp", adapter_width=4, activation="geglu", tie_head=False, pad_vocab_to=64, dtype=torch.bfloat16),
        dict(n_kv_head=1, attention_output_bias=False, layer_positions=["alibi_learned", "relative"], windows=[0, 3]),
        dict(value_residual=True, embedding_shortcut=True, n_layer=3),
        dict(block="sequential", position="learned", d_head=0, n_head=4),  # GPT-2's: the token comes back there too
    ],
)
def test_import_export_import_is_bit_exact(changes, tmp_path):
    dtype = changes.pop("dtype", torch.float32)
    model = make(**changes).to(dtype)
    gptstar.export(model, TOKENIZER, tmp_path / "one")
    again, tokenizer = gptstar.load(tmp_path / "one")
    gptstar.export(again, tokenizer, tmp_path / "two")
    state = model.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in state.items())
    assert again.dtype == dtype and not again.training
    assert (tokenizer.eot_token, tokenizer.eot_id) == (TOKENIZER.eot_token, TOKENIZER.eot_id)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_how_a_model_began_does_not_decide_whose_layout_it_gets_but_what_it_computes_does():
    gpt2 = preset("gpt2_small")
    assert transformers_folder.family_of(replace(gpt2, zero_init_residual=True)).model_type == "gpt2"
    for idea in ("value_residual", "embedding_shortcut"):
        assert transformers_folder.family_of(replace(gpt2, **{idea: True})).model_type == "gptstar"


def test_the_configuration_comes_back_whole(tmp_path):
    model = make(name="mine", init_std=0.5, context=77)
    gptstar.export(model, TOKENIZER, tmp_path / "star")
    assert gptstar.load(tmp_path / "star")[0].config == model.config


def test_the_code_that_travels_is_the_sources_and_needs_nothing_of_ours():
    files = remote_code(tiny_model())
    assert "gptstar_describe.py" not in files and {"modeling_gptstar.py", "gptstar_gmlp.py"} < files.keys()
    for name, text in files.items():
        compile(text, name, "exec")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] != "gptstar" for alias in node.names), name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert f"{node.module}.py" in files, (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).partition(".")[0] != "gptstar", name


def test_damage_is_named(tmp_path):
    folder = tmp_path / "star"
    gptstar.export(make(), TOKENIZER, folder)
    good, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())

    def refused() -> str:
        with pytest.raises(UserError) as error:
            gptstar.load(folder)
        return str(error.value)

    name = "model.blocks.1.inputs.weight"
    for changed, words in (
        ({k: v for k, v in good.items() if k != name}, f"missing tensors: {name}"),
        ({**good, "model.extra": torch.ones(1)}, "unknown tensors: model.extra"),
        ({**good, name: good[name] * float("nan")}, f"not finite tensors: {name}"),
        ({**good, name: good[name][:-1].clone()}, f"mis-shaped tensors: {name} is (119, 32), not (120, 32)"),
    ):
        save_file(changed, folder / "model.safetensors")
        assert words in refused()
    for key, value in (("n_layer", 0), ("block", "ring"), ("flux", 1)):
        changed = {**config, "model": {**config["model"], key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        assert "config.json does not describe a gptstar model" in refused() and key in refused()


def test_a_used_folder_is_refused_and_an_empty_one_taken(tmp_path):
    for used in (tmp_path / "used", tmp_path / "file"):
        if used.name == "used":
            used.mkdir()
            (used / "precious").touch()
        else:
            used.write_text("precious")
        with pytest.raises(UserError, match="is not empty: choose another folder"):
            gptstar.export(make(), TOKENIZER, used)
    (tmp_path / "empty").mkdir()
    gptstar.export(make(), TOKENIZER, tmp_path / "empty")
    gptstar.load(tmp_path / "empty")


def test_a_failed_export_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(transformers_folder, "save_safetensors", full)
        with pytest.raises(UserError, match=r"star cannot be written: No space left"):
            gptstar.export(make(), TOKENIZER, tmp_path / "new" / "star")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "new" / ".star.part").mkdir()  # what a kill leaves
    (tmp_path / "new" / ".star.part" / "half").touch()
    gptstar.export(make(), TOKENIZER, tmp_path / "new" / "star")
    assert not (tmp_path / "new" / "star" / "half").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["star"]
