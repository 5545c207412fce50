"""A model that reads layers from its own files gives the numbers of the model loaded whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pretrained.test_neox_slim import TOKENIZER, reference, write_slim

import gptstar
from families import gpt2 as gpt2_model
from families import gptj, neo, neox
from gptstar.errors import UserError
from gptstar.fast_linear import fast_linear
from gptstar.offload.layers import find_layers
from gptstar.offload.load import load_under_budget
from gptstar.offload.plan import Room, least_bytes, needs
from support import tiny_model

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
    from gptstar.pretrained.native import save_weights

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
    expected = whole(TOKENS)
    for budget in (least, most):
        made = load_under_budget(sources[name], budget, room=Room(64))
        assert len(made.plan.resident) == (0 if budget == least else whole.config.n_layer)
        for _ in range(2):
            assert torch.equal(made.model(TOKENS), expected)
        for rows in (TOKENS, TOKENS[:1]):
            cache, whole_cache = made.model.new_cache(len(rows), 8), whole.new_cache(len(rows), 8)
            for piece in rows.split([3, 1, 1], 1):
                with fast_linear(whole.device, whole.dtype):  # as both are sampled
                    assert torch.equal(made.model(piece, cache=cache), whole(piece, cache=whole_cache))
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
    expected = gptstar.load(source)[0](TOKENS)
    if budget < least:
        with pytest.raises(UserError, match="is the least"):
            load_under_budget(source, budget, room=room, direct=direct)
        return
    made = load_under_budget(source, budget, room=room, direct=direct)
    assert made.plan.held <= budget and len(made.plan.resident) >= int(4 * min(share, 1))
    for _ in range(2):
        assert torch.equal(made.model(TOKENS), expected)
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
    import shutil

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
