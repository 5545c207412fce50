"""TrainConfig: everything `train.py` can be told, each concern's part declared beside its code."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.device import PRECISIONS, pick_device
from gptstar.errors import UserError
from gptstar.model.choices import attends_only, check_choices, longest
from gptstar.model.config import ModelConfig
from gptstar.model.kernel_choice import KERNELS, check_kernel
from gptstar.training.optimizers import OptimizerConfig
from gptstar.training.schedules import ScheduleConfig
from gptstar.training.warmup import BatchRamp, LengthRamp
from gptstar.training.world import PARALLEL


@dataclass
class BatchWarmup:
    """A batch that grows (Brown et al., arXiv:2005.14165): `first` sequences, then `increment` more in equal stages,
    until trainer.batch_size after `steps` steps. 0: none.
    """

    first: int = 0
    increment: int = 0
    steps: int = 0


@dataclass
class LengthWarmup:
    """Sequences that grow (Li et al., arXiv:2108.06084): cut into pieces of `first` tokens, then of twice as many, and
    so on, until they stay whole after `steps` steps. A step keeps its tokens. 0: none.
    """

    first: int = 0
    steps: int = 0


@dataclass
class TrainerConfig:
    """The run: how long, how large, where, how often.

    trainable         all, or adapters: adapters, norms and embeddings, everything else frozen (model.adapter_width)
    seed              of the weights and the order of the data
    device            auto (cuda if there is one, else cpu), cpu, cuda, cuda:1, mps
    precision         auto (bf16 on CUDA, fp32 elsewhere), fp32, bf16, fp16 (with loss scaling); weights stay fp32
    compile           torch.compile; null: on CUDA only
    parallel          auto (ddp under torchrun, else none), none, ddp (a copy of the model on each process) or fsdp
                      (weights, gradients and moments in shards)
    tensor_parallel   with parallel=ddp: consecutive ranks that compute every layer together, each with its share of the
                      heads and channels; such groups then divide the batch. 1: none
    timeout           seconds that a step waits for the other ranks before the run ends
    batch_size        sequences an optimizer step, on all ranks together
    microbatch        sequences a forward pass of a rank; null: all it has, which this must divide; auto: what suits
                      the device
    recompute         layers, from the first, whose activations are made again in the backward pass instead of kept:
                      less memory, up to a third more time
    attention         the kernel: auto, dense, sdpa, folded, flex or flex_flash (gptstar/model/kernel_choice.py)
    sequence_length   tokens a sequence; null: model.context
    batch_warmup, length_warmup    a smaller batch, shorter sequences at first: see their own keys
    max_steps, max_tokens  the budget, in optimizer steps or in tokens: exactly one of them
    clip              gradient norm above which gradients are scaled down; 0: never
    eval_every        steps between validations; 0: only at checkpoints and at the end
    eval_tokens       tokens of a validation during the run (the last one reads the whole split)
    eval_length       tokens of the windows that validations read; null: as trainer.sequence_length. Runs that were
                      trained at different lengths are compared at the same one
    eval_tasks        tasks of lm-evaluation-harness that are measured as the model trains, at the end too
    eval_tasks_every  steps between them; 0: only at the end
    eval_tasks_limit  documents of each task, or below 1 their share; null: all
    eval_tasks_dir    a folder with TASK.jsonl files; null: the Hugging Face hub
    sample_every      steps between samples written to the log; 0: none
    sample_prompt     what samples continue
    checkpoint_every  steps between checkpoints; 0: only at the end
    keep_last         checkpoints kept, beside the one with the lowest validation loss
    nonfinite         stop, or skip: what to do at a loss or gradient that is not finite
    max_skipped       skip: how many steps may be skipped before stopping all the same
    profile           whether the third step is taken apart: RUN/profile/profile.md and trace.json
    peak_flops        the device's matmul peak for MFU, FLOP/s; null: from a table (CUDA) or measured at the start
    """

    seed: int = 0
    trainable: str = "all"
    device: str = "auto"
    precision: str = "auto"
    compile: bool | None = None
    parallel: str = "auto"
    tensor_parallel: int = 1
    timeout: float = 600.0
    batch_size: int = 16
    microbatch: int | str | None = None
    recompute: int = 0
    attention: str = "auto"
    sequence_length: int | None = None
    batch_warmup: BatchWarmup = field(default_factory=BatchWarmup)
    length_warmup: LengthWarmup = field(default_factory=LengthWarmup)
    max_steps: int | None = None
    max_tokens: int | None = None
    clip: float = 1.0
    eval_every: int = 100
    eval_tokens: int = 100_000
    eval_length: int | None = None
    eval_tasks: list[str] = field(default_factory=list)
    eval_tasks_every: int = 0
    eval_tasks_limit: float | None = 200
    eval_tasks_dir: str | None = None
    sample_every: int = 0
    sample_prompt: str = "def "
    checkpoint_every: int = 500
    keep_last: int = 2
    nonfinite: str = "stop"
    max_skipped: int = 10
    profile: bool = False
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
        if self.trainable not in ("all", "adapters"):
            raise ValueError(f"trainer.trainable={self.trainable!r} is unknown: choose all or adapters")
        if self.parallel not in PARALLEL:
            raise ValueError(f"trainer.parallel={self.parallel!r} is unknown: choose one of {', '.join(PARALLEL)}")
        if self.attention not in ("auto", *KERNELS):
            raise ValueError(
                f"trainer.attention={self.attention!r} is unknown: choose one of auto, {', '.join(KERNELS)}"
            )
        if self.nonfinite not in ("stop", "skip"):
            raise ValueError(f"trainer.nonfinite={self.nonfinite!r} is unknown: choose stop or skip")
        if (self.max_steps is None) == (self.max_tokens is None):
            raise ValueError(
                f"trainer.max_steps={self.max_steps} and trainer.max_tokens={self.max_tokens}: "
                "set exactly one of them (the other to null)"
            )
        if isinstance(self.microbatch, str) and self.microbatch != "auto":
            raise ValueError(f"trainer.microbatch={self.microbatch!r} must be a number, auto or null")
        positive = ("batch_size", "sequence_length", "max_steps", "max_tokens", "eval_tokens", "eval_length", "timeout")
        for key in (*positive, "tensor_parallel", "keep_last", "peak_flops", "eval_tasks_limit"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ValueError(f"trainer.{key}={value} must be above 0")
        natural = (
            "seed",
            "recompute",
            "clip",
            "eval_every",
            "eval_tasks_every",
            "sample_every",
            "checkpoint_every",
            "max_skipped",
        )
        for key in natural:
            if getattr(self, key) < 0:
                raise ValueError(f"trainer.{key}={getattr(self, key)} must not be negative")
        if isinstance(self.microbatch, int) and self.microbatch <= 0:
            raise ValueError(f"trainer.microbatch={self.microbatch} must be above 0")
        if isinstance(self.microbatch, int) and self.batch_size % self.microbatch:
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is not a multiple of trainer.microbatch={self.microbatch}"
            )


@dataclass
class LoggerConfig:
    """Where metrics go beside metrics.jsonl, which is always written.

    name     jsonl (nothing more), wandb or tensorboard
    project, entity, group   wandb's own
    mode     wandb: auto (online where its server answers and a key is set, else offline), online, offline
    """

    name: str = "jsonl"
    project: str = "gptstar"
    entity: str | None = None
    group: str | None = None
    mode: str = "auto"

    def __post_init__(self) -> None:
        for key, allowed in (("name", ("jsonl", "wandb", "tensorboard")), ("mode", ("auto", "online", "offline"))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"logger.{key}={getattr(self, key)!r} is unknown: choose one of {', '.join(allowed)}")


@dataclass
class TrainConfig:
    """A whole run.

    model, data, tokenizer, optimizer, schedule, trainer, logger    its sections, each with keys of its own
    ideas      files of your own whose blocks, positions, optimizers, ... can be named (docs/your_first_idea.md)
    run_dir    the folder it writes
    resume     a run folder: continue there; or one of its checkpoints: continue from that one in a new run_dir; auto:
               continue in run_dir if a run has begun there. What a launcher starts again does so by itself
    init_from  a trained model, anything `gptstar.load` takes, whose weights a new run starts from (from a GPT* archive
               with full state the optimizer's moments too). On the command line it also brings its shape, which
               model.KEY=... may change where the weights still fit, and its tokenizer
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_steps=1000))
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    ideas: list[str] = field(default_factory=list)
    run_dir: str = "runs/unnamed"
    resume: str | None = None
    init_from: str | None = None

    def __post_init__(self) -> None:
        with suppress(UserError):  # a budget that cannot be, of which `check` tells
            self.schedule = self.schedule.of(self.total_steps)

    @property
    def sequence_length(self) -> int:
        """Tokens a training sequence has."""
        return self.trainer.sequence_length or self.model.context

    @property
    def eval_length(self) -> int:
        """Tokens of a window of validation."""
        return self.trainer.eval_length or self.sequence_length

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step reads when the batch is as large as it becomes."""
        return self.trainer.batch_size * self.sequence_length

    @property
    def total_steps(self) -> int:
        """The budget in optimizer steps."""
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        assert self.trainer.max_tokens is not None
        return batch_sizes(self.trainer).steps_for(self.trainer.max_tokens // self.sequence_length)

    def check(self) -> None:
        """Raises UserError where parts that are fine by themselves do not fit together."""
        try:
            check_choices(self.model)
        except ValueError as error:
            raise UserError(str(error)) from error
        length, total = self.sequence_length, self.total_steps
        limit = longest(self.model)
        for key, wanted in (("sequence_length", length), ("eval_length", self.eval_length)):
            if limit is not None and wanted > limit:
                raise UserError(
                    f"trainer.{key}={wanted} is longer than the {limit} positions the model has: "
                    "shorten it or raise model.context"
                )
        if total < 1:
            raise UserError(
                f"trainer.max_tokens={self.trainer.max_tokens} is less than one step of {self.tokens_per_step} tokens: "
                "raise it or lower trainer.batch_size"
            )
        batch_sizes(self.trainer)
        sequence_lengths(self.trainer, length)
        if self.data.document_mask and not attends_only(self.model):
            raise UserError(
                f"data.document_mask=true needs a block in which only attention mixes tokens, not {self.model.block}"
            )
        if self.trainer.attention != "auto":
            device = pick_device(self.trainer.device).type
            try:
                check_kernel(self.trainer.attention, self.model, device, length, self.data.document_mask)
            except ValueError as error:
                raise UserError(f"trainer.attention={self.trainer.attention}: {error}") from error
        if self.trainer.recompute > self.model.n_layer:
            raise UserError(
                f"trainer.recompute={self.trainer.recompute} is more than the {self.model.n_layer} layers the model has"
            )
        if self.trainer.trainable == "adapters" and not self.model.adapter_width:
            raise UserError("trainer.trainable=adapters needs adapters in the model: set model.adapter_width, e.g. 64")
        if self.init_from and self.tokenizer.source == "train":
            raise UserError(
                f"init_from={self.init_from} has embeddings for its own tokenizer: set tokenizer.source=init_from"
            )
        if self.tokenizer.source == "init_from" and not self.init_from:
            raise UserError("tokenizer.source=init_from needs a model to start from: set init_from")
        if (self.schedule.warmup_steps or 0) > total:
            raise UserError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is longer than the run of {total} steps: "
                "lower it, set it to null, or raise trainer.max_steps"
            )
        if self.tokenizer.source == "train":
            check_vocabulary(self.tokenizer.vocab_size, self.model)


def batch_sizes(options: TrainerConfig) -> BatchRamp:
    """Sequences of full length in each step. Raises UserError for a warm-up that cannot be."""
    warmup = options.batch_warmup
    try:
        return BatchRamp(warmup.first or options.batch_size, options.batch_size, warmup.increment or 1, warmup.steps)
    except ValueError as error:
        raise UserError(str(error)) from error


def sequence_lengths(options: TrainerConfig, length: int) -> LengthRamp:
    """The length into which the sequences of each step are cut. Raises UserError for a warm-up that cannot be."""
    warmup = options.length_warmup
    try:
        return LengthRamp(warmup.first or length, length, warmup.steps)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_vocabulary(n_token: int, model: ModelConfig) -> None:
    """Raises UserError for a tokenizer with more tokens than the model has embeddings."""
    if n_token > model.vocab_size:
        raise UserError(
            f"the tokenizer has {n_token} tokens but model.vocab_size={model.vocab_size}: "
            f"set model.vocab_size={n_token} or choose a smaller tokenizer"
        )


def spare_embeddings(n_token: int, model: ModelConfig) -> str | None:
    """A remark where more than a tenth of the model's embeddings stand for no token: they cost memory and time."""
    spare = model.vocab_size - n_token
    if spare * 10 <= model.vocab_size:
        return None
    return (
        f"{spare:,} of the {model.vocab_size:,} embeddings stand for no token of the tokenizer: "
        f"model.vocab_size={n_token} makes a smaller and faster model"
    )
