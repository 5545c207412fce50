import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.configuration import preset
from gptstar.lab.planning.hardware import Hardware
from gptstar.lab.planning.memory import Setting, weights
from gptstar.lab.planning.roofline import Part, Rates, communication, compute_parts, kernel
from gptstar.plan import load_hardware

RATES = Rates(matmul=100.0, attention=50.0, memory=10.0, functions=5.0, half=100.0)


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
