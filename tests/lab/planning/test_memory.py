import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.configuration import preset
from gptstar.lab.planning.memory import MOMENTS, Setting, activations, bias_bytes, memory, total, weights
from gptstar.model.adapters import freeze_all_but_adapters
from gptstar.model.transformer import GPT
from gptstar.training.optimizers import OptimizerConfig, build_optimizer
from support import tiny_model


def state_bytes(optimizer) -> int:
    """Of moments; the counts of steps are a number a tensor."""
    inner = [optimizer._muon, optimizer._adamw] if hasattr(optimizer, "_muon") else [optimizer]
    states = [state for each in inner for state in each.state.values()]
    return sum(t.nbytes for state in states for k, t in state.items() if isinstance(t, torch.Tensor) and k != "step")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor"])
@pytest.mark.parametrize("changes", [{}, {"block": "sequential", "position": "learned"}, {"adapter_width": 4}])
def test_weights_gradients_and_moments_are_those_of_a_built_model(optimizer, changes):
    config, trainable = tiny_model(**changes), "adapters" if "adapter_width" in changes else "all"
    model = GPT(config)
    if trainable == "adapters":
        freeze_all_but_adapters(model)
    tokens = torch.randint(0, 300, (2, 16))
    stepper = build_optimizer(model, OptimizerConfig(name=optimizer))
    model(tokens, tokens).backward()
    stepper.step()
    planned = memory(
        config, Setting("fp32", "cpu", "sdpa", rows=2, n_token=16, trainable=trainable, optimizer=optimizer)
    )
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert planned["optimizer moments"] == state_bytes(stepper)


def test_moments_in_8_bits():
    assert MOMENTS["adamw_8bit"](torch.empty(64, 256), True) == 2 * (64 * 256 + 4 * 64)
    assert MOMENTS["adamw_8bit"](torch.empty(100), False) == 800


def kept(config, rows: int, n_token: int, half: bool, kernel: str) -> float:
    """Bytes that autograd keeps of a forward pass, but for parameters and their copies in half precision."""
    model = GPT(config)
    model.attention_kernel = kernel
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    tokens = torch.randint(0, config.vocab_size, (rows, n_token))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, half):
        loss = model(tokens, tokens)
    assert loss.isfinite()
    copies = 2 * weights(config, Setting("bf16", "cpu", "sdpa")).matrices if half else 0
    head = 4 * config.padded_vocab_size * config.d_model  # the loss's gradient for the head, a part of its own
    return sum(n_byte for n_byte, _ in found.values()) - copies - head


@pytest.mark.parametrize("name", ["star_3m", "gpt2_3m", "llama_15m", "pythia_14m", "gmlp_3m", "amlp_3m"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
@pytest.mark.parametrize("mixed", [False, True])
def test_activations_are_what_autograd_keeps(name, half, kernel, mixed):
    """mixed: with shortcuts from the embedding and the first layer's values."""
    config = dataclasses.replace(preset(name), vocab_size=512, n_layer=2, embedding_shortcut=mixed)
    config.value_residual = mixed and config.block != "gmlp"
    how = Setting("bf16" if half else "fp32", "cpu", kernel, rows=2, n_token=128)
    planned = activations(config, how) + bias_bytes(config, how)
    assert planned == pytest.approx(kept(config, 2, 128, half, kernel), rel=0.08)


@pytest.mark.parametrize("changes", [{"embedding_shortcut": True}, {"value_residual": True}])
@pytest.mark.parametrize("name", ["star_3m", "gpt2_3m", "llama_15m"])
@pytest.mark.parametrize("kernel", ["sdpa", "dense"])
def test_what_layers_mix_with_the_first_one_is_kept_too(name, kernel, changes):
    """To the byte: what autograd keeps more is planned more."""
    plain = dataclasses.replace(preset(name), vocab_size=512, n_layer=3)
    mixed, how = dataclasses.replace(plain, **changes), Setting("fp32", "cpu", kernel, rows=2, n_token=64)
    more = kept(mixed, 2, 64, False, kernel) - kept(plain, 2, 64, False, kernel)
    assert activations(mixed, how) - activations(plain, how) == more


SETTINGS = st.builds(
    Setting,
    precision=st.sampled_from(["fp32", "bf16"]),
    device=st.just("cuda"),
    kernel=st.sampled_from(["dense", "sdpa", "folded"]),
    parallel=st.sampled_from(["ddp", "fsdp"]),
    n_share=st.sampled_from([1, 2, 8]),
    rows=st.integers(1, 64),
    n_token=st.integers(1, 512),
    n_micro=st.integers(1, 4),
)


@settings(max_examples=60)
@given(SETTINGS, st.sampled_from(["parallel_shared", "sequential"]), st.booleans())
def test_more_tokens_never_need_less_and_making_activations_again_never_more(how, block, mixed):
    config = tiny_model(block=block, n_layer=4, value_residual=mixed, embedding_shortcut=mixed)
    needed = total(config, how)
    for more in (dict(n_token=how.n_token + 7), dict(rows=how.rows + 1)):
        assert total(config, dataclasses.replace(how, **more)) >= needed
    by_layers = [total(config, dataclasses.replace(how, recompute=n)) for n in range(5)]
    assert by_layers == sorted(by_layers, reverse=True)


def test_shards_and_cut_layers_leave_less_on_a_device():
    config = preset("gpt127")
    whole = Setting("bf16", "cuda", "folded", parallel="ddp", n_share=8, rows=4, n_token=512)
    sharded, cut = dataclasses.replace(whole, parallel="fsdp"), dataclasses.replace(whole, n_share=2, n_tensor=4)
    a, b, c = (memory(config, how) for how in (whole, sharded, cut))
    assert b["weights"] == a["weights"] / 8 and b["optimizer moments"] == a["optimizer moments"] / 8
    inside = weights(config, whole).matrices
    assert a["weights"] - c["weights"] > 4 * inside * 3 / 4 and c["activations"] < a["activations"]
    assert sum(b.values()) < sum(a.values())
