from types import SimpleNamespace

import pytest
import torch

from gptstar import plan as door
from gptstar.errors import UserError
from gptstar.lab.planning import hardware as module
from gptstar.lab.planning.hardware import CPU, GPU, MEASURED_GPU, Efficiency, Hardware, measured
from gptstar.plan import data_sheets, hardware_names, load_hardware
from gptstar.training.throughput import CUDA_PEAKS


@pytest.mark.parametrize("name", [name for name in hardware_names() if name != "this"])
def test_every_file_is_a_whole_machine(name):
    found = load_hardware(name)
    assert found.name == name and found.source and found.device == "cuda"
    assert found.peak("fp16") == CUDA_PEAKS[found.chip] > found.peak("fp32") > 1e12
    assert found.precision("auto") == ("fp16" if found.chip in ("T4", "V100") else "bf16")
    assert 10 < found.memory_gib < 200 and 100e9 < found.bandwidth < 1e13 and 1e9 < found.link < 1e12
    assert found.price and found.watts and found.shares == GPU


def test_geforce_cards_talk_through_host_memory():
    pcie = load_hardware("a5000").link
    assert pcie == load_hardware("l4").link
    for name in ("3090", "3090x4", "4090"):
        assert load_hardware(name).link < pcie / 2


def test_several_are_one_more_often():
    one, four = load_hardware("a5000"), load_hardware("a5000x4", price=0.5)
    assert (one.devices, four.devices) == (1, 4) and four.price == 0.5
    assert (one.chip, one.bandwidth, one.memory) == (four.chip, four.bandwidth, 24 * 2**30)


def test_what_is_unknown_is_one_line_with_what_is_known():
    with pytest.raises(UserError, match="hardware=a6000 is unknown: choose one of 3090, "):
        load_hardware("a6000")
    with pytest.raises(UserError, match=r"trainer.precision=bf16: hardware=t4 has no peak .* fp32, fp16"):
        load_hardware("t4").peak("bf16")
    for wrong, words in ((dict(chip="X"), "chip"), (dict(device="tpu"), "device")):
        with pytest.raises(ValueError, match=f"hardware.{words}="):
            Hardware(**wrong)
    with pytest.raises(ValueError, match=r"hardware.efficiency.matmul=1.5 must lie in"):
        Efficiency(matmul=1.5)


def test_a_machine_made_of_one_that_is_made_of_another_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "hardware"
    folder.mkdir()
    for name, base in (("a", ""), ("b", "defaults: [a, _self_]"), ("c", "defaults: [b, _self_]")):
        (folder / f"{name}.yaml").write_text(f"name: {name}\n{base}\n")
    monkeypatch.setattr(door, "config_directory", lambda: tmp_path)
    assert load_hardware("b").name == "b"
    with pytest.raises(UserError, match="hardware=c is made of b, which has defaults of its own"):
        load_hardware("c")


def test_efficiencies_not_given_are_those_of_the_kind_of_device():
    assert Hardware(device="cpu").shares == CPU
    changed = Hardware(efficiency=Efficiency(matmul=0.5)).shares
    assert (changed.matmul, changed.memory) == (0.5, GPU.memory)


def test_this_machine_is_measured_and_others_are_not(monkeypatch):
    wanted = []

    def peak(device, size, repeats, dtype):
        wanted.append(dtype)
        return 1e11

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "measure_matmul_peak", peak)
    monkeypatch.setattr(module, "measure_bandwidth", lambda device, n_byte: 2e10)
    monkeypatch.setattr(module, "measure_functions", lambda: 3e9)
    assert measured(load_hardware("a5000")) == load_hardware("a5000") and not wanted
    found = measured(load_hardware("this"))
    assert (found.device, found.peak("fp32"), found.bandwidth, found.functions) == ("cpu", 1e11, 2e10, 3e9)
    assert found.memory_gib > 0.5 and wanted == [torch.float32]
    assert measured(load_hardware("this"), optimizer="muon").peaks.keys() == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("name", "gib", "sheet"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100_40g"),
        ("NVIDIA A100-SXM4-80GB", 79.25, "a100_80g"),
        ("NVIDIA GeForce RTX 4090", 23.6, "4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7, None),
        ("NVIDIA B200", 178.0, None),
    ],
)
def test_a_gpu_at_hand_has_its_data_sheets_figures_or_shares_of_measured_ones(monkeypatch, name, gib, sheet):
    """Shares of a data sheet and a measured peak must not meet: a real kernel's loss would be taken off twice."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    memory = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(module, "measure_matmul_peak", lambda *_: 8e13)
    monkeypatch.setattr(module, "measure_bandwidth", lambda *_, **__: 7e11)
    found = measured(load_hardware("this", devices=2, efficiency={"link": 0.5}), sheets=data_sheets())
    assert (found.name, found.device, found.devices, found.price) == ("this", "cuda", 2, None)
    assert found.shares.link == 0.5 and name in found.source
    if sheet:
        known = load_hardware(sheet)
        assert (found.shares.matmul, found.shares.attention, found.shares.memory) == (0.6, 0.35, 0.85)
        assert (found.peak("bf16"), found.peak("fp32")) == (known.peak("bf16"), known.peak("fp32"))
        assert (found.memory_gib, found.bandwidth, found.link) == (known.memory_gib, known.bandwidth, known.link)
        changed = measured(load_hardware("this", bandwidth=1e9, price=2.0), sheets=data_sheets())
        assert (changed.bandwidth, changed.price) == (1e9, 2.0)
    else:
        assert (found.peak("bf16"), found.bandwidth, found.memory_gib) == (8e13, 7e11, pytest.approx(gib))
        assert found.shares.matmul == MEASURED_GPU.matmul > GPU.matmul and found.shares.memory == 1


def test_muon_on_a_gpu_without_bf16_is_measured_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA P100")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    monkeypatch.setattr(module, "measure_matmul_peak", lambda *_: 8e13)
    monkeypatch.setattr(module, "measure_bandwidth", lambda *_, **__: 7e11)
    assert measured(load_hardware("this"), optimizer="muon").peaks.keys() == {"fp16", "fp32"}


def test_exponentials_a_second(monkeypatch):
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    assert module.measure_functions(4, 8, repeats=2) == 32 / 1.0
