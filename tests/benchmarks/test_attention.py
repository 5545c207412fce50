"""The race of attention kernels, at a size and with the kernels that a CPU has a backward pass for."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "attention.py"


@pytest.fixture
def script(monkeypatch):
    specification = importlib.util.spec_from_file_location("benchmark_attention", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "benchmark_attention", module)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("documents", [False, True])
def test_those_that_can_run_are_timed_and_the_others_say_why(script, documents):
    cell = script.Cell(192, 40, 2, "sdpa")
    script.race(cell, script.CONTESTANTS, torch.device("cpu"), 3, documents)
    runs = {"dense", "sdpa"} | (set() if documents else {"folded", "folded, no cuDNN"})
    assert set(cell.seconds) == runs | {script.LIMIT}
    assert set(cell.reasons) == set(script.CONTESTANTS) - runs
    assert all(len(times) == 3 and min(times) > 0 for times in cell.seconds.values())
    assert "no backward pass" in cell.reasons["flex"]


def test_a_wrong_kernel_and_a_broken_one_are_not_timed(script, monkeypatch):
    class Wrong(script.DenseAttention):
        def __call__(self, q, k, v):
            return super().__call__(q, k, 1.1 * v)

    class Broken(script.DenseAttention):
        def __call__(self, q, k, v):
            raise RuntimeError("no kernel\nfor this")

    monkeypatch.setitem(script.CONTESTANTS, "wrong", Wrong)
    monkeypatch.setitem(script.CONTESTANTS, "broken", Broken)
    cell = script.Cell(64, 40, 1, "sdpa")
    script.race(cell, ["sdpa", "wrong", "broken"], torch.device("cpu"), 1)
    assert set(cell.seconds) == {"sdpa", script.LIMIT}
    assert cell.reasons == {"wrong": "differs from dense by 0.100", "broken": "RuntimeError: no kernel"}
    assert script.table(cell)[-2].split(maxsplit=1) == ["wrong", "differs from dense by 0.100"]


def test_figures_of_a_cell(script):
    cell = script.Cell(64, 1000, 2, "sdpa", {"sdpa": [3.0, 2.0, 9.0], "folded": [2.0], script.LIMIT: [1.0]})
    assert cell.medians == {"sdpa": 3.0, "folded": 2.0, script.LIMIT: 1.0}
    assert cell.ratios == {"sdpa": 1.5, "folded": 1.0, script.LIMIT: 0.5}
    assert cell.flops == 3.5 * 4 * 2 * 768 * 1000**2 / 2
    lines = script.table(cell)
    assert lines[0].startswith("head size 64, context 1000") and lines[-1].split()[0] == "sdpa"
    assert lines[-1].endswith("1.50")


def test_the_script_writes_what_it_was_run_with(script, monkeypatch, tmp_path, capsys):
    path = tmp_path / "found" / "attention.json"
    monkeypatch.setattr(sys, "argv", ["attention.py", "--heads", "64", "--rounds", "1", "--json", str(path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.main()
    found = json.loads(path.read_text())
    assert found["torch"] == torch.__version__ and found["commit"] and found["device"]
    (cell,) = found["cells"]
    assert cell["picked"] == "sdpa" and set(cell["ratios"]) == set(cell["seconds"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("time of auto / fastest: ")
