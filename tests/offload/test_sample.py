"""`sample.py memory_budget=`: the text is the same, the plan is told, and the system says that the budget was kept."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.configuration import preset
from gptstar.errors import UserError
from gptstar.generation.command import SampleConfig, run
from gptstar.pretrained.native import save_weights
from support import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DOOR = """
import re, sys
from pathlib import Path
sys.argv = ["sample.py", *sys.argv[1:]]
try:
    exec(Path("sample.py").read_text())
finally:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""
MiB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """170 million numbers in fp16."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("large"), tiny_tokenizer(400)
    config = preset("gpt2_small", vocab_size=400, n_layer=24, context=64)
    save_weights(folder, gptstar.GPT(config).half().eval(), tokenizer, {})
    return folder


def door(*arguments: str, given: str = "") -> tuple[str, str, int]:
    """Output, what goes to stderr, and the most bytes that the process has held."""
    command = [sys.executable, "-c", DOOR, *arguments]
    done = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    *said, peak = done.stderr.strip().splitlines()
    return done.stdout, "\n".join(said), int(peak) * 1024


def layers(said: str) -> tuple[int, int]:
    """In memory, and on disk, by the plan."""
    kept = re.search(r"(\d+) of (\d+) layers stay in memory", said)
    return int(kept[1]), int(re.search(r"^  disk +(\d+) ", said, re.MULTILINE)[1])


@pytest.mark.timeout(900)
def test_the_budget_is_kept_and_the_text_the_same(large, tmp_path):
    asked = (f"checkpoint={large}", "max_new_tokens=12", "temperature=0", "device=cpu")
    expected, _, whole = door(*asked, "prompt=abc", "dtype=fp32")
    text, said, _ = door(*asked, "prompt=abc", "memory_budget=3G")
    assert text == expected and "all of it fits" in said

    # Half of the weights, 166 MiB, and what Python and torch take: as the least that is refused says.
    with pytest.raises(AssertionError, match="is the least") as told:
        door(*asked, "prompt=abc", "memory_budget=300MiB")
    budget = int(re.search(r"(\d+) MiB is the least", str(told.value))[1]) + 60
    text, said, peak = door(*asked, "prompt=abc", f"memory_budget={budget}MiB")
    assert text == expected
    assert peak <= budget * MiB < whole
    kept, on_disk = layers(said)
    assert kept + on_disk == 24 and kept and on_disk
    # A token a pass, and a line for each.
    lines = re.findall(r"^'.*': .* s a pass, .* tok/s, .*/s from disk, \d+% of what the plan's", said, re.MULTILINE)
    assert len(lines) == 12

    text, _, peak = door(*asked, "interactive=true", "prompt=abc", f"memory_budget={budget + 60}MiB", given="/quit\n")
    assert peak <= (budget + 60) * MiB

    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("abc", "abc", "some of the", "k")))
    _, said, peak = door(*asked, f"prompts={prompts}", f"output={output}", f"memory_budget={budget + 20}MiB")
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert peak <= (budget + 20) * MiB and layers(said)[1]
    assert all("abc" + line["text"] == expected.removesuffix("\n") for line in lines[:2])
    # The prompts are read in one pass, and each of the other 11 gives every sequence a token.
    written = [len(line["tokens"]) + (line["finish_reason"] == "end_of_text") for line in lines]
    speed = re.search(r"([\d.]+) s a pass, ([\d.e+]+) tok/s", said)
    assert max(written) == 12 and float(speed[1]) * float(speed[2]) == pytest.approx(sum(written) / 12, rel=0.05)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantised_model_is_made_within_the_budget_and_read_from_its_copy(large, tmp_path, kind):
    asked = (f"checkpoint={large}", "max_new_tokens=12", "temperature=0", "device=cpu", "prompt=abc", f"dtype={kind}")
    expected, _, _ = door(*asked)
    asked += (f"quantized_dir={tmp_path}",)
    budget = 700
    text, said, peak = door(*asked, f"memory_budget={budget}MiB")
    assert f"quantising to {kind} once" in said and text == expected and peak <= budget * MiB
    text, said, peak = door(*asked, f"memory_budget={budget}MiB")
    assert "quantising" not in said and text == expected and peak <= budget * MiB


@torch.inference_mode()
def test_guesses_of_a_draft_are_checked_in_one_pass(large, capsys, exact_budgets):
    """The draft is the model itself, so all of its guesses are right."""
    asked = dict(checkpoint=str(large), prompt="abc", max_new_tokens=12, temperature=0, device="cpu", dtype="fp32")
    run(SampleConfig(**asked))
    expected = capsys.readouterr().out
    run(SampleConfig(**asked, memory_budget="60MB", draft=str(large), n_draft=5))
    found = capsys.readouterr()
    assert found.out == expected
    seconds, rate = (float(re.search(rf"([\d.e-]+) {unit}", found.err)[1]) for unit in ("s a pass", "tok/s"))
    assert "100% of" in found.err and seconds * rate > 2  # tokens a pass


def test_several_continuations_share_their_passes(large, capsys, exact_budgets):
    asked = dict(checkpoint=str(large), prompt="abc", max_new_tokens=6, device="cpu", n=3, logprobs=1, seed=4)
    run(SampleConfig(**asked, dtype="fp32"))
    expected = capsys.readouterr().out
    run(SampleConfig(**asked, memory_budget="60MB"))
    found = capsys.readouterr()
    assert found.out == expected and found.out.count("--- seed=") == 3
    seconds, rate = (float(re.search(rf"([\d.e-]+) {unit}", found.err)[1]) for unit in ("s a pass", "tok/s"))
    assert seconds * rate == pytest.approx(3, rel=0.05)  # tokens a pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_budget": "9999TiB"}, "is more than this machine has"),
        ({"memory_budget": "a lot"}, "memory_budget=a lot must be a number of bytes"),
        ({"memory_budget": "1M"}, "is the least for"),
        ({"memory_budget": "1M", "dtype": "int4"}, "too small to quantise a layer at a time to int4"),
        ({"memory_budget": "1G", "dtype": "fp16"}, "so leave dtype out"),
        ({"memory_budget": "1G", "compile": True}, "leave compile"),
        ({"quantized_dir": "here"}, "add memory_budget, or leave it out"),
        ({"gpu_memory_budget": "1G"}, "gpu_memory_budget=1G needs a GPU and the device is cpu"),
    ],
)
def test_what_cannot_be_is_told(large, changes, words):
    with pytest.raises(UserError, match=words):
        run(SampleConfig(checkpoint=str(large), prompt="abc", device="cpu", **changes))
