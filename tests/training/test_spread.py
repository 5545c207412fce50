"""Several ranks train what one trains, tiny models with gloo; what befalls one of them befalls the job."""

import dataclasses
from pathlib import Path

import pytest
import torch
from ranks import Accident, Ranks, metrics

import gptstar
from gptstar.errors import UserError
from gptstar.pretrained.native import find_checkpoint, list_checkpoints
from gptstar.training.config import TrainConfig
from gptstar.training.loop import train
from gptstar.training.trainer import NonFiniteLoss
from gptstar.training.world import LostRank
from support import tiny_model

KEYS = ("loss", "validation_loss", "final_loss", "grad_norm")
CLOSE = 2e-5  # relative, fp32: sums are taken in another order, and AdamW divides by small numbers


def changed(config: TrainConfig, name: str, **trainer) -> TrainConfig:
    options = dataclasses.replace(config.trainer, **trainer)
    return dataclasses.replace(config, trainer=options, run_dir=str(Path(config.run_dir).with_name(name)))


def same_curve(one: str, other: str, tolerance: float = CLOSE) -> None:
    for key, a, b in zip(KEYS, metrics(one, *KEYS), metrics(other, *KEYS), strict=True):
        assert a == pytest.approx(b, rel=tolerance), key


@pytest.mark.parametrize(
    ("parallel", "n", "options"),
    [
        ("ddp", 2, {"microbatch": 1}),
        ("ddp", 4, {}),
        ("fsdp", 1, {}),
        ("fsdp", 2, {"microbatch": 1}),
        ("fsdp", 4, {"recompute": 1}),
    ],
)
def test_the_same_global_batch_gives_the_same_run_on_any_number_of_ranks(ranks, train_config, parallel, n, options):
    train(train_config)
    config = changed(train_config, "many", parallel=parallel, **options)
    outcomes = ranks().train(config, n)
    assert [type(o).__name__ for o in outcomes] == ["Outcome"] * n, outcomes
    assert outcomes[0].sample and all(o.sample is None for o in outcomes[1:])
    same_curve(train_config.run_dir, config.run_dir)
    model, _ = gptstar.load(config.run_dir)
    for (name, a), b in zip(gptstar.load(train_config.run_dir)[0].named_parameters(), model.parameters(), strict=True):
        # A gradient of nothing but rounding still moves a weight by the learning rate.
        assert (a - b).abs().max() < 2e-3, name


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_other_optimizers_on_two_ranks(ranks, train_config, optimizer):
    settings = dataclasses.replace(train_config.optimizer, name=optimizer, lr=1e-4)
    one = dataclasses.replace(train_config, optimizer=settings)
    train(one)
    config = changed(one, "many", parallel="ddp" if optimizer == "muon" else "fsdp")
    assert ranks().train(config, 2)[0].final
    same_curve(one.run_dir, config.run_dir, 5e-4)  # Lion moves by signs


@pytest.mark.parametrize("changes", [{}, {"block": "sequential", "position": "rotary", "norm": "rmsnorm"}])
def test_half_precision_in_shards_is_half_precision_on_one_device(ranks, train_config, changes):
    one = changed(dataclasses.replace(train_config, model=tiny_model(**changes)), "half", precision="bf16")
    train(one)
    config = changed(one, "many", parallel="fsdp")
    assert ranks().train(config, 2)[0].final
    same_curve(one.run_dir, config.run_dir, 5e-3)


@pytest.mark.parametrize(("parallel", "n", "options"), [("ddp", 2, {}), ("fsdp", 4, {"recompute": 2})])
def test_what_passes_layers_by_passes_ranks_too(ranks, train_config, parallel, n, options):
    """Pairs of weights, fewer numbers than some ranks there are, and values with gradients from several layers."""
    model = tiny_model(n_layer=3, value_residual=True, embedding_shortcut=True, zero_init_residual=True)
    one = dataclasses.replace(train_config, model=model)
    train(one)
    config = changed(one, "many", parallel=parallel, **options)
    assert ranks().train(config, n)[0].final
    same_curve(one.run_dir, config.run_dir)
    found, expected = (gptstar.load(c.run_dir)[0] for c in (config, one))
    for (name, a), b in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert (a - b).abs().max() < 2e-3, name
    assert expected.shortcut["1"].weight.tolist() != [1, 0] and found.blocks[1].attention.value_mix.weight.requires_grad


def test_a_run_goes_on_with_another_number_of_ranks_and_another_layout(ranks, train_config):
    train(changed(train_config, "undisturbed", max_steps=16, checkpoint_every=4))
    run = changed(train_config, "moved", checkpoint_every=4)
    stages = [("fsdp", 4, 4), ("fsdp", 2, 8), ("none", 1, 12), ("fsdp", 2, 14), ("ddp", 2, 16)]
    for parallel, n, steps in stages:
        # The schedule knows the whole budget; the run is stopped by a signal before its end.
        config = changed(run, "moved", parallel=parallel, max_steps=16)
        resumed = config.run_dir if list_checkpoints(Path(config.run_dir)) else None
        config = dataclasses.replace(config, resume=resumed)
        accident = Accident("signal", rank=n - 1, step=steps - 1) if steps < 16 else None
        outcomes = ranks().train(config, n, accident)
        assert {o.step for o in outcomes} == {steps}, outcomes
        assert (outcomes[0].interrupted is not None) == (steps < 16)
    undisturbed = Path(train_config.run_dir).with_name("undisturbed")
    (a, norm_a, end_a), (b, norm_b, end_b) = (
        metrics(r, "loss", "grad_norm", "final_loss") for r in (undisturbed, run.run_dir)
    )
    assert len(b) == 16 and b == pytest.approx(a, rel=5 * CLOSE) and end_b == pytest.approx(end_a, rel=5 * CLOSE)
    assert norm_b == pytest.approx(norm_a, rel=1e-3)


def test_a_checkpoint_in_shards_is_the_model_at_its_step_although_training_went_on(ranks, train_config):
    config = changed(train_config, "shards", parallel="fsdp", checkpoint_every=4, keep_last=5)
    ranks().train(config, 2)
    plain = changed(train_config, "plain", checkpoint_every=4, keep_last=5)
    train(plain)
    for step in (4, 8):
        found, expected = (gptstar.load(f"{c.run_dir}/checkpoints/step-{step:08d}")[0] for c in (config, plain))
        tokens = torch.arange(20)[None]
        assert torch.allclose(found(tokens), expected(tokens), atol=2e-3)
    first, last = (gptstar.load(p)[0] for p in list_checkpoints(Path(config.run_dir)))
    assert not torch.equal(first.embedding.weight, last.embedding.weight)


def test_a_damaged_shard_is_named(ranks, train_config):
    config = changed(train_config, "shards", parallel="fsdp")
    ranks().train(config, 2)
    folder = find_checkpoint(config.run_dir)
    shard = next((folder / "distributed").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=r"step-00000008.*damaged"):
        gptstar.load(config.run_dir)
    (folder / "distributed" / ".metadata").write_bytes(b"x")
    with pytest.raises(UserError, match=r"step-00000008.*damaged"):
        gptstar.load(config.run_dir)


def test_a_signal_to_one_rank_saves_and_ends_all(ranks, train_config):
    config = changed(train_config, "many", parallel="fsdp")
    outcomes = ranks().train(config, 2, Accident("signal", rank=1, step=5))
    assert [o.step for o in outcomes] == [6, 6] and all(o.interrupted for o in outcomes)
    assert list_checkpoints(Path(config.run_dir))[-1].name == "step-00000006"


def test_a_nan_on_one_rank_ends_all_with_the_last_good_checkpoint(ranks, train_config):
    config = changed(train_config, "many", parallel="ddp")
    outcomes = ranks().train(config, 2, Accident("nan", rank=1, step=6))
    assert all(isinstance(o, NonFiniteLoss) for o in outcomes), outcomes
    assert "step 7: loss nan" in str(outcomes[0]) and "last good checkpoint is" in str(outcomes[0])
    assert "step-00000004" in str(outcomes[0])


@pytest.mark.parametrize(("kind", "parallel"), [("exit", "fsdp"), ("hang", "ddp")])
@pytest.mark.slow
def test_the_others_notice_a_rank_that_dies_or_hangs(train_config, kind, parallel):
    own = Ranks(2)
    try:
        config = changed(train_config, "many", parallel=parallel, timeout=4.0, max_steps=40)
        pipe = own.workers[0][1]
        if kind == "hang":  # it will never answer
            own.workers[1][1].poll = lambda seconds: False
        outcomes = own.train(config, 2, Accident(kind, rank=1, step=30))
        assert isinstance(outcomes[0], LostRank), outcomes
        assert outcomes[1] is None and not pipe.poll(0)
        assert "rank 0 of 2 lost another one, or waited 4 s for it" in str(outcomes[0])
        last = list_checkpoints(Path(config.run_dir))[-1]
        assert gptstar.load(last)[0] and 8 <= int(last.name.removeprefix("step-")) <= 28
    finally:
        own.close()


@pytest.mark.parametrize(
    ("changes", "n", "message"),
    [
        ({"parallel": "none"}, 2, "trainer.parallel=none, but 2 processes were started"),
        ({"batch_size": 3}, 2, "trainer.batch_size=3 cannot be divided among 2 ranks"),
        ({"microbatch": 4}, 2, "trainer.microbatch=4 does not divide the 2 sequences of a rank"),
        ({"parallel": "fsdp", "precision": "fp16"}, 2, "trainer.precision=fp16"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(ranks, train_config, changes, n, message):
    config = changed(train_config, "refused", **changes)
    outcomes = ranks().train(config, n)
    assert all(isinstance(o, UserError) and message in str(o) for o in outcomes), outcomes
    assert not Path(config.run_dir).exists()


def test_an_optimizer_of_whole_matrices_is_refused_in_shards(ranks, train_config):
    muon = dataclasses.replace(train_config, optimizer=dataclasses.replace(train_config.optimizer, name="muon"))
    outcomes = ranks().train(changed(muon, "refused", parallel="fsdp"), 2)
    assert all("optimizer=muon needs whole matrices" in str(o) for o in outcomes)


def test_several_ranks_need_a_launcher(train_config):
    with pytest.raises(UserError, match=r"trainer.parallel=fsdp needs several processes: start it with torchrun"):
        train(changed(train_config, "refused", parallel="fsdp"))
