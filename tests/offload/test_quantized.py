"""Quantised copies: the numbers of the model quantised in memory, made once, and nothing but whole ones is read."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretrained.test_neox_slim import TOKENIZER, reference, write_slim

import gptstar
from families import gptj, neo
from gptstar.errors import UserError
from gptstar.offload import quantized
from gptstar.offload.load import load_under_budget
from gptstar.offload.plan import BUFFERS, Room
from gptstar.offload.reading import Disk
from gptstar.quantization.quantize import quantization_of
from support import tiny_model

TOKENS = torch.tensor([[5, 9, 2, 40, 7], [1, 1, 30, 3, 8]])
ALL = 1 << 40


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    top, made = tmp_path_factory.mktemp("sources"), {}
    for name, make in (("neo", neo), ("gptj", gptj)):
        torch.manual_seed(0)
        made[name] = top / name
        wide = dict(hidden_size=64, num_heads=4) if name == "neo" else dict(n_embd=64, n_head=4)
        make(**wide).half().save_pretrained(made[name])
        TOKENIZER.save(made[name] / "tokenizer.json")
    made["slim"] = write_slim(reference("small"), top / "slim", True)
    torch.manual_seed(0)
    made["native"] = top / "native"
    made["native"].mkdir()
    from gptstar.pretrained.native import save_weights

    config = tiny_model(n_layer=4, init_std=0.3, d_model=64, n_head=4, d_ff=128)
    save_weights(made["native"], gptstar.GPT(config).eval(), TOKENIZER, {})
    return made


def opened(source: Path, folder: Path, kind: str = "int4", budget: int = ALL):
    return load_under_budget(source, budget, kind, Room(16), quantized_dir=folder)


@pytest.mark.parametrize("name", ["neo", "gptj", "slim", "native"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.inference_mode()
def test_numbers_are_those_of_the_model_quantised_in_memory(sources, exact_budgets, tmp_path, name, kind):
    expected = gptstar.load(sources[name], dtype=kind)[0](TOKENS)
    made = opened(sources[name], tmp_path, kind)
    assert quantization_of(made.model) == kind and not made.layers.streamed
    least = made.plan.held - sum(made.layers.extents[n].n_byte for n in range(len(made.layers.layers) - 2))
    assert torch.equal(made.model(TOKENS), expected)
    made.close()
    made = opened(sources[name], tmp_path, kind, least)
    assert not made.layers.resident
    for _ in range(2):
        assert torch.equal(made.model(TOKENS), expected)
    made.close()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(-0.5, 1.2), kind=st.sampled_from(["int8", "int4"]))
@torch.inference_mode()
def test_any_budget_gives_the_same_numbers_or_is_refused(sources, exact_budgets, tmp_path, share, kind):
    """share: of what lies between the least and all layers in memory."""
    expected = gptstar.load(sources["native"], dtype=kind)[0](TOKENS)
    made = opened(sources["native"], tmp_path, kind)
    layers = [extent.n_byte for extent in made.layers.extents]
    least = made.plan.held - sum(layers) + BUFFERS * max(layers)
    budget = math.floor(least + share * sum(layers))
    made.close()
    if budget < least:
        with pytest.raises(UserError, match="is the least"):
            opened(sources["native"], tmp_path, kind, budget)
        return
    made = opened(sources["native"], tmp_path, kind, budget)
    assert made.plan.held <= budget and len(made.plan.resident) >= int(4 * min(share, 1))
    assert torch.equal(made.model(TOKENS), expected)
    made.close()


def test_it_is_made_once_and_again_when_the_original_changes(sources, exact_budgets, tmp_path, monkeypatch):
    source = tmp_path / "model"
    shutil.copytree(sources["native"], source)
    made, make = [], quantized._make
    monkeypatch.setattr(quantized, "_make", lambda *a: made.append(a) or make(*a))
    said: list[str] = []
    for expected in (1, 1):
        load_under_budget(source, ALL, "int8", Room(16), quantized_dir=tmp_path / "kept", say=said.append).close()
        assert len(made) == expected
    assert sum("quantising to int8 once" in text for text in said) == 1
    (source / "model.safetensors").touch()
    opened(source, tmp_path / "kept", "int8").close()
    assert len(made) == 2


def copy_of(folder: Path) -> Path:
    (made,) = (path for path in folder.iterdir() if not path.name.startswith("."))
    return made


@torch.inference_mode()
@pytest.mark.parametrize("file", ["layer-0002.safetensors", "outside.safetensors"])
def test_a_changed_byte_is_seen(sources, exact_budgets, tmp_path, file):
    opened(sources["native"], tmp_path).close()
    path = copy_of(tmp_path) / file
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file} is damaged: delete .*, and it is made again"):
        made = opened(sources["native"], tmp_path)
        made.model(TOKENS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    """One layer's file in the place of another's."""
    shutil.copy(path.with_name("layer-0001.safetensors"), path)


def other_shape(path: Path) -> None:
    manifest = json.loads((path.parent / "quantized.json").read_text())
    (path.parent / "quantized.json").write_text(json.dumps({**manifest, "kind": "int8"}))


@torch.inference_mode()
@pytest.mark.parametrize("damage", [cut, swap, Path.unlink, other_shape])
def test_missing_cut_and_swapped_files_are_told(sources, exact_budgets, tmp_path, damage):
    opened(sources["native"], tmp_path).close()
    damage(copy_of(tmp_path) / "layer-0002.safetensors")
    with pytest.raises(UserError, match="is damaged"):
        made = opened(sources["native"], tmp_path)
        made.model(TOKENS)


def test_a_disk_that_fills_leaves_nothing(sources, exact_budgets, tmp_path, monkeypatch):
    written, save = [], quantized.save_safetensors

    def fills(tensors, path):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(quantized, "save_safetensors", fills)
    with pytest.raises(UserError, match=r"could not be written .* make room, or name another folder"):
        opened(sources["native"], tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []
    opened(sources["native"], tmp_path).close()  # there is room now


def test_no_room_is_told_before_anything_is_read(sources, exact_budgets, tmp_path, monkeypatch):
    monkeypatch.setattr(quantized.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    monkeypatch.setattr(Disk, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match=r"the int4 copy takes .* free: make room, or name another folder"):
        opened(sources["native"], tmp_path)


def test_what_a_killed_process_left_is_not_used(sources, exact_budgets, tmp_path):
    opened(sources["native"], tmp_path).close()
    whole = copy_of(tmp_path)
    part = whole.with_name(f".{whole.name}.part")
    whole.rename(part)
    (part / "layer-0001.safetensors").write_bytes(b"half")
    opened(sources["native"], tmp_path).close()
    assert copy_of(tmp_path) == whole and not part.exists()


def test_weights_that_are_not_finite_are_not_quantised(exact_budgets, tmp_path):
    from safetensors.torch import load_file, save_file

    source = tmp_path / "model"
    source.mkdir()
    from gptstar.pretrained.native import save_weights

    save_weights(source, gptstar.GPT(tiny_model(n_layer=2)).eval(), TOKENIZER, {})
    tensors = load_file(source / "model.safetensors")
    tensors["blocks.1.attention.query.weight"][0, 0] = torch.nan
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(UserError, match=r"blocks\.1\.attention\.query\.weight in model\.safetensors is not finite"):
        opened(source, tmp_path / "kept", "int8")
    assert not any(path.is_dir() for path in (tmp_path / "kept").iterdir())


def test_a_budget_too_small_to_quantise_is_told(sources, tmp_path):
    with pytest.raises(UserError, match="is too small to quantise a layer at a time to int8"):
        opened(sources["native"], tmp_path, "int8", 1 << 20)
