import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptstar.configuration import config_directory, preset
from gptstar.model.choices import BLOCKS
from gptstar.model.describe import (
    cache_bytes_per_token,
    components,
    differences,
    drawing,
    flops_per_token,
    parameter_count,
    receptive_fields,
)
from gptstar.model.transformer import GPT
from support import tiny_model

PRESETS = sorted(path.stem for path in (config_directory() / "model").glob("*.yaml"))


def test_flops_agree_with_torchs_counter():
    """Counted over dense matmuls, less what the formula adds (embeddings have no matmul here: the head is tied)."""
    config = tiny_model(n_layer=3, d_model=64, n_head=4, d_head=16, d_ff=256, context=32, vocab_size=300)
    model = GPT(config)
    model.attention_kernel = "dense"
    tokens = torch.randint(0, 300, (2, 32))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()  # the counter misses mm(out=)
    formula = flops_per_token(config, 32) * tokens.numel()
    vectors = 6 * sum(p.numel() for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias"))
    counted = counter.get_total_flops()
    assert abs(formula - vectors * tokens.numel() - counted) / counted < 0.01


def test_gpt2_small_figures():
    config = preset("gpt2_small")
    assert parameter_count(config) == 124_439_808
    assert flops_per_token(config, 1024) == 6 * 124_439_808 + 12 * 12 * 768 * 1024


@pytest.mark.parametrize("name", PRESETS)
def test_components_add_up_to_the_whole(name):
    config = preset(name)
    rows = components(config, 64)
    assert sum(row.parameters for row in rows) == parameter_count(config)
    # 6 N also counts what is in no matrix product: vectors, positions, an embedding that is not the head too.
    with torch.device("meta"):
        named = dict(GPT(config).named_parameters())
    idle = [n for n, p in named.items() if p.ndim < 2 or n.endswith("bias") or n.startswith("position")]
    idle += [] if config.tie_head else ["embedding.weight"]
    expected = flops_per_token(config, 64) - 6 * sum(named[name].numel() for name in idle)
    assert 3 * sum(row.flops for row in rows) == expected


@pytest.mark.parametrize("block", ["sequential", "parallel_shared", "amlp"])
def test_init_scales_are_those_of_a_built_model(block):
    torch.manual_seed(0)
    config = tiny_model(block=block, n_layer=4, d_model=128, n_head=4, d_head=32, d_ff=256, position="none")
    state = GPT(config).state_dict()
    for row in components(config, 16):
        if row.init.startswith("0."):
            names = [name for name in state if name.replace(".0.", ".*.").removesuffix(".weight") == row.name]
            assert state[names[0]].std().item() == pytest.approx(float(row.init), rel=0.1), row.name


def test_a_stream_that_starts_with_zeros_is_said_to():
    found = {row.name: row.init for row in components(tiny_model(zero_init_residual=True, value_residual=True), 16)}
    assert found["blocks.*.attention.output"] == found["blocks.*.feedforward.down"] == "0"
    assert found["blocks.*.attention.value"] == "0.02" and found["blocks.*.attention.value_mix"] == "its own"


def test_a_frozen_parameter_costs_no_gradient():
    config = tiny_model()
    assert flops_per_token(config, 8) - flops_per_token(config, 8, n_frozen=100) == 200


def test_the_cache_costs_keys_and_values_of_the_shared_heads():
    config = tiny_model(n_layer=5, n_head=6, n_kv_head=2, d_head=8)
    assert cache_bytes_per_token(config, 2) == 5 * 2 * 2 * 8 * 2
    cache = GPT(config).new_cache(1, 10)
    assert sum(t.numel() for layers in cache.kept.values() for t in layers) * 2 == 10 * cache_bytes_per_token(config, 2)


def test_windows_reach_further_layer_by_layer():
    config = tiny_model(n_layer=4, windows=[4, 4, 0, 4])
    assert receptive_fields(config) == [(4, 4), (4, 7), (0, None), (4, None)]
    torch.manual_seed(0)
    model = GPT(tiny_model(n_layer=2, windows=[4], position="none", init_std=0.3)).double()
    tokens = torch.randint(0, 300, (1, 20))
    for back, reached in ((6, True), (7, False)):  # 7 positions, the token's own included
        changed = tokens.clone()
        changed[0, 19 - back] += 1
        assert (not torch.equal(model(changed)[0, 19], model(tokens)[0, 19])) == reached


def test_differences_name_fields_and_derived_widths():
    found = differences(preset("gpt2_small"), preset("gpt2_medium"))
    assert found["d_model"] == (768, 1024) and found["d_feedforward"] == (3072, 4096) and "block" not in found


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_has_a_drawing(block):
    picture = drawing(tiny_model(block=block))
    assert "x ──" in picture and "(+)" in picture
