"""Models of shapes alone."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from gptstar.configuration import preset
from gptstar.model.meta import on_meta, with_storage
from gptstar.model.transformer import GPT

ROOT = Path(__file__).resolve().parents[2]


def test_shapes_are_there_and_nothing_is_drawn():
    config = preset("star_3m", n_layer=2, vocab_size=64)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with on_meta():
        model = GPT(config)
        for fill in (nn.init.trunc_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.zeros_):
            weight = torch.empty(3, 4)
            assert fill(weight) is weight
        assert torch.ones(2).uniform_().device.type == "meta"
    assert torch.equal(torch.get_rng_state(), before)
    real = GPT(config)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert shapes == {name: (tensor.shape, tensor.dtype) for name, tensor in real.state_dict().items()}
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_storage_comes_with_type_and_mode_kept():
    with on_meta():
        model = GPT(preset("star_3m", n_layer=1, vocab_size=64)).to(torch.float16).eval()
    filled = with_storage(model, "cpu")
    assert filled is model and not model.training
    assert all(p.device.type == "cpu" and p.dtype == torch.float16 and p.requires_grad for p in model.parameters())


def test_a_model_is_loaded_and_sampled_without_torchs_compiler(tmp_path):
    code = """
import sys, gptstar, torch
from gptstar.configuration import preset
from gptstar.model.meta import on_meta, with_storage
with on_meta():
    model = gptstar.GPT(preset("star_3m", n_layer=1, vocab_size=64))
model = with_storage(model, "cpu").eval()
model.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()})
with torch.inference_mode():
    assert model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
assert not {"torch._dynamo", "sympy", "torch.distributed.checkpoint"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
