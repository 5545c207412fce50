"""The training loop: one run in progress."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from gptstar.data.prepare import Prepared
from gptstar.device import autocast, pick_precision
from gptstar.errors import UserError
from gptstar.evaluation.held_out import HeldOutLoss, held_out_losses, loss_within_documents
from gptstar.garbage import GarbageCollection
from gptstar.generation.generate import generate
from gptstar.model.adapters import freeze_all_but_adapters
from gptstar.model.causality import refuse_foresight
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.model.matmul import fast_gradients
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import list_checkpoints
from gptstar.training.checkpoint import Checkpoints, read_progress, restore_checkpoint, restore_weights
from gptstar.training.config import TrainConfig, spare_embeddings
from gptstar.training.downstream import measure_downstream
from gptstar.training.feed import Feed
from gptstar.training.interrupt import Interrupt
from gptstar.training.journal import Journal
from gptstar.training.lr_range import RangeTest
from gptstar.training.microbatch import find_microbatch
from gptstar.training.optimizers import build_optimizer, set_learning_rate
from gptstar.training.order import Order
from gptstar.training.profile import Part, profile_model, scaled, trace_step, write_table
from gptstar.training.schedules import learning_rate_factor
from gptstar.training.spread import pick_spread
from gptstar.training.start import Origin, begin_optimizer_with, begin_with
from gptstar.training.state import TrainState
from gptstar.training.tables import unused_ideas
from gptstar.training.throughput import measure_bandwidth, measure_matmul_peak, peak_flops, peak_gib
from gptstar.training.world import World, launched

if TYPE_CHECKING:
    from gptstar.evaluation.tasks import LoadedTask


class NonFiniteLoss(UserError):
    """The loss or a gradient was infinite or not a number, and the run stopped."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `interrupted` names the signal that ended it early; `final` is None then.

    Of several ranks the first one has the sample.
    """

    run: Path
    step: int
    interrupted: str | None
    final: HeldOutLoss | None
    sample: str | None
    suggested_lr: float | None = None  # of a learning-rate range test, which has neither of the two above


class Trainer:
    """One run in progress: the state that changes and the settings that do not.

    origin, start: what it begins with, another model or a checkpoint to go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Prepared,
        world: World,
        origin: Origin | None = None,
        start: Path | None = None,
        tasks: Sequence[LoadedTask] = (),
    ) -> None:
        self.config, self.data, self.world, self.tasks = config, data, world, tasks
        self.device, options = world.device, config.trainer
        self.length, self.total = config.sequence_length, config.total_steps
        begun = read_progress(start)["data"] if start is not None else None
        self.order = Order(data, config.data, options, self.length, world.share, world.n_share, begun)
        self.precision = pick_precision(options.precision, self.device)
        own_peak = options.peak_flops or peak_flops(self.device)
        self.peak = world.total(torch.tensor(own_peak)).item() if own_peak else None
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 is asked for
        torch.manual_seed(options.seed)
        model = GPT(config.model)
        if origin is not None:
            begin_with(origin, model)
        if start is not None:
            restore_weights(start, model)
        if options.trainable == "adapters":
            freeze_all_but_adapters(model)
        refuse_foresight(model)
        if world.parallel != "fsdp":  # which moves a block at a time
            model = model.to(self.device)
        model.recomputed, model.attention_kernel = options.recompute, options.attention
        share = options.batch_size // world.n_share
        if options.microbatch == "auto":  # a resumed run goes on with what is found
            with fast_gradients():  # before it is spread: ranks that have to meet cannot each try sizes in its own time
                found = find_microbatch(self._loss_of(model), model, self.length, share, self.device)
            options = dataclasses.replace(options, microbatch=world.least(found))
            self.config = dataclasses.replace(config, trainer=options)
        self.microbatch = int(options.microbatch or share)
        self.n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.checkpoint_bytes = sum(p.nbytes for p in model.parameters())
        n_frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        self.flops_per_token = cache(lambda length: flops_per_token(config.model, length, n_frozen))
        self.compiled = options.compile if options.compile is not None else self.device.type == "cuda"
        self.spread = pick_spread(world)(model, world, self.precision, self.compiled)
        self.loss = self._loss_of(self.spread.run)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.state = TrainState(model, build_optimizer(model, config.optimizer), scaler)
        if origin is not None:
            begin_optimizer_with(origin, model, self.state.optimizer)
        if start is not None:
            restore_checkpoint(start, self.state, world.agreement)
        self.range = RangeTest() if config.schedule.name == "exponential" else None
        self.state.data = self.order.as_dict
        self.ending: str | None = None  # the signal that ends the run early, once all ranks know of it

    def run_to_the_end(self, run: Path, console: Console, changed: Sequence[str] = ()) -> Outcome:
        """The loop: step, and every so often validate, sample, save; at a signal save and leave.

        Writes into `run`, an open run folder, and tells `console`; changed: the settings that the run had otherwise
        before it is continued.
        """
        self.run = run
        state, options, total = self.state, self.config.trainer, self.total
        self.garbage = GarbageCollection()
        self.journal = Journal(run, self.config, state, console, self.world.main)
        self.checkpoints = Checkpoints(run, self.data.tokenizer, options.keep_last, self.world)
        self.feed = Feed(self.order.read, self.device)
        try:
            with self.journal.open(), fast_gradients(), self.garbage:
                with Interrupt(launched()) as self.interrupt, self.journal.running(total):
                    self._introduce(changed)
                    self._recall_range_test()
                    self._measure_tasks()  # those that an interruption kept from it
                    self._take_steps()
                    whole = state.step == total or (self.range is not None and self.range.exploded)
                    if not whole:
                        saved = self.checkpoints.save(state, None)
                        self.checkpoints.finish()
                        self.journal.note(f"{self._ends()}: saved {saved}; resume={run} continues")
                        self.interrupt.saved = True
                if not whole:
                    return Outcome(run, state.step, self._ends(), None, None)
                self.checkpoints.finish()
                return self._conclude(self.range) if self.range is not None else self._finish()
        finally:
            self.feed.close()

    def _take_steps(self) -> None:
        """Until the budget is used up, a signal comes, or a range test has exploded."""
        state, options = self.state, self.config.trainer
        third = min(state.step + 2, self.total - 1)
        while state.step < self.total and not self._ends():
            if options.profile and state.step == third:
                self._profile_step()
            else:
                self._take_step()
            self.garbage.after_step()
            if self.range is not None:
                if self.range.exploded:
                    break
                continue
            self.checkpoints.look()
            last = state.step == self.total
            saving = last or _due(state.step, options.checkpoint_every)
            held_out = None
            if saving or _due(state.step, options.eval_every):
                held_out = self._validate()
            if _due(state.step, options.sample_every) and not last:
                self.journal.note(self._sample(n_token=60) or "")
            if saving and held_out:
                self.checkpoints.save(state, held_out.loss)
            self._measure_tasks()

    def _ends(self) -> str | None:
        """The signal that ends the run before its budget does. Several ranks agree on it in a step."""
        return self.interrupt.requested if self.world.size == 1 else self.ending

    def _recall_range_test(self) -> None:
        """What an interruption has left of it."""
        if self.range is not None:
            for line in self.world.decided(self.journal.lines):
                if line.get("loss") is not None:
                    self.range.feed(line["lr"], line["loss"])

    def _loss_of(self, model: GPT) -> Callable[..., Tensor]:
        """(inputs, targets, documents or None) -> loss, in the run's precision and within documents where the run says
        so.
        """
        eot_id = self.data.tokenizer.eot_id if self.config.data.document_mask else None
        plain = loss_within_documents(model, eot_id)

        def loss(inputs_BT: Tensor, targets_BT: Tensor, document_BT: Tensor | None = None) -> Tensor:
            with autocast(self.precision, self.device):
                return plain(inputs_BT, targets_BT, document_BT)

        return loss

    def _take_step(self) -> None:
        """One optimizer step over batch_size sequences, a microbatch at a time, and its line in metrics.jsonl."""
        state, options = self.state, self.config.trainer
        began = time.perf_counter()
        lr = self.config.optimizer.lr * learning_rate_factor(self.config.schedule, state.step, self.total)
        set_learning_rate(state.optimizer, lr)
        length = self.order.lengths.length(state.step)
        pieces, shares, n_token = self._pieces(length)
        loss = torch.zeros((), device=self.device)
        for i, (piece, share) in enumerate(zip(pieces, shares, strict=True)):
            with self.spread.accumulating(last=i == len(pieces) - 1):
                part = self.loss(*piece) * share
                state.scaler.scale(part).backward()
            loss += part.detach()
        state.scaler.unscale_(state.optimizer)
        norm = self.spread.clip(options.clip or math.inf)
        loss_value, norm_value = self._agree(loss, norm)
        # With loss scaling an infinite gradient is normal: the scaler skips the step and lowers its scale.
        scaling = state.scaler.is_enabled() and state.scaler.get_scale() >= 1
        if self.range is not None:
            self.range.feed(lr, loss_value if math.isfinite(norm_value) or scaling else norm_value)
        if math.isfinite(loss_value) and (math.isfinite(norm_value) or scaling):
            state.scaler.step(state.optimizer)
        else:
            self._nonfinite(loss_value, norm_value)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += n_token
        seconds = time.perf_counter() - began
        rate = n_token / seconds
        speed = {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops_per_token(length) / self.peak, 4) if self.peak else None,
            "memory_gib": round(peak_gib(self.device), 3),
        }
        self.journal.step(loss_value, lr, norm_value, self._seen(), seconds, speed)

    def _pieces(self, length: int) -> tuple[list[tuple[Tensor, ...]], list[float], int]:
        """The microbatches of the coming step on this rank, in rows of `length` tokens; what share of the step's loss
        each has, times the ranks it is averaged over; and how many tokens are predicted on all ranks.
        """
        batch, n_target_B = self.feed.take(self.state.step)
        n_token = self.order.tokens(self.state.step)
        if self.config.data.packing == "best_fit":  # rows that are not full
            n_token = int(self.world.share_total(n_target_B.sum()).item())
        rows = self.microbatch * self.length // length
        pieces = list(zip(*(tensor.split(rows) for tensor in batch.tensors), strict=True))
        counts = [int(piece.sum()) for piece in n_target_B.split(rows)]
        return pieces, [n * self.world.n_share / n_token for n in counts], n_token

    def _seen(self) -> dict[str, float]:
        """Passes over the data so far, and epochs of each corpus of a mixture."""
        step = self.state.step
        epochs = self.order.epochs(step) if len(self.order.packings) > 1 else {}
        return {"epoch": self.order.passes(step)} | {f"epoch/{name}": n for name, n in epochs.items()}

    def _agree(self, loss: Tensor, norm: Tensor) -> tuple[float, float]:
        """The loss over all ranks and the gradient's norm; and whether a signal has come to any of them."""
        signal = loss.new_tensor(float(self.interrupt.requested is not None))
        # On the CPU, where a rank that is gone raises an error.
        shared = self.world.total(torch.stack((loss, norm.to(loss.dtype), signal)).cpu()) / self.world.size
        loss_value, norm_value, share = shared.tolist()
        if share:
            self.ending = self.interrupt.requested or "a signal to another rank"
        return loss_value, norm_value

    def _profile_step(self) -> None:
        """A step like any other, and where its time goes."""
        state, config = self.state, self.config
        folder = self.run / "profile" if self.world.main else None
        start = time.perf_counter()
        pieces, _, n_token = self._pieces(self.order.lengths.length(state.step))
        parts = {"data": Part(time.perf_counter() - start)}
        one = profile_model(state.model, self._loss_of(state.model), *pieces[0][:2])
        parts |= scaled(one, len(pieces))
        seconds, optimizer = trace_step(self._take_step, self.device, folder)
        # AdamW reads weight, gradient and two moments and writes three of them.
        n_own = sum(getattr(p, "_local_tensor", p).numel() for p in state.model.parameters() if p.requires_grad)
        parts["optimizer"] = Part(optimizer, 0.0, 28.0 * n_own if config.optimizer.name == "adamw" else 0.0)
        peak = self.peak / self.world.size if self.peak else measure_matmul_peak(self.device)
        title = f"Step {state.step} of {config.model.name}, {n_token:,} tokens in {self.precision}"
        table = write_table(parts, seconds, peak, measure_bandwidth(self.device), title, folder)
        self.journal.note(table)

    def _nonfinite(self, loss: float, norm: float) -> None:
        """Counts a skipped step, or stops the run."""
        state, options = self.state, self.config.trainer
        if self.range is not None:
            return
        what = f"step {state.step + 1}: loss {loss}, gradient norm {norm}"
        if options.nonfinite == "stop" or state.skipped == options.max_skipped:
            # Whoever reads the run is to know why it ended.
            self.journal.write({"step": state.step + 1, "loss": None, "lr": state.optimizer.param_groups[0]["lr"]})
            raise self._stopped(what)
        state.skipped += 1
        self.journal.note(f"{what}: skipped ({state.skipped} of at most {options.max_skipped})")

    def _stopped(self, what: str) -> NonFiniteLoss:
        self.checkpoints.finish()
        found = list_checkpoints(self.run)
        good = f"the last good checkpoint is {found[-1]}" if found else "no checkpoint was written yet"
        return NonFiniteLoss(f"{what}: stopped; {good}; lower optimizer.lr, or set trainer.nonfinite=skip")

    def _held_out_losses(self, max_tokens: int | None) -> tuple[HeldOutLoss, dict[str, HeldOutLoss]]:
        return held_out_losses(
            self.loss,
            self.data.held_out(self.config.eval_length),
            self.config.eval_length,
            max(1, self.microbatch * self.length // self.config.eval_length),
            self.device,
            self.precision,
            max_tokens,
            rank=self.world.share,
            n_rank=self.world.n_share,
            total=self.world.share_total,
            compiled=self.compiled,
        )

    def _validate(self) -> HeldOutLoss:
        found, each = self._held_out_losses(self.config.trainer.eval_tokens)
        if not math.isfinite(found.loss):  # the weights themselves are spoilt: nothing to skip
            raise self._stopped(f"step {self.state.step}: held-out loss {found.loss}")
        self.journal.validation(found, each)
        return found

    def _measure_tasks(self) -> None:
        """Those that are due at this step and not in metrics.jsonl yet; after the checkpoint, for they take long."""
        state, options = self.state, self.config.trainer
        due = state.step == self.total or _due(state.step, options.eval_tasks_every)
        if not options.eval_tasks or not due or not state.step:
            return
        model = self.spread.gathered()
        if model is not None:
            lines = [line for line in self.journal.lines() if line["step"] == state.step]
            known = {key.partition("/")[0] for line in lines for key in line if "/" in key}
            for task in self.tasks:
                if self.interrupt.requested or task.name in known:
                    continue
                try:
                    found = measure_downstream(model, self.data.tokenizer, task, options.eval_tasks_limit)
                except Exception as error:  # tasks are other people's code, and no reason to lose a run
                    self.journal.note(f"step {state.step}: {task.name} failed: {type(error).__name__}: {error}")
                    continue
                self.journal.write(found)
                shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                self.journal.note(f"step {state.step}: {shown}")
            self.garbage.collect()
        self.world.wait()

    def _sample(self, n_token: int) -> str | None:
        """What the model writes now; rank 0 has it."""
        options, model = self.config.trainer, self.spread.gathered()
        text = None
        if model is not None:
            if model.longest is not None:
                prompt = self.data.tokenizer.encode(options.sample_prompt)
                n_token = min(n_token, model.longest - max(1, len(prompt)))
            text = generate(
                model,
                self.data.tokenizer,
                options.sample_prompt,
                max_new_tokens=n_token,
                temperature=0.8,
                top_p=0.95,
                seed=options.seed,
            )
        self.world.wait()
        return text

    def _finish(self) -> Outcome:
        model = self.config.model
        final, each = self._held_out_losses(max_tokens=None)
        title = f"{model.name} ({parameter_count(model) / 1e6:.2f}M parameters) on {self.config.data.name}"
        self.journal.end(final, each, title)
        sample = self._sample(n_token=120)
        self.journal.note(f"\nsample\n{sample}")
        return Outcome(self.run, self.state.step, None, final, sample)

    def _conclude(self, test: RangeTest) -> Outcome:
        """The end of a learning-rate range test."""
        if not test.rates:
            raise self._stopped(test.conclusion())
        title = f"{self.config.model.name} with {self.config.optimizer.name} on {self.config.data.name}"
        if self.world.main:
            test.draw(self.run / "lr_range.png", title)
        self.journal.note(f"{test.conclusion()} ({self.run}/lr_range.png)")
        return Outcome(self.run, self.state.step, None, None, None, test.suggested)

    def _introduce(self, changed: Sequence[str]) -> None:
        if not self.world.main:  # what packing wastes takes reading all documents' starts, and nobody would hear it
            return
        config, state = self.config, self.state
        peak = f", matmul peak {self.peak / 1e9:,.0f} GFLOP/s" if self.peak else ""
        n_all = parameter_count(config.model)
        trained = "" if self.n_trained == n_all else f" ({self.n_trained:,} of them trained)"
        origin = f", from {config.init_from}" if config.init_from else ""
        ranks = "" if self.world.parallel == "none" else f", {self.world.parallel} on {self.world.size} ranks"
        ranks += "" if self.world.n_tensor == 1 else f", {self.world.n_tensor} to a layer"
        self.journal.note(
            f"{config.model.name}{origin}: {n_all:,} parameters{trained}, {self.total} steps of "
            f"{config.tokens_per_step:,} tokens\n{self.order.introduction(self.total)}\n"
            f"{self.device} in {self.precision}{peak}{ranks}; run folder {self.run}"
        )
        if state.step:
            other = f", with {'; '.join(changed)}" if changed else ""
            self.journal.note(f"continuing after step {state.step}{other}")
        elif not config.init_from and (remark := spare_embeddings(self.data.tokenizer.vocab_size, config.model)):
            self.journal.note(remark)
        for remark in unused_ideas(config):
            self.journal.note(remark)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
