"""Ranks that compute every layer together train what one trains, tiny models with gloo."""

import dataclasses
from pathlib import Path

import pytest
import torch
from ranks import Accident, metrics

import gptstar
from gptstar.errors import UserError
from gptstar.pretrained.native import find_checkpoint
from gptstar.training.config import TrainConfig
from gptstar.training.loop import train
from gptstar.training.spread import check_spread
from gptstar.training.world import World
from support import tiny_model

KEYS = ("loss", "validation_loss", "final_loss", "grad_norm")
CLOSE = 2e-5  # relative, fp32: sums are taken in another order, and AdamW divides by small numbers


@pytest.fixture
def config(train_config) -> TrainConfig:
    return dataclasses.replace(train_config, model=tiny_model(n_head=4))


def changed(config: TrainConfig, name: str, **trainer) -> TrainConfig:
    options = dataclasses.replace(config.trainer, **trainer)
    return dataclasses.replace(config, trainer=options, run_dir=str(Path(config.run_dir).with_name(name)))


def same_curve(one: str, other: str, tolerance: float = CLOSE) -> None:
    for key, a, b in zip(KEYS, metrics(one, *KEYS), metrics(other, *KEYS), strict=True):
        assert len(a) and a == pytest.approx(b, rel=tolerance), key


def same_moments(found: Path, expected: Path) -> None:
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    a, b = (torch.load(f / "training" / "state.pt", weights_only=True)["optimizer"] for f in (found, expected))
    assert a["param_groups"] == b["param_groups"] and a["state"].keys() == b["state"].keys()
    for index, moments in b["state"].items():
        for key, value in moments.items():
            assert torch.allclose(a["state"][index][key], value, rtol=1e-3, atol=1e-4), (index, key)


NEOX = {"block": "parallel", "position": "rotary", "query_key_value_bias": False}
SHORTCUTS = {"value_residual": True, "embedding_shortcut": True, "n_layer": 3, "n_kv_head": 2}
LLAMA = {"block": "sequential", "position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "n_kv_head": 2}


@pytest.mark.parametrize(
    ("n", "model", "options"),
    [
        (2, {}, {"microbatch": 2, "profile": True}),
        (4, {}, {"microbatch": 1}),
        (2, NEOX, {"recompute": 1}),
        (2, SHORTCUTS, {"recompute": 2}),
        (2, LLAMA | {"qk_norm": True, "feedforward_bias": False, "tie_head": False}, {}),
        (4, LLAMA | {"block": "parallel_shared", "activation": "geglu", "sandwich_norm": True}, {}),
    ],
)
@pytest.mark.slow
def test_two_ranks_a_layer_are_one_device(ranks, config, n, model, options):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    train(config)
    many = changed(config, "many", tensor_parallel=2, **options)
    outcomes = ranks().train(many, n)
    assert [type(o).__name__ for o in outcomes] == ["Outcome"] * n, outcomes
    assert outcomes[0].sample and all(o.sample is None for o in outcomes[1:])
    same_curve(config.run_dir, many.run_dir)
    found, expected = (gptstar.load(c.run_dir)[0] for c in (many, config))
    for (name, a), (_, b) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        # A gradient of nothing but rounding still moves a weight by the learning rate.
        assert (a - b).abs().max() < 2e-3, name
    same_moments(*(find_checkpoint(c.run_dir) for c in (many, config)))


@pytest.mark.slow
def test_four_ranks_a_layer_within_documents_with_lion(ranks, config):
    lion = dataclasses.replace(config.optimizer, name="lion", lr=1e-4)
    data = dataclasses.replace(config.data, document_mask=True)
    config = dataclasses.replace(config, optimizer=lion, data=data)
    train(config)
    many = changed(config, "many", tensor_parallel=4, microbatch="auto")
    assert ranks().train(many, 4)[0].final
    same_curve(config.run_dir, many.run_dir, 5e-4)  # Lion moves by signs


def test_half_precision_is_half_precision_on_one_device(ranks, config):
    one = changed(config, "half", precision="bf16")
    train(one)
    many = changed(one, "many", tensor_parallel=2)
    assert ranks().train(many, 2)[0].final
    same_curve(one.run_dir, many.run_dir, 5e-3)


@pytest.mark.slow
def test_a_run_goes_on_with_every_other_layout(ranks, config):
    undisturbed = changed(config, "undisturbed", max_steps=10)
    train(undisturbed)
    stages = [("none", 1, 1, 2), ("ddp", 2, 2, 4), ("none", 1, 1, 6), ("fsdp", 2, 1, 8), ("ddp", 4, 2, 10)]
    run = None
    for parallel, n, n_tensor, steps in stages:
        stage = changed(config, "moved", parallel=parallel, tensor_parallel=n_tensor, max_steps=10)
        accident = Accident("signal", rank=n - 1, step=steps - 1) if steps < 10 else None
        outcomes = ranks().train(dataclasses.replace(stage, resume=run), n, accident)
        assert {o.step for o in outcomes} == {steps}, outcomes
        run = stage.run_dir
    (a, norm_a, end_a), (b, norm_b, end_b) = (
        metrics(r, "loss", "grad_norm", "final_loss") for r in (undisturbed.run_dir, run)
    )
    assert len(b) == 10 and b == pytest.approx(a, rel=5 * CLOSE) and end_b == pytest.approx(end_a, rel=5 * CLOSE)
    assert norm_b == pytest.approx(norm_a, rel=1e-3)


@pytest.mark.parametrize(
    ("n", "parallel", "changes", "model", "message"),
    [
        (3, "ddp", {}, {}, "trainer.tensor_parallel=2, but 3 processes were started: start a multiple of 2"),
        (1, "none", {}, {}, "trainer.tensor_parallel=2, but 1 process was started: start a multiple of 2 (torchrun"),
        (2, "fsdp", {}, {}, "not with trainer.parallel=fsdp: choose trainer.parallel=ddp"),
        (4, "ddp", {"batch_size": 3}, {}, "trainer.batch_size=3 cannot be divided among 2 groups of 2 ranks"),
        (4, "ddp", {"microbatch": 4}, {}, "trainer.microbatch=4 does not divide the 2 sequences of a rank"),
        (2, "ddp", {"precision": "fp16"}, {}, "trainer.precision=fp16 scales the loss"),
        (2, "ddp", {}, {"n_head": 3}, "model.n_head=3 cannot be divided among trainer.tensor_parallel=2 ranks"),
        (2, "ddp", {}, {"n_kv_head": 1}, "model.n_kv_head=1 cannot be divided"),
        (2, "ddp", {}, {"d_ff": 49}, "model.d_ff=49 cannot be divided"),
        (2, "ddp", {}, {"block": "gmlp", "position": "none"}, "not model.block=gmlp: choose"),
        (2, "ddp", {}, {"layer_positions": ["alibi", "relative"]}, "model.position=relative learns a bias"),
        (2, "ddp", {}, {"position": "alibi_learned"}, "model.position=alibi_learned learns a bias for each head"),
        (2, "ddp", {}, {"adapter_width": 4}, "model.adapter_width=4: adapters need trainer.tensor_parallel=1"),
    ],
)
def test_what_cannot_be_divided_is_refused(config, n, parallel, changes, model, message):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **model))
    config = changed(config, "refused", **changes)
    with pytest.raises(UserError) as refusal:
        check_spread(config, World(torch.device("cpu"), parallel, 0, n, n_tensor=2))
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", ["muon", "adafactor", "adamw_8bit"])
def test_an_optimizer_of_whole_matrices_is_refused(config, name):
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, name=name))
    with pytest.raises(UserError, match=f"optimizer={name} needs whole matrices"):
        check_spread(config, World(torch.device("cpu"), "ddp", 0, 2, n_tensor=2))


def test_all_ranks_refuse_before_anything_is_written(ranks, config):
    config = changed(config, "refused", tensor_parallel=2, parallel="fsdp")
    outcomes = ranks().train(config, 2)
    assert all(isinstance(o, UserError) and "trainer.tensor_parallel=2" in str(o) for o in outcomes), outcomes
    assert not Path(config.run_dir).exists()
