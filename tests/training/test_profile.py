import dataclasses
import json
from pathlib import Path

import pytest
import torch

from gptstar.model.describe import components, flops_per_token
from gptstar.model.transformer import GPT
from gptstar.training.loop import train
from gptstar.training.metrics import TIMING_KEYS, read_metrics
from gptstar.training.profile import Part, profile_model, write_table
from support import tiny_model


@pytest.mark.parametrize("block", ["sequential", "parallel_shared"])
def test_flops_are_those_of_the_formula(block):
    config = tiny_model(block=block, position="alibi")
    model = GPT(config)
    tokens = torch.randint(0, 50, (2, 16))
    parts = profile_model(model, model, tokens, tokens)
    by_formula = components(config, 16)
    matrices = sum(c.flops for c in by_formula if c.name not in ("head", "mixing of tokens"))
    mixing = sum(c.flops for c in by_formula if c.name == "mixing of tokens")
    assert parts["forward: matrix products"].flops == 32 * matrices
    assert parts["forward: attention"].flops == 32 * mixing
    assert parts["head and loss"].flops == 3 * 32 * 2 * config.padded_vocab_size * config.d_model
    whole = sum(part.flops for part in parts.values())
    assert whole == pytest.approx(32 * flops_per_token(config, 16), rel=0.1)  # which counts norms and biases too
    assert all(part.seconds > 0 for part in parts.values())
    assert all(parameter.grad is None for parameter in model.parameters()) and "hidden" not in vars(model)


def test_the_roofline_is_the_slower_of_the_two():
    assert Part(1.0, flops=100.0, bytes=1.0).roofline(peak=10.0, bandwidth=1.0) == 10.0
    assert Part(1.0, flops=1.0, bytes=100.0).roofline(peak=10.0, bandwidth=1.0) == 100.0


def test_a_page_says_it_all(tmp_path):
    parts = {"a": Part(0.003, 2e9, 1e6), "b": Part(0.001)}
    page = write_table(parts, 0.005, 1e12, 1e9, "title", tmp_path)
    assert (tmp_path / "profile.md").read_text() == page
    assert "| a | 3.00 | 75.0% | 2.0 | 1.0 | 2.00 | 1.5 |" in page and "| b | 1.00 | 25.0% |" in page


def test_a_profiled_run_is_the_run_without(train_config, tmp_path):
    def lines(run):
        return [
            {k: v for k, v in line.items() if k not in TIMING_KEYS}
            for line in read_metrics(Path(run) / "metrics.jsonl")
        ]

    options = dataclasses.replace(train_config.trainer, profile=True, microbatch=2)
    told = dataclasses.replace(train_config, run_dir=str(tmp_path / "profiled"), trainer=options)
    train(told)
    plain = dataclasses.replace(
        train_config,
        run_dir=str(tmp_path / "plain"),
        trainer=dataclasses.replace(train_config.trainer, microbatch=2),
    )
    train(plain)
    assert lines(told.run_dir) == lines(plain.run_dir)
    page = (tmp_path / "profiled" / "profile" / "profile.md").read_text()
    for part in ("data", "attention", "matrix products", "head and loss", "backward", "optimizer"):
        assert part in page
    assert json.loads((tmp_path / "profiled" / "profile" / "trace.json").read_text())["traceEvents"]
