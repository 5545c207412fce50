"""The loop end to end, on a corpus and a model that train in a second."""

import dataclasses
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.evaluation.command import EvaluateConfig, evaluate
from gptstar.model.folded import FoldedAttention
from gptstar.training import trainer
from gptstar.training.config import LoggerConfig, TrainConfig
from gptstar.training.loop import train
from gptstar.training.metrics import TIMING_KEYS, read_metrics
from gptstar.training.optimizers import OptimizerConfig
from gptstar.training.schedules import ScheduleConfig
from gptstar.training.trainer import NonFiniteLoss, Trainer
from support import tiny_model, write_corpus


def changed(config: TrainConfig, **trainer) -> TrainConfig:
    return dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **trainer))


def steps(run: str) -> list[dict]:
    lines = read_metrics(Path(run) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMING_KEYS} for line in lines]


def test_a_run_leaves_everything_it_promises(train_config):
    outcome = train(train_config)
    run = Path(train_config.run_dir)
    assert outcome.step == 8 and outcome.interrupted is None
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.log", "loss.png", "checkpoints"} <= names
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    (environment,) = json.loads((run / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["cpu"] and "commit" in environment
    lines = read_metrics(run / "metrics.jsonl")
    train_lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train_lines] == list(range(1, 9))
    assert train_lines[-1]["tokens"] == 8 * 4 * 32
    assert all(line["grad_norm"] > 0 and line["lr"] > 0 for line in train_lines)
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8]
    assert lines[-1]["final_loss"] == outcome.final.loss
    assert "sample" in (run / "train.log").read_text()


@pytest.mark.parametrize("vocab_size", [300, 400])
def test_a_model_with_embeddings_for_more_tokens_than_there_are_is_remarked_on(train_config, vocab_size):
    config = dataclasses.replace(train_config, model=tiny_model(vocab_size=vocab_size))
    train(config)
    said = (Path(config.run_dir) / "train.log").read_text()
    assert ("100 of the 400 embeddings stand for no token" in said) == (vocab_size == 400)


def test_reported_speed_is_tokens_over_seconds_and_mfu_its_share_of_the_peak(train_config):
    train(train_config)
    from gptstar.model.describe import flops_per_token

    for line in read_metrics(Path(train_config.run_dir) / "metrics.jsonl"):
        if "loss" in line:
            assert line["tokens_per_second"] == pytest.approx(4 * 32 / line["seconds"], rel=1e-3)
            mfu = line["tokens_per_second"] * flops_per_token(train_config.model, 32) / 1e11
            assert line["mfu"] == pytest.approx(mfu, abs=1e-3)


def test_bits_per_byte_is_total_information_over_total_bytes(train_config):
    outcome = train(train_config)
    model, tokenizer = gptstar.load(train_config.run_dir)
    from gptstar.data.prepare import prepare

    (corpus,) = prepare(train_config.data, train_config.tokenizer).corpora.values()
    tokens = torch.from_numpy(corpus.validation.read(0, len(corpus.validation)))
    n = (len(tokens) - 1) // 32
    nats = model(tokens[: n * 32].view(n, 32), tokens[1 : n * 32 + 1].view(n, 32)).item()
    assert outcome.final.loss == pytest.approx(nats, rel=1e-6)
    text = tokenizer.decode(t for t in tokens.tolist() if t != tokenizer.eot_id)
    expected = nats * len(tokens) / math.log(2) / len(text.encode())
    assert outcome.final.bits_per_byte == pytest.approx(expected, rel=1e-6)


def test_the_same_seed_twice_gives_the_same_metrics_and_another_seed_does_not(train_config, tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = dataclasses.replace(changed(train_config, seed=seed), run_dir=str(tmp_path / name))
        train(config)
        runs.append(steps(config.run_dir))
    assert runs[0] == runs[1] and runs[0] != runs[2]


def test_accumulated_microbatches_equal_one_batch(train_config, tmp_path):
    losses = []
    for name, micro in (("a", None), ("b", 1), ("c", 2)):
        config = dataclasses.replace(changed(train_config, microbatch=micro), run_dir=str(tmp_path / name))
        train(config)
        losses.append([line["loss"] for line in steps(config.run_dir) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_like_fp32(train_config, tmp_path, precision):
    losses = {}
    for name in ("fp32", precision):
        config = dataclasses.replace(changed(train_config, precision=name), run_dir=str(tmp_path / name))
        train(config)
        losses[name] = [line["loss"] for line in steps(config.run_dir) if "loss" in line]
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses[precision] != losses["fp32"]


@pytest.mark.slow
def test_a_compiled_run_equals_an_eager_one(train_config, tmp_path):
    losses = []
    for compiled in (False, True):
        config = dataclasses.replace(changed(train_config, compile=compiled), run_dir=str(tmp_path / str(compiled)))
        train(config)
        losses.append([line["loss"] for line in steps(config.run_dir) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_run_trains_with_the_attention_kernel_it_names_and_learns_the_same(train_config, tmp_path, monkeypatch):
    used, make, losses = [], FoldedAttention.__init__, []
    monkeypatch.setattr(FoldedAttention, "__init__", lambda self, view: used.append(self) or make(self, view))
    for name in ("auto", "folded"):
        config = dataclasses.replace(changed(train_config, attention=name), run_dir=str(tmp_path / name))
        train(config)
        losses.append([line["loss"] for line in steps(config.run_dir) if "loss" in line])
        assert bool(used) == (name == "folded")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_gradients_are_clipped_to_the_norm(train_config):
    config = changed(train_config, clip=1e-9, max_steps=2)
    config = dataclasses.replace(config, optimizer=OptimizerConfig(weight_decay=0.0, eps=1.0))
    train(config)
    model, _ = gptstar.load(config.run_dir)
    torch.manual_seed(0)
    fresh = gptstar.GPT(config.model)
    # Adam divides gradients of at most 1e-9 by eps = 1, so nothing has moved visibly.
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_happened(train_config, tmp_path, number, monkeypatch):
    whole = dataclasses.replace(train_config, run_dir=str(tmp_path / "whole"))
    train(whole)
    take_step = Trainer._take_step

    def interrupted(self):
        if self.state.step == 5:
            os.kill(os.getpid(), number)
        take_step(self)

    monkeypatch.setattr(Trainer, "_take_step", interrupted)
    outcome = train(train_config)
    assert (outcome.step, outcome.interrupted) == (6, number.name)
    monkeypatch.undo()
    outcome = train(dataclasses.replace(train_config, resume=train_config.run_dir))
    assert outcome.step == 8
    assert steps(train_config.run_dir) == steps(whole.run_dir)
    ours, theirs = gptstar.load(train_config.run_dir)[0], gptstar.load(whole.run_dir)[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def poison(monkeypatch, bad_steps):
    forward = gptstar.GPT.forward

    def poisoned(self, tokens, targets=None, cache=None):
        out = forward(self, tokens, targets, cache)
        if targets is not None and torch.is_grad_enabled():
            poisoned.calls += 1
            if poisoned.calls in bad_steps:
                return out * math.nan
        return out

    poisoned.calls = 0
    monkeypatch.setattr(gptstar.GPT, "forward", poisoned)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint_named(train_config, monkeypatch):
    poison(monkeypatch, {6})
    with pytest.raises(NonFiniteLoss, match=r"step 6: loss nan.*last good checkpoint is .*step-00000004"):
        train(train_config)
    last = steps(train_config.run_dir)[-1]
    assert (last["step"], last["tokens"], last["loss"]) == (6, 640, None)
    assert all(torch.isfinite(p).all() for p in gptstar.load(train_config.run_dir)[0].parameters())


def test_it_can_skip_such_steps_up_to_a_limit(train_config, monkeypatch):
    poison(monkeypatch, {3, 5})
    config = changed(train_config, nonfinite="skip", max_skipped=2)
    assert train(config).step == 8
    lines = [line for line in steps(config.run_dir) if "lr" in line]
    assert [line["step"] for line in lines if line["loss"] is None] == [3, 5]
    json.loads(Path(config.run_dir, "metrics.jsonl").read_text().splitlines()[2])
    progress = Path(config.run_dir) / "checkpoints" / "step-00000008" / "training" / "progress.json"
    assert json.loads(progress.read_text())["skipped"] == 2


def test_a_skipped_step_in_fp16_does_not_upset_the_loss_scaler(train_config, monkeypatch):
    poison(monkeypatch, {3})
    assert train(changed(train_config, nonfinite="skip", precision="fp16")).step == 8


@pytest.mark.parametrize("compiled", [False, True])
def test_validation_knows_whether_the_model_is_compiled(compiled, train_config, monkeypatch):
    seen, plain = [], trainer.held_out_losses
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    monkeypatch.setattr(
        trainer, "held_out_losses", lambda *args, **others: seen.append(others["compiled"]) or plain(*args, **others)
    )
    train(changed(train_config, compile=compiled, max_steps=1))
    assert set(seen) == {compiled}


def test_held_out_loss_that_is_not_a_number_stops_before_it_is_saved(train_config, monkeypatch):
    monkeypatch.setattr(trainer, "held_out_losses", lambda *a, **k: (trainer.HeldOutLoss(math.nan, math.nan, 0), {}))
    with pytest.raises(NonFiniteLoss, match="step 4: held-out loss nan: stopped; no checkpoint was written yet"):
        train(train_config)


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(train_config, tmp_path, monkeypatch):
    poison(monkeypatch, {3})
    with pytest.raises(NonFiniteLoss):
        train(train_config)
    monkeypatch.undo()
    assert train(dataclasses.replace(train_config, resume=train_config.run_dir)).step == 8
    lines = [line["step"] for line in steps(train_config.run_dir) if "lr" in line]
    assert lines == list(range(1, 9))


def test_going_back_inside_a_run_is_refused(train_config):
    train(train_config)
    first = Path(train_config.run_dir) / "checkpoints" / "step-00000004"
    with pytest.raises(UserError, match="has gone on to step-00000008: choose a new run_dir"):
        train(dataclasses.replace(train_config, resume=str(first)))


def test_a_budget_that_is_already_spent_is_refused(train_config):
    train(train_config)
    before = Path(train_config.run_dir, "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"has taken 8 steps and the budget is 5: raise trainer\.max_steps"):
        train(dataclasses.replace(changed(train_config, max_steps=5), resume=train_config.run_dir))
    assert Path(train_config.run_dir, "config.yaml").read_bytes() == before


def test_resume_and_evaluate_refuse_a_corpus_that_has_changed(train_config, tmp_path):
    folder = write_corpus(tmp_path / "text")
    data = dataclasses.replace(train_config.data, paths=[f"{folder}/*.txt"])
    config = dataclasses.replace(train_config, data=data)
    train(config)
    (folder / "new.txt").write_text("something else entirely " * 30)
    with pytest.raises(UserError, match="corpus 'tiny' cannot be gone on with: its content has changed"):
        train(dataclasses.replace(changed(config, max_steps=10), resume=config.run_dir))
    with pytest.raises(UserError, match="was trained on other text than"):
        evaluate(EvaluateConfig(checkpoint=config.run_dir, tasks=["held_out"], device="cpu"))


@pytest.mark.parametrize(("prompt", "good"), [("", True), ("abc " * 40, False)])
def test_a_sample_prompt_must_leave_room_in_learned_positions(train_config, prompt, good):
    config = dataclasses.replace(changed(train_config, sample_prompt=prompt), model=tiny_model(position="learned"))
    if good:
        assert train(config).sample is not None
    else:
        with pytest.raises(
            UserError, match=r"trainer.sample_prompt has \d+ tokens, which fill the 32 positions the model has"
        ):
            train(config)


def test_skipping_ends_at_its_limit(train_config, monkeypatch):
    poison(monkeypatch, {3, 4, 5})
    with pytest.raises(NonFiniteLoss, match="step 5"):
        train(changed(train_config, nonfinite="skip", max_skipped=2))


def test_a_used_run_folder_is_not_written_over(train_config):
    train(train_config)
    before = Path(train_config.run_dir, "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"is not empty: choose another one, or resume="):
        train(train_config)
    assert Path(train_config.run_dir, "metrics.jsonl").read_bytes() == before


def test_resume_with_another_model_is_refused_with_the_differing_keys(train_config):
    train(train_config)
    other = dataclasses.replace(train_config, resume=train_config.run_dir, model=tiny_model(n_layer=3))
    with pytest.raises(UserError, match=r"model.n_layer 2 -> 3"):
        train(other)


def test_resume_of_one_checkpoint_branches_into_a_new_run(train_config, tmp_path):
    train(train_config)
    first = Path(train_config.run_dir) / "checkpoints" / "step-00000004"
    before = sorted(p.name for p in first.parent.iterdir())
    branch = dataclasses.replace(train_config, resume=str(first), run_dir=str(tmp_path / "branch"))
    assert train(branch).step == 8
    assert steps(branch.run_dir) == steps(train_config.run_dir)
    assert sorted(p.name for p in first.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["muon", "lion", "adafactor"])
def test_every_optimizer_goes_on_as_if_nothing_had_happened(train_config, tmp_path, name):
    whole = dataclasses.replace(train_config, optimizer=OptimizerConfig(name=name, lr=1e-3))
    train(whole)
    first = Path(whole.run_dir) / "checkpoints" / "step-00000004"
    branch = dataclasses.replace(whole, resume=str(first), run_dir=str(tmp_path / "branch"))
    train(branch)
    assert steps(branch.run_dir) == steps(whole.run_dir)


def test_a_learning_rate_range_test_ends_with_a_plot_and_a_rate_to_try(train_config):
    config = dataclasses.replace(
        changed(train_config, max_steps=60),
        schedule=ScheduleConfig(name="exponential", first_ratio=1e-6),
        optimizer=OptimizerConfig(lr=100.0),
    )
    outcome = train(config)
    lines = steps(config.run_dir)
    assert outcome.step == len(lines) < 60 and outcome.final is None  # it exploded, and that is no error
    assert 1e-4 < outcome.suggested_lr < 1
    run = Path(config.run_dir)
    assert (run / "lr_range.png").is_file() and "try optimizer.lr" in (run / "train.log").read_text()


def test_an_interrupted_range_test_goes_on(train_config, tmp_path, monkeypatch):
    config = dataclasses.replace(
        changed(train_config, max_steps=60),
        schedule=ScheduleConfig(name="exponential", first_ratio=1e-6),
        optimizer=OptimizerConfig(lr=100.0),
    )
    whole = train(dataclasses.replace(config, run_dir=str(tmp_path / "whole")))
    take_step = Trainer._take_step

    def interrupted(self):
        if self.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        take_step(self)

    monkeypatch.setattr(Trainer, "_take_step", interrupted)
    assert train(config).interrupted == "SIGTERM"
    monkeypatch.undo()
    outcome = train(dataclasses.replace(config, resume=config.run_dir))
    assert (outcome.step, outcome.suggested_lr) == (whole.step, whole.suggested_lr)


def test_a_run_within_documents_is_measured_within_them(train_config):
    config = dataclasses.replace(train_config, data=dataclasses.replace(train_config.data, document_mask=True))
    outcome, plain = train(config), dataclasses.replace(train_config, run_dir=train_config.run_dir + "-plain")
    assert outcome.final.loss != train(plain).final.loss
    (row,) = evaluate(EvaluateConfig(checkpoint=config.run_dir, tasks=["held_out"])).rows
    assert row["metrics"]["loss"]["value"] == pytest.approx(outcome.final.loss, rel=1e-6)
    with pytest.raises(UserError, match=r"document_mask.*gmlp"):
        train(dataclasses.replace(config, model=tiny_model(block="gmlp", position="none")))


def test_a_finished_run_can_be_lengthened(train_config):
    train(train_config)
    outcome = train(dataclasses.replace(changed(train_config, max_steps=10), resume=train_config.run_dir))
    assert outcome.step == 10
    finals = [line for line in steps(train_config.run_dir) if "final_loss" in line]
    assert [line["step"] for line in finals] == [10]


def test_too_little_text_and_too_large_a_tokenizer_are_refused_before_training(train_config, shared):
    with pytest.raises(UserError, match="training tokens are less than one sequence of 100000"):
        train(changed(train_config, sequence_length=100_000))
    config = dataclasses.replace(
        train_config, tokenizer=TokenizerConfig(source=str(shared / "tokenizers" / "gpt2")), run_dir="never"
    )
    with pytest.raises(
        UserError, match=r"tokenizer has 50257 tokens but model.vocab_size=300: set model.vocab_size=50257"
    ):
        train(config)
    assert not Path("never").exists()


def test_samples_during_the_run_go_to_the_log_and_change_nothing(train_config, tmp_path):
    plain = dataclasses.replace(train_config, run_dir=str(tmp_path / "plain"))
    train(plain)
    train(changed(train_config, sample_every=3, sample_prompt="a b"))
    assert Path(train_config.run_dir, "train.log").read_text().count("a b") >= 3
    assert steps(plain.run_dir) == steps(train_config.run_dir)


def test_the_last_and_the_best_checkpoint_are_kept(train_config, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    fake = trainer.HeldOutLoss(0.0, 0.0, 0)
    monkeypatch.setattr(trainer, "held_out_losses", lambda *a, **k: (dataclasses.replace(fake, loss=next(losses)), {}))
    train(changed(train_config, checkpoint_every=2, keep_last=1, eval_every=0))
    names = sorted(p.name for p in (Path(train_config.run_dir) / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000008"]
    from gptstar.pretrained.native import find_checkpoint

    assert find_checkpoint(f"{train_config.run_dir}/best").name == "step-00000004"
    assert find_checkpoint(f"{train_config.run_dir}/last").name == "step-00000008"


def test_wandb_offline_and_tensorboard_get_the_same_numbers(train_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(train_config, logger=LoggerConfig(name="tensorboard"))
    train(config)
    events = EventAccumulator(str(Path(config.run_dir) / "tensorboard"))
    events.Reload()
    logged = {e.step: e.value for e in events.Scalars("loss")}
    assert logged == pytest.approx({line["step"]: line["loss"] for line in steps(config.run_dir) if "loss" in line})

    config = dataclasses.replace(train_config, logger=LoggerConfig(name="wandb"), run_dir=str(tmp_path / "wandb-run"))
    train(config)
    assert list(Path(config.run_dir).glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_a_gpu_learns_like_one_on_the_cpu(train_config, tmp_path, precision):
    losses = []
    for device, name in (("cpu", "fp32"), ("cuda", precision)):
        config = dataclasses.replace(
            changed(train_config, device=device, precision=name), run_dir=str(tmp_path / device)
        )
        train(config)
        losses.append([line["loss"] for line in steps(config.run_dir) if "loss" in line])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
