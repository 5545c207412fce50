"""Functions that torch.compile takes as constants."""

import subprocess
import sys
from pathlib import Path

import torch

from gptstar.model.compiling import constant

ROOT = Path(__file__).resolve().parents[2]


def test_a_function_is_marked_as_torch_marks_it():
    assert vars(constant(lambda: 1)) == vars(torch.compiler.assume_constant_result(lambda: 1)) != {}


def test_a_graph_takes_the_result_in():
    calls = []

    @constant
    def three() -> int:
        calls.append(torch.compiler.is_compiling())
        return 3

    compiled = torch.compile(lambda x: x + three(), backend="eager", fullgraph=True)
    assert [compiled(torch.tensor(i)).item() for i in range(3)] == [3, 4, 5]
    assert len(calls) == 1


def test_a_model_is_imported_made_and_run_without_torchs_compiler():
    code = """
import sys, gptstar, torch
from gptstar.configuration import preset
model = gptstar.GPT(preset("star_3m", n_layer=1, vocab_size=64))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
