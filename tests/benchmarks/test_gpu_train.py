"""The GPU benchmark's logic, on tiny models and a CPU."""

import json
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_train.py"
MODULE = run_path(str(SOURCE), run_name="gpu_train")


def run(target, *arguments):
    command = [sys.executable, str(SOURCE), "--device", "cpu", "--tiny", "--blocks", "2", "--json", str(target)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    return done, json.loads(target.read_text())


@pytest.mark.slow
def test_measures_every_row_and_judges_it(tmp_path):
    done, found = run(tmp_path / "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = found["rows"]
    assert set(rows) == set(MODULE["ROWS"])
    for row, (_, length) in MODULE["TRAINED"].items():
        assert rows[row]["microbatch"] * length == 1024
        assert rows[row]["mfu"] > 0 and rows[row]["memory_gib"] > 0 and len(rows[row]["blocks"]) == 2
    assert rows["decode"]["tokens_per_second"] > 0
    assert "skipped" in rows["attention"]
    assert {"command", "commit", "torch", "hardware"} <= set(found)
    ratio = found["targets"][-1]
    expected = rows["gpt127"]["tokens_per_second"] / rows["gpt2_small_1024"]["tokens_per_second"]
    assert ratio["found"] == pytest.approx(expected) and ratio["holds"] == (expected >= 1.4)
    assert f"gpt127 / gpt2_small_1024, tokens/s: {expected:.2f}" in done.stdout


def test_a_row_that_fails_is_reported_and_the_others_go_on(tmp_path):
    done, found = run(tmp_path / "found.json", "--only", "gpt127", "decode", "--microbatch-tokens", str(10**15))
    assert done.returncode == 1
    assert "error" in found["rows"]["gpt127"] and "blocks" in found["rows"]["decode"]
    assert "FAILED" in done.stdout


def test_what_the_budget_does_not_reach_is_skipped(tmp_path):
    done, found = run(tmp_path / "found.json", "--budget-seconds", "0")
    assert done.returncode == 0
    assert all("skipped" in row for row in found["rows"].values()) and not found["targets"]


def test_the_largest_microbatch_that_fits_is_taken(monkeypatch):
    torch = MODULE["torch"]

    def only_small(config, length, microbatch, options):
        if microbatch > 2:
            raise torch.OutOfMemoryError
        return {"microbatch": microbatch}

    train = MODULE["train"]
    monkeypatch.setitem(train.__globals__, "train_with", only_small)

    class Options:
        tiny, microbatch_tokens = True, [4096, 2048, 1024, 512]

    assert train("gpt127", Options) == {"microbatch": 2, "too_large": [8, 4]}
    Options.microbatch_tokens = [4096]
    with pytest.raises(torch.OutOfMemoryError, match="no microbatch fits"):
        train("gpt127", Options)
