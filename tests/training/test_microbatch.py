import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from gptstar.training import microbatch as module
from gptstar.training.loop import train
from gptstar.training.metrics import TIMING_KEYS, read_metrics
from gptstar.training.microbatch import largest_useful

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def clock(monkeypatch):
    """Time and memory that tests set."""

    class Clock:
        now, used, free = 0.0, 1.0, 100 * 2**30

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(module, "peak_gib", lambda device: Clock.used)
    monkeypatch.setattr(module, "free_memory", lambda device: Clock.free)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Clock


@pytest.mark.parametrize(("per_sequence", "found"), [({1: 2.0, 2: 1.5, 4: 1.2}, 4), ({1: 2.0, 2: 1.99, 4: 1.98}, 1)])
def test_a_cpu_takes_the_smallest_that_is_as_fast_as_any(clock, per_sequence, found):
    sizes = []

    def work(size):
        sizes.append(size)
        clock.now += size * per_sequence.get(size, min(per_sequence.values()))

    assert largest_useful(work, 64, CPU) == found
    assert max(sizes) < 64  # it does not try what can be no better


def test_a_cpu_stops_before_memory_is_short(clock):
    clock.free, sizes = 10 * 2**30, []

    def work(size):
        sizes.append(size)
        clock.now += 1.0  # twice as many cost nothing more
        clock.used = max(clock.used, 1.0 + size)

    assert largest_useful(work, 64, CPU) == max(sizes) == 8  # 16 would need more than 0.8 x 10 GiB


def test_a_gpu_takes_the_largest_that_fits(clock):
    def work(size):
        if size > 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert largest_useful(work, 48, GPU) == 12
    assert largest_useful(work, 7, GPU) == 7
    with pytest.raises(torch.OutOfMemoryError):
        largest_useful(lambda size: work(100), 48, GPU)


def test_a_run_finds_one_and_keeps_it(train_config, tmp_path):
    def lines(config):
        return [
            {k: v for k, v in line.items() if k not in TIMING_KEYS}
            for line in read_metrics(Path(config.run_dir) / "metrics.jsonl")
        ]

    auto = dataclasses.replace(train_config, trainer=dataclasses.replace(train_config.trainer, microbatch="auto"))
    train(auto)
    kept = yaml.safe_load((Path(auto.run_dir) / "config.yaml").read_text())["trainer"]["microbatch"]
    assert kept in (1, 2, 4)
    told = dataclasses.replace(
        train_config,
        run_dir=str(tmp_path / "told"),
        trainer=dataclasses.replace(train_config.trainer, microbatch=kept),
    )
    train(told)
    assert lines(auto) == lines(told)  # looking for it leaves no trace in weights or random state


def test_what_did_not_fit_leaves_no_gradients(train_config, monkeypatch):
    from gptstar.model.transformer import GPT
    from gptstar.training import loop

    real, seen = GPT.forward, []

    def short_of_memory(self, tokens, targets=None, **others):
        out = real(self, tokens, targets, **others)
        if targets is not None and len(tokens) == 4 and not seen:
            seen.append(len(tokens))
            out.register_hook(lambda gradient: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
        return out

    def checked(self):
        assert seen and self.microbatch < 4
        assert all(parameter.grad is None for parameter in self.state.model.parameters())
        raise KeyboardInterrupt

    monkeypatch.setattr(GPT, "forward", short_of_memory)
    monkeypatch.setattr(loop.Trainer, "_take_step", checked)
    options = dataclasses.replace(train_config.trainer, microbatch="auto")
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(train_config, trainer=options))
