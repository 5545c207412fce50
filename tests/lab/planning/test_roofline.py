import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from gptstar.configuration import preset
from gptstar.lab.planning.hardware import Hardware
from gptstar.lab.planning.memory import Setting, weights
from gptstar.lab.planning.roofline import Part, Rates, communication, compute_parts, kernel
from gptstar.model.transformer import GPT
from gptstar.plan import load_hardware
from gptstar.training.optimizers import OptimizerConfig, build_optimizer
from support import tiny_model

RATES = Rates(matmul=100.0, attention=50.0, memory=10.0, functions=5.0, muon=100.0)


def test_a_kernel_waits_for_the_slowest_of_what_it_needs():
    assert kernel(200, 10, 100.0, RATES).seconds == 2
    assert kernel(200, 40, 100.0, RATES).seconds == 4
    assert kernel(200, 40, 100.0, RATES, functions=30).seconds == 6
    assert Part(3.0, exposed=1.0).counted == 1 and Part(3.0).counted == 3


def test_products_are_6_for_each_weight_and_token_and_the_head_as_much():
    config = preset("gpt2_small")
    how = Setting("bf16", "cuda", "sdpa", rows=2, n_token=1024, n_micro=3)
    own = weights(config, how)
    parts = compute_parts(config, own, how, RATES)
    assert own.matrices == 12 * 12 * 768 * 768
    assert parts["matrix products"].flops == 6 * own.matrices * 3 * 2048
    assert parts["head and loss"].flops == 6 * 50257 * 768 * 3 * 2048
    again = compute_parts(config, own, dataclasses.replace(how, recompute=6), RATES)
    assert again["matrix products"].flops == 7 * own.matrices * 3 * 2048  # half of the forward pass once more
    assert parts["optimizer"].bytes == 40 * own.trained  # clipping 12, AdamW 28


def test_dense_attention_moves_its_scores_and_fused_attention_does_not():
    config = preset("gpt127")
    fused, dense = (Setting("bf16", "cuda", name, rows=8, n_token=512) for name in ("folded", "dense"))
    a, b = (compute_parts(config, weights(config, how), how, RATES)["attention"] for how in (fused, dense))
    assert b.flops == 12 * 6 * 1024 * 512 * 8 * 512 and b.bytes > 5 * a.bytes
    longer = dataclasses.replace(dense, n_token=1024, rows=4)
    assert compute_parts(config, weights(config, longer), longer, RATES)["attention"].bytes == 2 * b.bytes


def test_gradients_go_round_a_ring_and_hide_behind_the_backward_pass():
    config = preset("gpt127")
    how = Setting("fp16", "cuda", "folded", parallel="ddp", n_share=4, rows=32, n_token=512)
    own = weights(config, how)
    hardware = Hardware(devices=4, link=10e9)
    hardware.efficiency.link, hardware.efficiency.overlap = 1.0, 0.75
    (part,) = communication(config, own, how, hardware, backward=100.0).values()
    seconds = 1.5 * 4 * 127_030_272 / 10e9
    assert part.seconds == pytest.approx(seconds) and part.counted == pytest.approx(seconds / 4)
    (part,) = communication(config, own, how, hardware, backward=0.05).values()
    assert part.counted == pytest.approx(seconds - 0.05)  # longer than what it can hide behind
    assert communication(config, own, dataclasses.replace(how, n_share=1), hardware, 1.0) == {}
    sharded = communication(config, own, dataclasses.replace(how, parallel="fsdp"), hardware, 100.0)
    assert sharded["all-gather of weights"].bytes == 1.5 * 2 * 127_030_272
    assert sharded["reduce-scatter of gradients"].bytes == 0.75 * 4 * 127_030_272
    cut = dataclasses.replace(how, n_share=1, n_tensor=4)
    assert communication(config, own, cut, hardware, 1.0)["all-reduce of activations"].bytes == (
        2 * 6 * 1.5 * 32 * 512 * 1024 * 2  # forward and backward, a sum a layer
    )


@pytest.mark.parametrize(
    ("n_micro", "backward", "hidden"),
    [
        (1, 100.0, (0.5 * 8, 0.5 * 8)),  # half of each
        (1, 4.0, (6 - 4, 4)),  # behind forward and backward there are 6 s, of which gradients take 4
        (1, 2.0, (3 - 2, 2)),
        (3, 2.0, (2 * 3 + 3 - 2, 2)),  # gradients wait for the last microbatch
        (3, 100.0, (3 * 4, 4)),
    ],
)
def test_shards_share_the_time_to_hide_behind(n_micro, backward, hidden):
    """Two exchanges over one link, 8 s each (the gathering of each microbatch), of which half can be hidden."""
    config = tiny_model()
    how = Setting("bf16", "cuda", "sdpa", parallel="fsdp", n_share=2, n_micro=n_micro)
    own = dataclasses.replace(weights(config, how), whole=4000, trained=4000)  # 8000 bytes for either
    hardware = Hardware(devices=2, link=1000.0)
    hardware.efficiency.link, hardware.efficiency.overlap = 1.0, 0.5
    gather, scatter = communication(config, own, how, hardware, backward).values()
    assert (gather.seconds, scatter.seconds) == (8 * n_micro, 8)
    assert (gather.seconds - gather.counted, scatter.seconds - scatter.counted) == pytest.approx(hidden)


def test_muon_orthogonalises_part_by_part_in_bf16_or_fp32():
    """As torch counts the products of an actual step, where only Muon has any."""
    config = tiny_model(n_layer=1)
    how = Setting("fp32", "cpu", "sdpa", optimizer="muon")
    model = GPT(config)
    stepper = build_optimizer(model, OptimizerConfig(name="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    with FlopCounterMode(display=False) as counter:
        stepper.step()
    own = weights(config, how)
    assert 5 * own.orthogonalised == counter.get_total_flops() > 0
    adamw = compute_parts(config, own, dataclasses.replace(how, optimizer="adamw"), RATES)["optimizer"]
    muon = compute_parts(config, own, how, RATES)["optimizer"]
    assert muon.flops == 5 * own.orthogonalised and muon.seconds > adamw.seconds
    frozen = dataclasses.replace(how, trainable="adapters")
    assert 0 < weights(tiny_model(n_layer=1, adapter_width=4), frozen).orthogonalised < own.orthogonalised
    for name, precision in (("t4", "fp32"), ("v100", "fp32"), ("a5000", "bf16")):
        hardware = load_hardware(name)
        assert Rates.of(hardware, "fp16").muon == hardware.peak(precision) * 0.6


@pytest.mark.parametrize("changes", [{"embedding_shortcut": True}, {"value_residual": True}])
def test_what_layers_mix_with_the_first_one_is_read_and_written(changes):
    plain = preset("gpt127")
    mixed = dataclasses.replace(plain, **changes)
    how = Setting("bf16", "cuda", "folded", rows=8, n_token=512)
    a, b = (compute_parts(c, weights(plain, how), how, RATES)["norms and elementwise"].bytes for c in (plain, mixed))
    width = 4 * 1024 if "embedding_shortcut" in changes else 2 * plain.n_key_value * plain.head_size
    assert b - a == pytest.approx(22 * width * 5 * 8 * 512)  # in 5 of 6 layers


@pytest.mark.parametrize("kernel_name", ["sdpa", "flex"])
def test_a_gate_is_a_matrix_product_whole(kernel_name):
    config = preset("amlp_3m")
    how = Setting("bf16", "cuda", kernel_name, rows=2, n_token=256)
    parts = compute_parts(config, weights(config, how), how, RATES)
    T = 256
    scores, gate = 4 * config.d_attention * T, 2 * config.d_feedforward * T
    matrices = weights(config, how).matrices
    assert parts["matrix products"].flops == (6 * matrices + 3 * config.n_layer * gate) * 2 * T
    assert parts["attention"].flops == 3.5 * 0.5 * config.n_layer * scores * 2 * T  # what causality hides is skipped
    none = preset("gmlp_3m")
    parts = compute_parts(none, weights(none, how), how, RATES)
    assert parts["attention"] == Part()
    assert parts["matrix products"].flops > 6 * weights(none, how).matrices * 2 * T


@settings(max_examples=40)
@given(st.sampled_from(["gpt127", "gpt2_small"]), st.integers(0, 5), st.booleans(), st.sampled_from(["dense", "sdpa"]))
def test_more_devices_never_compute_longer(name, power, compiled, attention):
    config, rates = preset(name), Rates.of(load_hardware("a5000"), "bf16")

    def seconds(devices: int) -> float:
        how = Setting(
            "bf16", "cuda", attention, compiled, parallel="ddp", n_share=devices, rows=64 // devices, n_token=256
        )
        return sum(part.seconds for part in compute_parts(config, weights(config, how), how, rates).values())

    assert seconds(2 ** (power + 1)) <= seconds(2**power)
