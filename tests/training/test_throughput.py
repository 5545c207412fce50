import time

import pytest
import torch

from gptstar.training import throughput
from gptstar.training.throughput import measure_bandwidth, measure_matmul_peak, peak_flops, peak_gib

CPU = torch.device("cpu")


def test_the_peak_is_flops_over_the_shortest_time(monkeypatch):
    first = [0.0, 9.0, 10.0, 12.0, 20.0, 21.0]  # warm-up 9 s, then 2 s and 1 s
    ticks = iter([*first, *first[:-1], 20.5])  # the other library: 0.5 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(throughput, "one_dnn_takes", lambda *_: False)
    assert measure_matmul_peak(CPU, size=8, repeats=2) == 2 * 8**3 / 1.0
    ticks = iter([*first, *first[:-1], 20.5])
    monkeypatch.setattr(throughput, "one_dnn_takes", lambda *_: True)
    assert measure_matmul_peak(CPU, size=8, repeats=2) == 2 * 8**3 / 0.5


def test_a_copy_reads_and_writes(monkeypatch):
    ticks = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert measure_bandwidth(CPU, n_byte=1024, repeats=2) == 2 * 1024 / 1.0


def test_measuring_leaves_the_runs_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert peak_flops(CPU) > 1e9
    assert torch.equal(torch.get_rng_state(), before)


PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": None,
    "NVIDIA T400 4GB": None,
    "Some Other GPU": None,
}


@pytest.mark.parametrize(("name", "peak"), PEAKS.items())
def test_gpus_are_known_by_name(monkeypatch, name, peak):
    monkeypatch.setattr(throughput.torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


def test_memory_is_the_process_peak_in_gib():
    before = peak_gib(CPU)
    block = torch.ones(2**26)  # 0.25 GiB
    assert 0.05 < peak_gib(CPU) < 64 and peak_gib(CPU) >= before
    del block
