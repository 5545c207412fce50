import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from gptstar.cpu import fast_linear
from gptstar.data.prepare import prepare
from gptstar.errors import UserError
from gptstar.evaluation.command import EvaluateConfig, evaluate
from gptstar.evaluation.held_out import held_out_loss
from gptstar.training.loop import train
from support import tiny_model

CPU = torch.device("cpu")


class Uniform:
    """A model that knows nothing; remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, inputs, targets):
        self.seen.append(inputs)
        return torch.tensor(math.log(300))


def test_a_uniform_model_needs_log_v_nats(train_config):
    stream = prepare(train_config.data, train_config.tokenizer).corpora["tiny"].validation
    result = held_out_loss(Uniform(), stream, 32, 3, CPU)
    assert result.loss == pytest.approx(math.log(300))
    assert result.bits_per_byte == pytest.approx(math.log2(300) * len(stream) / stream.split.bytes)


def test_every_window_is_read_once_or_a_few_spread_over_all(train_config):
    stream = prepare(train_config.data, train_config.tokenizer).corpora["tiny"].validation
    whole, some = Uniform(), Uniform()
    n = (len(stream) - 1) // 32
    assert held_out_loss(whole, stream, 32, 3, CPU).tokens == n * 32
    assert torch.equal(torch.cat(whole.seen).flatten(), torch.from_numpy(stream.read(0, n * 32)))
    assert held_out_loss(some, stream, 32, 3, CPU, max_tokens=4 * 32).tokens == 4 * 32
    starts = [int((torch.cat(whole.seen) == row).all(1).nonzero()[0]) for row in torch.cat(some.seen)]
    assert starts == [i * n // 4 for i in range(4)]


def test_a_partial_last_batch_counts_by_its_size(train_config):
    """Mean over windows, not over batches."""
    stream = prepare(train_config.data, train_config.tokenizer).corpora["tiny"].validation

    def model(inputs, targets):
        return inputs.double().mean()

    results = [held_out_loss(model, stream, 32, batch, CPU).loss for batch in (1, 7, 10_000)]
    assert results == pytest.approx([results[0]] * 3, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "fast"), [({}, True), ({"compiled": True}, False), ({"precision": "bf16"}, False)], ids=str
)
def test_products_are_the_fastest_unless_the_model_is_compiled_or_under_autocast(
    train_config, settings, fast, monkeypatch
):
    called = []
    monkeypatch.setattr(fast_linear, "_linear", lambda *args: called.append(args) or F.linear(*args))
    stream = prepare(train_config.data, train_config.tokenizer).corpora["tiny"].validation

    def model(inputs, targets):
        return F.linear(inputs.float(), torch.ones(1, 32)).mean()

    held_out_loss(model, stream, 32, 3, CPU, max_tokens=96, **settings)
    assert bool(called) == fast


def held_out(run, **settings):
    result = evaluate(EvaluateConfig(checkpoint=run, tasks=["held_out"], device="cpu", **settings))
    assert not result.failed
    return result.rows[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 10**6}, "max_length=1000000 is longer than the .* held-out tokens"),
        ({"max_length": 0}, "max_length=0 must be at least 1"),
    ],
)
def test_impossible_lengths_are_refused(train_config, settings, words):
    train(train_config)
    with pytest.raises(UserError, match=words):
        held_out(train_config.run_dir, **settings)


def test_learned_positions_limit_the_length(train_config):
    config = dataclasses.replace(train_config, model=tiny_model(position="learned"))
    train(config)
    with pytest.raises(UserError, match="max_length=64 is beyond the 32 tokens the model can read"):
        held_out(config.run_dir, max_length=64)


def test_evaluate_repeats_the_runs_own_final_figure(train_config):
    outcome = train(train_config)
    row = held_out(train_config.run_dir)
    values = {name: metric["value"] for name, metric in row["metrics"].items()}
    assert values | {"tokens": row["tokens"]} == pytest.approx(dataclasses.asdict(outcome.final), rel=1e-6)
    assert held_out(train_config.run_dir, batch_tokens="64")["metrics"]["loss"]["value"] == pytest.approx(
        outcome.final.loss, rel=1e-6
    )
