import json
from datetime import datetime

import pytest

from gptstar.configuration import preset
from gptstar.errors import UserError
from gptstar.lab.planning.hardware import Efficiency, Hardware
from gptstar.lab.planning.plan import plan
from gptstar.lab.planning.plan_text import markdown, verdict
from gptstar.lab.planning.published import AGAINST_PUBLISHED, PUBLISHED
from gptstar.plan import load_hardware
from gptstar.training.config import TrainConfig, TrainerConfig

IMPLIED = {"gpt127": 0.216, "gpt303": 0.482, "gpt2_small": 0.188}  # shares of the peak


def configuration(model="gpt127", **trainer) -> TrainConfig:
    usual = dict(batch_size=1024, microbatch=32, sequence_length=512, max_steps=100, precision="fp16")
    return TrainConfig(model=preset(model), trainer=TrainerConfig(**{**usual, **trainer}))


def test_against_what_was_published():
    """The MFU as arithmetic has it; the least and the most that plans were of the hours are those that notes tell."""
    ratios = []
    for each in PUBLISHED:
        config, machine = each.configuration(preset(each.model)), load_hardware(each.hardware)
        found = plan(config, machine)
        shape = {
            "gpt127": (127_030_272, 6, 1024),
            "gpt303": (303_825_408, 8, 1536),
            "gpt2_small": (124_439_808, 12, 768),
        }
        n, layers, width = shape[each.model]
        peak = {"a5000x4": 111e12, "3090x4": 71e12}[each.hardware]
        implied = (6 * n + 12 * layers * width * each.length) * each.tokens / (each.device_hours * 3600 * peak)
        assert implied == pytest.approx(IMPLIED[each.model], abs=0.001)
        assert implied == pytest.approx(each.implied_mfu(found.flops_per_token, peak), rel=1e-4)
        # The published hours, asked for by their MFU, come out again.
        assert plan(config, machine, mfu=implied).device_hours == pytest.approx(each.device_hours, rel=1e-4)
        assert found.fits
        ratios.append(round(found.device_hours / each.device_hours, 2))
    assert (min(ratios), max(ratios)) == AGAINST_PUBLISHED
    note = f"were {min(ratios)} to {max(ratios)} of what it took"
    assert note in " ".join(found.notes) and note not in " ".join(plan(config, machine, mfu=0.4).notes)


def test_against_a_measured_plain_gpt2_on_an_h200():
    """490k tokens/s, 42% MFU, at 64 x 1024 (modded-nanogpt track 3): compiled, bf16, one GPU."""
    config = configuration("gpt2_small", batch_size=512, microbatch=64, sequence_length=1024, precision="bf16")
    assert plan(config, load_hardware("h200")).tokens_per_second == pytest.approx(490e3, rel=0.15)


def test_hours_money_and_energy_are_arithmetic():
    config = configuration(max_steps=1000)
    machine = load_hardware("a5000x4", price=0.5, watts=200)
    found = plan(config, machine, mfu=0.3, now=datetime(2026, 1, 1))
    seconds = 1000 * 1024 * 512 * found.flops_per_token / (0.3 * 4 * 111e12)
    assert found.hours == pytest.approx(seconds / 3600) and found.device_hours == 4 * found.hours
    assert found.money == pytest.approx(0.5 * 4 * found.hours)
    assert found.kwh == pytest.approx(0.2 * 4 * found.hours)
    assert found.mfu == pytest.approx(0.3) and found.parts == {} and "assumed" in found.notes[0]
    assert found.ends == "2026-01-01 00:52"
    assert plan(config, load_hardware("a5000", price=None)).money is None


def test_a_step_is_its_parts_and_the_batch_is_shared_out():
    found = plan(configuration(), load_hardware("a5000x4"))
    assert (found.devices, found.parallel, found.microbatch, found.n_microbatch) == (4, "ddp", 32, 8)
    assert (found.precision, found.kernel, found.compiled) == ("fp16", "folded", True)
    assert sum(part.seconds for part in found.parts.values()) == pytest.approx(found.step_seconds)
    assert found.tokens_per_second == pytest.approx(1024 * 512 / found.step_seconds)
    slower = plan(configuration(), load_hardware("a5000x4"), efficiency=Efficiency(matmul=0.3))
    assert slower.parts["matrix products"].seconds == pytest.approx(2 * found.parts["matrix products"].seconds)
    assert plan(configuration(parallel="none"), load_hardware("a5000x4")).devices == 1


def test_what_does_not_fit_says_what_would():
    too_much = plan(configuration(microbatch=256), load_hardware("a5000x4"))
    assert not too_much.fits and too_much.microbatch == 256
    assert verdict(too_much).startswith("does not fit: ") and "of 24.0 GiB; set trainer.microbatch=" in verdict(
        too_much
    )
    size = int(too_much.remedy.partition("microbatch=")[2].partition(",")[0])
    assert plan(configuration(microbatch=size), load_hardware("a5000x4")).fits
    assert not plan(configuration(microbatch=2 * size), load_hardware("a5000x4")).fits
    assert plan(configuration(microbatch="auto"), load_hardware("a5000x4")).microbatch == size
    assert "trainer.recompute=6" in too_much.remedy and "trainer.parallel=fsdp" in too_much.remedy
    hopeless = plan(configuration("neox_20b", precision="bf16"), load_hardware("a5000x4"))
    assert not hopeless.fits and hopeless.remedy.startswith("take more devices")


def test_a_microbatch_left_open_leaves_more_room_on_a_cpu_and_says_who_decides():
    """As in `gptstar.training.microbatch`: a GPU is filled, a CPU to 80% at most, and there speed decides."""
    for device, size in (("cuda", 32), ("cpu", 16)):
        machine = Hardware(device=device, peaks={"fp32": 1e13}, memory_gib=1, bandwidth=1e11)
        needed = plan(configuration(batch_size=64, precision="fp32"), machine).needed
        machine.memory_gib = needed / 0.9 / 2**30  # 32 sequences take 90%
        found = plan(configuration(batch_size=64, precision="fp32", microbatch="auto"), machine)
        assert found.microbatch == size and found.fits
        assert ("training decides it by timing" in " ".join(found.notes)) == (device == "cpu")


@pytest.mark.parametrize(
    ("changes", "machine", "words"),
    [
        (dict(precision="bf16"), "t4", "hardware=t4 has no peak for it"),
        (dict(microbatch=512), "a5000x4", "trainer.microbatch=512 does not divide the 256 sequences of a rank"),
        (dict(batch_size=6, microbatch=None), "a5000x4", "trainer.batch_size=6 cannot be divided among 4 ranks"),
        (dict(parallel="fsdp"), "a5000x4", "trainer.parallel=fsdp cannot: choose bf16"),
        (dict(tensor_parallel=3, parallel="ddp"), "a5000x4", "trainer.tensor_parallel=3 does not divide the 4 devices"),
        (dict(tensor_parallel=2), "a5000", "needs several devices, and hardware=a5000 has 1"),
        (dict(recompute=7), "a5000", "trainer.recompute=7 is more than the 6 layers"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, machine, words):
    with pytest.raises(UserError, match=words):
        plan(configuration(**changes), load_hardware(machine))
    with pytest.raises(UserError, match="mfu=2"):
        plan(configuration(), load_hardware("a5000"), mfu=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(bandwidth=0), r"hardware.bandwidth=0 must be above 0: set hardware.bandwidth in bytes a second"),
        (dict(bandwidth=-1), "hardware.bandwidth=-1"),
        (dict(bandwidth=float("nan")), "hardware.bandwidth=nan"),
        (dict(peaks={"bf16": 0}), r"hardware.peaks.bf16=0 must be above 0: set .* in FLOP/s"),
        (dict(link=-5), "hardware.link=-5 must not be below 0"),
        (dict(memory_gib=0), "hardware.memory_gib=0"),
        (dict(devices=0), "hardware.devices=0"),
        (dict(price=-2), "hardware.price=-2"),
        (dict(watts=0), "hardware.watts=0"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        plan(configuration(), load_hardware("a5000", **changes))


def test_devices_without_a_link_are_refused_where_their_exchange_counts():
    lonely = load_hardware("a5000", devices=2)
    lonely.link = 0
    with pytest.raises(UserError, match=r"hardware.link=0, but 2 devices of hardware=a5000 .* set hardware.link to"):
        plan(configuration(), lonely)
    assert plan(configuration(), lonely, mfu=0.3).devices == 2  # asks nothing of the link
    assert plan(configuration(parallel="none"), lonely).devices == 1


def test_a_plan_in_markdown_and_json(tmp_path):
    found = plan(configuration(), load_hardware("a5000x4"))
    page = markdown(found)
    assert page.startswith("# gpt127 on a5000x4 (4 devices): ") and "It fits: " in page
    for part in (*found.memory, *found.parts, "127,030,272", "799,930,368"):
        assert f"| {part} |" in page
    found.write(tmp_path / "plan.json")
    read = json.loads((tmp_path / "plan.json").read_text())
    assert read["device_hours"] == found.device_hours and read["memory"] == found.memory
