"""A model that reads layers from its own files gives the numbers of the model loaded whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretrained.test_neox_slim import TOKENIZER, reference, write_slim
from safetensors.torch import load_file, save_file

import gptstar
from families import gpt2 as gpt2_model
from families import gptj, neo, neox
from gptstar.errors import UserError
from gptstar.offload import plan as planning
from gptstar.offload.layers import find_layers
from gptstar.offload.load import load_under_budget
from gptstar.offload.plan import Room, least_bytes, needs
from gptstar.pretrained.native import save_weights
from gptstar.quantization.quantize import quantize
from support import as_sampled, tiny_model

TOKENS = torch.tensor([[5, 9, 2, 40, 7], [1, 1, 30, 3, 8]])


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Small models in all layouts and precisions that are read in place."""
    top, made = tmp_path_factory.mktemp("sources"), {}
    for name, make in (("gpt2", gpt2_model), ("neo", neo), ("gptj", gptj), ("neox", neox)):
        torch.manual_seed(0)
        for kind, options in (("bin", {"safe_serialization": False}), ("shards", {"max_shard_size": "40kB"})):
            if kind == "bin" and name != "gpt2":
                continue
            folder = top / f"{name}-{kind}"
            make().half().save_pretrained(folder, **options)
            TOKENIZER.save(folder / "tokenizer.json")
            made[f"{name}-{kind}"] = folder
    for dtype in (torch.float16, torch.float32):
        made[f"slim-{dtype}"] = write_slim(reference("small", dtype), top / f"slim-{dtype}", True)
    torch.manual_seed(0)
    native = top / "native"
    native.mkdir()
    save_weights(native, gptstar.GPT(tiny_model(n_layer=4, init_std=0.3)).eval(), TOKENIZER, {})
    return made | {"native": native}


def budgets(source: Path, n_token: int = 64) -> tuple[int, int]:
    """The least, and what all layers take."""
    with pytest.raises(UserError, match="is the least") as told:
        load_under_budget(source, 1, room=Room(n_token))
    del told
    low, high = 1, 1 << 40
    while low < high:
        middle = (low + high) // 2
        try:
            load_under_budget(source, middle, room=Room(n_token)).close()
            high = middle
        except UserError:
            low = middle + 1
    return low, 1 << 40


NAMES = ["gpt2-bin", "gpt2-shards", "neo-shards", "gptj-shards", "neox-shards", "native"]
NAMES += ["slim-torch.float16", "slim-torch.float32"]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_numbers_are_those_of_the_whole_model(sources, exact_budgets, name):
    whole, _ = gptstar.load(sources[name], dtype="fp32")
    least, most = budgets(sources[name])
    expected = as_sampled(whole, TOKENS)

    def same(found, wanted):  # a Conv1D is multiplied with as it lies, so that its sums are made in another order
        assert torch.equal(found, wanted) if "gpt2" not in name else torch.allclose(found, wanted, 1e-4, 1e-4)

    for budget in (least, most):
        made = load_under_budget(sources[name], budget, room=Room(64))
        assert len(made.plan.resident) == (0 if budget == least else whole.config.n_layer)
        for _ in range(2):
            same(as_sampled(made.model, TOKENS), expected)
        for rows in (TOKENS, TOKENS[:1]):
            cache, whole_cache = made.model.new_cache(len(rows), 8), whole.new_cache(len(rows), 8)
            for piece in rows.split([3, 1, 1], 1):
                same(as_sampled(made.model, piece, cache), as_sampled(whole, piece, whole_cache))
        made.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(-0.5, 1.2), n_token=st.integers(1, 100), direct=st.booleans())
@torch.inference_mode()
def test_any_budget_gives_the_same_numbers_or_is_refused(sources, exact_budgets, share, n_token, direct):
    """share: of what lies between the least and all layers in memory."""
    source, room = sources["native"], Room(n_token)
    found = find_layers(source)
    least, layers = least_bytes(found, torch.float32, room), sum(needs(found, torch.float32, room).layers)
    budget = math.floor(least + share * layers)
    expected = as_sampled(gptstar.load(source)[0], TOKENS)
    if budget < least:
        with pytest.raises(UserError, match="is the least"):
            load_under_budget(source, budget, room=room, direct=direct)
        return
    made = load_under_budget(source, budget, room=room, direct=direct)
    assert made.plan.held <= budget and len(made.plan.resident) >= int(4 * min(share, 1))
    for _ in range(2):
        assert torch.equal(as_sampled(made.model, TOKENS), expected)
    made.close()


@torch.inference_mode()
def test_a_pass_that_is_broken_off_does_not_disturb_the_next(sources, exact_budgets):
    made = load_under_budget(sources["native"], budgets(sources["native"])[0], room=Room(64))
    expected = made.model(TOKENS)
    cache = made.model.new_cache(2, 4)
    with pytest.raises(ValueError, match="cache"):
        made.model(TOKENS, cache=cache)  # there is no room for the fifth token
    assert torch.equal(made.model(TOKENS), expected)
    made.close()


def test_halves_of_two_models_are_refused(exact_budgets, tmp_path):
    folder = write_slim(reference("small"), tmp_path, True)
    file = next(folder.glob("global_step*/layer_03-model_01-*"))
    tensors = torch.load(file, weights_only=True)
    tensors["input_layernorm.weight"] = -tensors["input_layernorm.weight"]
    torch.save(tensors, file)
    made = load_under_budget(folder, 1 << 40)
    with pytest.raises(UserError, match="norms that differ between the halves"):
        made.model(TOKENS)
    made.close()


def test_damage_is_told_and_nothing_hangs(sources, exact_budgets, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(sources["native"], folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="is cut off"):
        load_under_budget(folder, 1 << 40)
    file.write_bytes(whole)
    made = load_under_budget(folder, budgets(folder)[0], room=Room(64))
    file.write_bytes(b"")
    with pytest.raises(UserError, match="has become shorter"):
        for _ in range(9):
            made.model(TOKENS)
    with pytest.raises(UserError, match="has become shorter"):
        made.model(TOKENS)
    made.close()


@torch.inference_mode()
def test_masks_of_old_files_are_passed_over(sources, exact_budgets, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(sources["gptj-shards"], folder)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e9)
    save_file(tensors, file, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"] |= dict.fromkeys(tensors, file.name)
    index.write_text(json.dumps(values))
    made = load_under_budget(folder, 1 << 40)
    assert torch.equal(as_sampled(made.model, TOKENS), as_sampled(gptstar.load(folder, dtype="fp32")[0], TOKENS))
    made.close()


def test_weights_that_are_integers_are_refused(exact_budgets, tmp_path):
    save_weights(tmp_path, gptstar.GPT(tiny_model()).eval(), TOKENIZER, {})
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not floating-point tensors: norm\.weight"):
        load_under_budget(tmp_path, 1 << 40)


def test_a_model_whose_layers_are_on_disk_is_not_saved(sources, exact_budgets, tmp_path):
    made = load_under_budget(sources["native"], 1 << 40)
    with pytest.raises(UserError, match="under a memory budget cannot be saved"):
        save_weights(tmp_path, made.model, TOKENIZER, {})
    with pytest.raises(UserError, match="under a memory budget cannot be saved"):
        gptstar.export(made.model, made.tokenizer, tmp_path / "there")
    with pytest.raises(UserError, match="quantised as it is loaded"):
        quantize(made.model, "int8")
    assert not any(tmp_path.iterdir())
    made.close()


def test_alibi_needs_a_number_for_every_head_and_pair_of_tokens(sources):
    found = find_layers(sources["native"])
    assert "alibi" in found.config.schemes
    short, long = (needs(found, torch.float32, Room(4000, 100, longest=n)).working for n in (1000, 4000))
    assert long - short >= 3000 * 100 * found.config.n_head * 4


def test_a_pickle_that_is_mapped_counts(sources, monkeypatch):
    monkeypatch.setattr(planning, "memory_in_use", lambda: 0)

    def whole(name: str) -> int:
        return planning.whole_bytes(find_layers(sources[name]), torch.float32, Room(64))

    size = sum(file.stat().st_size for file in sources["gpt2-bin"].glob("*.bin"))
    assert whole("gpt2-bin") - whole("gpt2-shards") == size


def test_what_is_asked_of_python_is_checked(sources, exact_budgets, tmp_path):
    source = sources["native"]
    made = load_under_budget(source, "20MB", "int8", quantized_dir=str(tmp_path))
    assert not any(parameter.requires_grad for parameter in made.model.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        made.model(TOKENS, TOKENS).backward()
    made.close()
    for changes, words in (
        (dict(budget="much"), "must be a number of bytes"),
        (dict(dtype="int9"), "'int9' is unknown"),
        (dict(dtype="fp16"), "so leave dtype out"),
        (dict(gpu_budget=5), "needs a GPU"),
    ):
        with pytest.raises(UserError, match=words):
            load_under_budget(source, **{"budget": 1 << 40, **changes})
