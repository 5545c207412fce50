"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from rich.console import Console
from torch import Tensor

from gptstar.data.batches import BatchOrder, window_count
from gptstar.data.prepare import PreparedCorpus, prepare
from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.device import autocast, pick_device, pick_precision
from gptstar.environment import describe_environment
from gptstar.errors import UserError
from gptstar.evaluation.held_out import HeldOutLoss, held_out_loss, loss_within_documents
from gptstar.generation.generate import generate
from gptstar.model.adapters import freeze_all_but_adapters
from gptstar.model.choices import longest
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import list_checkpoints, read_json
from gptstar.training.checkpoint import restore_checkpoint, save_checkpoint
from gptstar.training.config import TrainConfig, check_vocabulary
from gptstar.training.display import Display
from gptstar.training.downstream import load_downstream, measure_downstream
from gptstar.training.feed import Feed
from gptstar.training.interrupt import Interrupt
from gptstar.training.lr_range import RangeTest
from gptstar.training.metrics import MetricsLog, check_tracker, open_tracker, read_metrics
from gptstar.training.microbatch import find_microbatch
from gptstar.training.optimizers import build_optimizer, check_optimizer, set_learning_rate
from gptstar.training.plot import draw_loss_curve
from gptstar.training.profile import Part, profile_model, scaled, trace_step, write_table
from gptstar.training.run_folder import find_start, open_run_folder
from gptstar.training.schedules import learning_rate_factor
from gptstar.training.start import Origin, begin_optimizer_with, begin_with, read_origin
from gptstar.training.state import TrainState
from gptstar.training.throughput import measure_bandwidth, measure_matmul_peak, memory_in_use, peak_flops

if TYPE_CHECKING:
    from gptstar.evaluation.tasks import LoadedTask

EXIT_NONFINITE = 3


class NonFiniteLoss(UserError):
    """The loss or a gradient was infinite or not a number, and the run stopped."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `interrupted` names the signal that ended it early; `final` is None then."""

    run: Path
    step: int
    interrupted: str | None
    final: HeldOutLoss | None
    sample: str | None
    suggested_lr: float | None = None  # of a learning-rate range test, which has neither of the two above


def train(config: TrainConfig, console: Console | None = None) -> Outcome:
    """Trains one model from a configuration, or continues a run, and leaves everything in config.run_dir.

    Raises UserError before any work for a configuration that cannot be trained, and NonFiniteLoss.
    """
    console = console or Console(quiet=True)
    config.check()
    check_tracker(config.logger)
    check_optimizer(config.optimizer)
    device = pick_device(config.trainer.device)
    if config.tokenizer.source not in (
        "train",
        "init_from",
    ):  # known before the corpus is prepared, so refused before it
        check_vocabulary(load_tokenizer(config.tokenizer.source, config.tokenizer.eot_token).vocab_size, config.model)
    tasks = load_downstream(config.trainer)
    start = find_start(config)
    origin = read_origin(config.init_from, config.model) if config.init_from and start is None else None
    corpus = prepare(config.data, config.tokenizer, console, _given_tokenizer(config, start, origin))
    _check_corpus(config, corpus)
    trainer = Trainer(config, corpus, device, origin, tasks)
    del origin  # a model and perhaps its moments: not needed for the rest of the run
    if start is not None:
        restore_checkpoint(start, trainer.state)
        if trainer.total < trainer.state.step:
            raise UserError(
                f"resume={config.resume} has taken {trainer.state.step} steps and the budget is {trainer.total}: "
                "raise trainer.max_steps"
            )
    run = open_run_folder(trainer.config, start, describe_environment(device))
    return trainer.run_to_the_end(run, Display(console, run / "train.log"))


class Trainer:
    """One run in progress: the state that changes and the settings that do not."""

    def __init__(
        self,
        config: TrainConfig,
        corpus: PreparedCorpus,
        device: torch.device,
        origin: Origin | None = None,
        tasks: Sequence[LoadedTask] = (),
    ) -> None:
        self.config, self.corpus, self.device, self.tasks = config, corpus, device, tasks
        options = config.trainer
        self.length, self.total = config.sequence_length, config.total_steps
        self.precision = pick_precision(options.precision, device)
        self.peak = options.peak_flops or peak_flops(device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
        torch.manual_seed(options.seed)
        model = GPT(config.model)
        if origin is not None:
            begin_with(origin, model)
        if options.trainable == "adapters":
            freeze_all_but_adapters(model)
        model = model.to(device)
        model.recomputed = options.recompute
        model.attention_kernel = options.attention
        scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.state = TrainState(model, build_optimizer(model, config.optimizer), scaler, corpus.key)
        if origin is not None:
            begin_optimizer_with(origin, model, self.state.optimizer)
        if options.microbatch == "auto":  # a resumed run goes on with what is found
            found = find_microbatch(self._loss_of(model), model, self.length, options.batch_size, device)
            options = dataclasses.replace(options, microbatch=found)
            self.config = dataclasses.replace(config, trainer=options)
        self.microbatch = int(options.microbatch or options.batch_size)
        compiled = options.compile if options.compile is not None else device.type == "cuda"
        self.model = torch.compile(model, dynamic=False) if compiled else model
        self.range = RangeTest() if config.schedule.name == "exponential" else None
        self.loss = self._loss_of(cast(GPT, self.model))
        windows = window_count(len(corpus.train), self.length)
        self.order = BatchOrder(windows, options.batch_size, options.seed)
        n_frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        self.flops_per_token = flops_per_token(config.model, self.length, n_frozen)

    def run_to_the_end(self, run: Path, display: Display) -> Outcome:
        """The loop: step, and every so often validate, sample, save; at a signal save and leave.

        Writes into `run`, an open run folder, and tells `display`.
        """
        self.run, self.display = run, display
        state, options, total = self.state, self.config.trainer, self.total
        self._introduce()
        self.log = self._open_log()
        if self.range is not None:  # what an interruption has left
            for line in read_metrics(self.log.path):
                if line.get("loss") is not None:
                    self.range.feed(line["lr"], line["loss"])
        self.feed = Feed(self.corpus.train, self.order, self.length, self.device)
        try:
            with Interrupt() as interrupt, self.display.running(state.step, total):
                self._measure_tasks(interrupt)  # those that an interruption kept from it
                third = min(state.step + 2, total - 1)
                while state.step < total and not interrupt.requested:
                    if options.profile and state.step == third:
                        self._profile_step()
                    else:
                        self._take_step()
                    if self.range is not None:
                        if self.range.exploded:
                            break
                        continue
                    last = state.step == total
                    saving = last or _due(state.step, options.checkpoint_every)
                    held_out = None
                    if saving or _due(state.step, options.eval_every):
                        held_out = self._validate()
                    if _due(state.step, options.sample_every) and not last:
                        self.display.note(self._sample(n_token=60))
                    if saving and held_out:
                        save_checkpoint(self.run, state, self.corpus.tokenizer, options.keep_last, held_out.loss)
                    self._measure_tasks(interrupt)
                if self.range is not None and (self.range.exploded or state.step == total or not interrupt.requested):
                    return self._conclude(self.range)
                if state.step < total:
                    saved = save_checkpoint(self.run, state, self.corpus.tokenizer, options.keep_last, None)
                    self.display.note(f"{interrupt.requested}: saved {saved}; resume={self.run} continues")
                    return Outcome(self.run, state.step, interrupt.requested, None, None)
            return self._finish()
        finally:
            self.feed.close()
            self.log.close()
            self.display.close()

    def _loss_of(self, model: GPT) -> Callable[[Tensor, Tensor], Tensor]:
        """(inputs, targets) -> loss, in the run's precision and within documents where the run says so."""
        eot_id = self.corpus.tokenizer.eot_id if self.config.data.document_mask else None
        plain = loss_within_documents(model, eot_id)

        def loss(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
            with autocast(self.precision, self.device):
                return plain(inputs_BT, targets_BT)

        return loss

    def _take_step(self) -> None:
        """One optimizer step over batch_size sequences, a microbatch at a time, and its line in metrics.jsonl."""
        state, options = self.state, self.config.trainer
        began = time.perf_counter()
        lr = self.config.optimizer.lr * learning_rate_factor(self.config.schedule, state.step, self.total)
        set_learning_rate(state.optimizer, lr)
        inputs, targets = self.feed.take(state.step)
        loss = torch.zeros((), device=self.device)
        accumulation = options.batch_size // self.microbatch
        for x, y in zip(inputs.split(self.microbatch), targets.split(self.microbatch), strict=True):
            part = self.loss(x, y) / accumulation
            state.scaler.scale(part).backward()
            loss += part.detach()
        state.scaler.unscale_(state.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.clip or math.inf).item()
        loss_value = loss.item()
        # With loss scaling an infinite gradient is normal: the scaler skips the step and lowers its scale.
        scaling = state.scaler.is_enabled() and state.scaler.get_scale() >= 1
        if self.range is not None:
            self.range.feed(lr, loss_value if math.isfinite(norm) or scaling else norm)
        if math.isfinite(loss_value) and (math.isfinite(norm) or scaling):
            state.scaler.step(state.optimizer)
        else:
            self._nonfinite(loss_value, norm)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += inputs.numel()
        self._record(loss_value, lr, norm, inputs.numel(), time.perf_counter() - began)

    def _profile_step(self) -> None:
        """A step like any other, and where its time goes."""
        state, config, folder = self.state, self.config, self.run / "profile"
        folder.mkdir(exist_ok=True)
        start = time.perf_counter()
        inputs, targets = self.feed.take(state.step)
        parts = {"data": Part(time.perf_counter() - start)}
        loss = self._loss_of(state.model)
        one = profile_model(state.model, loss, inputs[: self.microbatch], targets[: self.microbatch])
        parts |= scaled(one, config.trainer.batch_size // self.microbatch)
        seconds, optimizer = trace_step(self._take_step, self.device, folder / "trace.json")
        n_trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        # AdamW reads weight, gradient and two moments and writes three of them.
        parts["optimizer"] = Part(optimizer, 0.0, 28.0 * n_trained if config.optimizer.name == "adamw" else 0.0)
        peak, bandwidth = self.peak or measure_matmul_peak(self.device), measure_bandwidth(self.device)
        title = f"Step {state.step} of {config.model.name}, {config.tokens_per_step:,} tokens in {self.precision}"
        self.display.note(write_table(parts, seconds, peak, bandwidth, title, folder / "profile.md"))

    def _record(self, loss: float, lr: float, norm: float, n_token: int, seconds: float) -> None:
        state, rate = self.state, n_token / seconds
        mfu = rate * self.flops_per_token / self.peak if self.peak else None
        line = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": round(self.order.epoch(state.step), 6),
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "grad_norm": norm if math.isfinite(norm) else None,
            "seconds": round(seconds, 6),
            "tokens_per_second": round(rate, 1),
            "mfu": None if mfu is None else round(mfu, 4),
            "memory_gib": round(memory_in_use(self.device), 3),
        }
        self.log.write([line])
        self.display.step(state.step, loss, seconds, rate, mfu)

    def _nonfinite(self, loss: float, norm: float) -> None:
        """Counts a skipped step, or stops the run."""
        state, options = self.state, self.config.trainer
        if self.range is not None:
            return
        what = f"step {state.step + 1}: loss {loss}, gradient norm {norm}"
        if options.nonfinite == "stop" or state.skipped == options.max_skipped:
            raise self._stopped(what)
        state.skipped += 1
        self.display.note(f"{what}: skipped ({state.skipped} of at most {options.max_skipped})")

    def _stopped(self, what: str) -> NonFiniteLoss:
        checkpoints = list_checkpoints(self.run)
        good = f"the last good checkpoint is {checkpoints[-1]}" if checkpoints else "no checkpoint was written yet"
        return NonFiniteLoss(f"{what}: stopped; {good}; lower optimizer.lr, or set trainer.nonfinite=skip")

    def _held_out_loss(self, max_tokens: int | None) -> HeldOutLoss:
        stream = self.corpus.validation
        return held_out_loss(self.loss, stream, self.length, self.microbatch, self.device, self.precision, max_tokens)

    def _validate(self) -> HeldOutLoss:
        state = self.state
        result = self._held_out_loss(self.config.trainer.eval_tokens)
        if not math.isfinite(result.loss):  # the weights themselves are spoilt: nothing to skip
            raise self._stopped(f"step {state.step}: held-out loss {result.loss}")
        line = {
            "step": state.step,
            "tokens": state.tokens,
            "validation_loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
            "validation_tokens": result.tokens,
        }
        self.log.write([line])
        self.display.note(
            f"step {state.step}: held-out loss {result.loss:.4f} nats/token, {result.bits_per_byte:.4f} bits/byte"
        )
        return result

    def _measure_tasks(self, interrupt: Interrupt) -> None:
        """Those that are due at this step and not in metrics.jsonl yet; after the checkpoint, for they take long."""
        state, options = self.state, self.config.trainer
        due = state.step == self.total or _due(state.step, options.eval_tasks_every)
        if not self.tasks or not due or not state.step:
            return
        lines = [line for line in read_metrics(self.log.path) if line["step"] == state.step]
        known = {key.partition("/")[0] for line in lines for key in line if "/" in key}
        for task in self.tasks:
            if interrupt.requested or task.name in known:
                continue
            try:
                found = measure_downstream(state.model, self.corpus.tokenizer, task, options.eval_tasks_limit)
            except Exception as error:  # tasks are other people's code, and no reason to lose a run
                self.display.note(f"step {state.step}: {task.name} failed: {type(error).__name__}: {error}")
                continue
            self.log.write([{"step": state.step, "tokens": state.tokens, **found}])
            shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            self.display.note(f"step {state.step}: {shown}")

    def _sample(self, n_token: int) -> str:
        options, model = self.config.trainer, self.state.model
        if model.longest is not None:
            prompt = self.corpus.tokenizer.encode(options.sample_prompt)
            n_token = min(n_token, model.longest - max(1, len(prompt)))
        return generate(
            model,
            self.corpus.tokenizer,
            options.sample_prompt,
            max_new_tokens=n_token,
            temperature=0.8,
            top_p=0.95,
            seed=options.seed,
        )

    def _finish(self) -> Outcome:
        run, model, state = self.run, self.config.model, self.state
        final = self._held_out_loss(max_tokens=None)
        self.log.write(
            [
                {
                    "step": state.step,
                    "tokens": state.tokens,
                    "final_loss": final.loss,
                    "final_bits_per_byte": final.bits_per_byte,
                    "validation_tokens": final.tokens,
                }
            ]
        )
        title = f"{model.name} ({parameter_count(model) / 1e6:.2f}M parameters) on {self.config.data.name}"
        draw_loss_curve(run / "metrics.jsonl", run / "loss.png", title)
        sample = self._sample(n_token=120)
        self.display.note(f"\nsample\n{sample}\n")
        self.display.note(
            f"{final.loss:.4f} nats/token, {final.bits_per_byte:.4f} bits/byte on all held-out text ({run}/loss.png)"
        )
        return Outcome(run, state.step, None, final, sample)

    def _conclude(self, test: RangeTest) -> Outcome:
        """The end of a learning-rate range test."""
        if not test.rates:
            raise self._stopped(test.conclusion())
        title = f"{self.config.model.name} with {self.config.optimizer.name} on {self.config.data.name}"
        test.draw(self.run / "lr_range.png", title)
        self.display.note(f"{test.conclusion()} ({self.run}/lr_range.png)")
        return Outcome(self.run, self.state.step, None, None, None, test.suggested)

    def _introduce(self) -> None:
        config, state = self.config, self.state
        corpus = "cached" if self.corpus.cached else "prepared"
        peak = f", matmul peak {self.peak / 1e9:,.0f} GFLOP/s" if self.peak else ""
        n_trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
        n_all = parameter_count(config.model)
        trained = "" if n_trained == n_all else f" ({n_trained:,} of them trained)"
        origin = f", from {config.init_from}" if config.init_from else ""
        self.display.note(
            f"{config.model.name}{origin}: {n_all:,} parameters{trained}, {self.total} steps of "
            f"{config.tokens_per_step:,} tokens ({self.order.epoch(self.total):.2f} epochs)\n"
            f"{config.data.name}: {len(self.corpus.train):,} training and {len(self.corpus.validation):,} held-out "
            f"tokens ({corpus} in {self.corpus.folder})\n"
            f"{self.device} in {self.precision}{peak}; run folder {self.run}"
        )
        if state.step:
            self.display.note(f"continuing after step {state.step}")

    def _open_log(self) -> MetricsLog:
        step = self.state.step
        return MetricsLog(self.run, step, open_tracker(self.config.logger, self.run, asdict(self.config), step))


def _given_tokenizer(config: TrainConfig, start: Path | None, origin: Origin | None) -> Tokenizer | None:
    """The tokenizer of the model that the run starts from, or has kept since, where the configuration asks for it."""
    if config.tokenizer.source != "init_from":
        return None
    if origin is not None:
        return origin.tokenizer
    assert start is not None
    return load_tokenizer(str(start / "tokenizer.json"), read_json(start)["eot_token"])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_corpus(config: TrainConfig, corpus: PreparedCorpus) -> None:
    check_vocabulary(corpus.tokenizer.vocab_size, config.model)
    for name, stream in (("training", corpus.train), ("held-out", corpus.validation)):
        if window_count(len(stream), config.sequence_length) < 1:
            raise UserError(
                f"data={config.data.name}: {len(stream)} {name} tokens are less than one sequence of "
                f"{config.sequence_length}: give it more text or lower trainer.sequence_length"
            )
    prompt = len(corpus.tokenizer.encode(config.trainer.sample_prompt))
    limit = longest(config.model)
    if limit is not None and prompt >= limit:
        raise UserError(
            f"trainer.sample_prompt has {prompt} tokens, which fill the {limit} positions the model has: shorten it"
        )
