"""Runs that begin with a trained model's weights."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

import gptstar
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.evaluation.command import EvaluateConfig, evaluate
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import load_weights
from gptstar.training.loop import train
from gptstar.training.optimizers import OptimizerConfig, build_optimizer
from gptstar.training.start import Origin, begin_optimizer_with, begin_with, read_origin
from gptstar.training.trainer import Trainer
from support import tiny_model

TOKENIZER = TokenizerConfig(name="init_from", source="init_from")


def steps(config, n, **changes):
    trainer = dataclasses.replace(config.trainer, max_steps=n, **changes)
    return dataclasses.replace(config, trainer=trainer)


@pytest.fixture
def first(train_config):
    return train(train_config).run


def test_a_run_begins_with_the_weights_and_the_tokenizer_of_another(train_config, first, tmp_path):
    config = dataclasses.replace(
        steps(train_config, 4), tokenizer=TOKENIZER, init_from=str(first), run_dir=str(tmp_path / "second")
    )
    config.optimizer.lr = 1e-12
    second = train(config)
    again = evaluate(EvaluateConfig(checkpoint=str(second.run), tasks=["held_out"], device="cpu"))
    assert again.rows[0]["metrics"]["loss"]["value"] == pytest.approx(second.final.loss, rel=1e-6)
    _, expected = gptstar.load(first)
    model, actual = gptstar.load(second.run)
    assert actual.fingerprint() == expected.fingerprint()
    for name, value in gptstar.load(first)[0].state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-8)
    # The run keeps the tokenizer: its source may go.
    moved = first.rename(tmp_path / "moved")
    again = train(dataclasses.replace(steps(config, 6), resume=str(second.run)))
    assert again.step == 6 and moved.is_dir()


def test_only_adapters_norms_and_embeddings_move_when_the_rest_is_frozen(train_config, first, tmp_path):
    config = dataclasses.replace(
        steps(train_config, 4, trainable="adapters"),
        model=dataclasses.replace(train_config.model, adapter_width=4),
        tokenizer=TOKENIZER,
        init_from=str(first),
        run_dir=str(tmp_path / "b"),
    )
    done = train(config)
    before, after = gptstar.load(first)[0].state_dict(), gptstar.load(done.run)[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "norm" in name or name == "embedding.weight"}
    assert all(after[name].any() for name in after if "adapter" in name and name.endswith("weight"))
    assert train(dataclasses.replace(steps(config, 6), resume=str(done.run))).step == 6
    with pytest.raises(UserError, match=r"trainer\.trainable 'adapters' -> 'all'"):
        train(dataclasses.replace(steps(config, 8, trainable="all"), resume=str(done.run)))


def test_what_does_not_fit_is_listed_before_any_work(train_config, first, tmp_path):
    config = dataclasses.replace(train_config, tokenizer=TOKENIZER, init_from=str(first), run_dir=str(tmp_path / "b"))
    with pytest.raises(UserError, match=r"has embeddings for its own tokenizer"):
        train(dataclasses.replace(config, tokenizer=train_config.tokenizer))
    wider = dataclasses.replace(config, model=tiny_model(d_ff=64))
    with pytest.raises(UserError, match=r"does not fit the model: .*feedforward.up.weight is \(48, 32\), not \(64"):
        train(wider)
    untied = dataclasses.replace(config, model=tiny_model(tie_head=False))
    with pytest.raises(UserError, match=r"head.weight is missing"):
        train(untied)
    with pytest.raises(UserError, match="trainable=adapters needs adapters in the model"):
        train(steps(config, 4, trainable="adapters"))
    with pytest.raises(UserError, match="set init_from"):
        train(dataclasses.replace(train_config, tokenizer=TokenizerConfig(source="init_from")))
    assert not (tmp_path / "b").exists()


def test_a_full_state_archives_moments_continue_as_adamw_would_have(tmp_path):
    """One step of ours, fused, equals one step of the plain optimizer that wrote the archive."""
    torch.manual_seed(0)
    config = tiny_model(vocab_size=50257, n_head=2, d_head=16)
    model = GPT(config)
    theirs = their_names(model.state_dict())
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in theirs.items()}
    plain = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for p in parameters.values()],
        lr=1e-3,
        betas=(0.9, 0.95),
    )
    for _ in range(3):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        plain.step()
    state = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    slopes = {f"blocks.{n}.attn.slopes": torch.tensor([1 / 16, 1 / 256]) for n in range(2)}
    torch.save(
        {
            "state_dict": {**state, **slopes, "lm_head.weight": state["wte.weight"]},
            "optimizer": plain.state_dict(),
            "step": 3,
            "epoch": 0,
            "run_id": "x",
            "validation_loss": 1.0,
            "best_val": 1.0,
            "scaler": {},
        },
        tmp_path / "9_complete_state.pth.tar",
    )
    import json

    vocab = {chr(i + 200): i for i in range(50256)} | {"<|endoftext|>": 50256}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")

    origin = read_origin(str(tmp_path / "9_complete_state.pth.tar"), config)
    begin_with(origin, model)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3))
    begin_optimizer_with(origin, model, optimizer)
    tokens = torch.randint(0, 50257, (2, 16))
    model(tokens, tokens).backward()
    shadow = GPT(config)
    for a, b in zip(shadow.parameters(), model.parameters(), strict=True):
        a.data.copy_(b.grad)
    for name, gradient in their_names(shadow.state_dict()).items():
        parameters[name].grad = gradient.clone()
    optimizer.step()
    plain.step()
    for name, value in their_names(model.state_dict()).items():
        torch.testing.assert_close(value, parameters[name].detach(), rtol=1e-6, atol=1e-8, msg=name)

    (tmp_path / "bad").mkdir()
    broken = torch.load(tmp_path / "9_complete_state.pth.tar", weights_only=True)
    broken["optimizer"]["state"][1] = {"step": 1, "state1": torch.zeros(3)}
    torch.save(broken, tmp_path / "broken.pth.tar")
    with pytest.raises(UserError, match=r"its optimizer state for blocks\.0\.ln1\.weight is not AdamW's"):
        read_origin(str(tmp_path / "broken.pth.tar"), config)


def their_names(state: dict) -> dict:
    """Our state dict under the archive's names, in the order of the original's modules."""
    names = {"embedding.weight": "wte.weight"}
    for n in range(2):
        for kind in ("weight", "bias"):
            names[f"blocks.{n}.norm.{kind}"] = f"blocks.{n}.ln1.{kind}"
        for ours, part in (
            ("attention.key", "attn.key"),
            ("attention.query", "attn.query"),
            ("attention.value", "attn.value"),
            ("attention.output", "attn.fc_resid"),
            ("feedforward.up", "mlp.fc1"),
            ("feedforward.down", "mlp.fc_resid"),
        ):
            for kind in ("weight", "bias"):
                names[f"blocks.{n}.{ours}.{kind}"] = f"blocks.{n}.{part}.{kind}"
    names |= {"norm.weight": "norm.weight", "norm.bias": "norm.bias"}
    return {theirs: state[ours] for ours, theirs in names.items()}


def test_moments_of_frozen_parameters_are_left_out():
    model = GPT(tiny_model())
    model.norm.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig())
    moments = {
        name: {"step": torch.tensor(5.0), "exp_avg": value.clone(), "exp_avg_sq": value.square()}
        for name, value in model.state_dict().items()
    }
    begin_optimizer_with(Origin({}, None, moments), model, optimizer)  # type: ignore[arg-type]
    assert model.norm.weight not in optimizer.state
    assert torch.equal(optimizer.state[model.embedding.weight]["exp_avg"], model.embedding.weight)
    assert optimizer.state[model.blocks[0].inputs.weight]["step"] == 5


def test_a_checkpoint_without_its_training_folder_is_an_origin_too(train_config, first, tmp_path):
    import shutil

    folder = tmp_path / "weights_only"
    shutil.copytree(next((first / "checkpoints").iterdir()), folder)
    shutil.rmtree(folder / "training")
    model = GPT(train_config.model)
    begin_with(read_origin(str(folder), train_config.model), model)
    other = GPT(train_config.model)
    load_weights(folder, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_source_is_not_kept_in_memory_for_the_run(train_config, first, tmp_path, monkeypatch):
    alive = []

    def count(*arguments):
        gc.collect()
        alive.append(sum(isinstance(thing, Origin) for thing in gc.get_objects()))

    monkeypatch.setattr(Trainer, "run_to_the_end", count)
    train(dataclasses.replace(train_config, tokenizer=TOKENIZER, init_from=str(first), run_dir=str(tmp_path / "b")))
    assert alive == [0]
