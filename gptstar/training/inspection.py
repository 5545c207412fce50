"""What a model will see: a sequence of a step, the mixture, the documents' lengths, the tokens, what packing costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from gptstar.data.inspection import (
    Lengths,
    Usage,
    document_lengths,
    packing_wastes,
    piece,
    token_usage,
)
from gptstar.data.packing import Waste
from gptstar.data.prepare import Prepared, prepare
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.files import make_folder
from gptstar.pretrained.load import load
from gptstar.pretrained.native import find_checkpoint, find_run, list_checkpoints, read_tokenizer
from gptstar.training.checkpoint import read_progress
from gptstar.training.config import TrainConfig
from gptstar.training.order import Order
from gptstar.training.run_folder import refuse_changes

TOP = 25  # tokens that are named


@dataclass
class InspectConfig(TrainConfig):
    """What to look at: a training configuration, or with `resume` (or run=RUN) a run or one of its checkpoints, with
    the corpora that were added to it.

    step           whose batch, and from where on the mixture: steps are counted from 0, so that step=N is the first one
                   after checkpoint step-N
    window         which sequence of that batch, all ranks together, from 0
    tokens         whether its token numbers are shown with what each stands for
    sample_tokens  how many tokens of a corpus are counted, about: all of a smaller one
    output_dir     where inspection.json and inspection.png go; null: nowhere, all is only printed
    """

    step: int = 0
    window: int = 0
    tokens: bool = False
    sample_tokens: int = 10_000_000
    output_dir: str | None = None

    def __post_init__(self) -> None:
        for key, least in (("step", 0), ("window", 0), ("sample_tokens", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} must be at least {least}")


@dataclass(frozen=True)
class Segment:
    """Tokens of one document that a sequence predicts one after another.

    document  its number in the corpus's training split
    first     which token of it the first one is
    after     the token that is read before that one
    ends      whether the document ends with it
    """

    document: int
    first: int
    after: int
    ends: bool
    tokens: list[int]
    text: str


@dataclass(frozen=True)
class Window:
    """A sequence: what it predicts, of which corpus, and how many positions hold nothing."""

    corpus: str
    length: int
    segments: list[Segment]
    padding: int


@dataclass(frozen=True)
class Row:
    """A corpus in the mixture at some step.

    documents, tokens, bytes   of its training split; bytes are of its text, in UTF-8
    windows                    sequences it gives
    epochs, share              how often a pass goes through it, and what part of the pass it is
    taken, epochs_taken        sequences that were used before the step, and how often all of them were
    """

    documents: int
    tokens: int
    bytes: int
    windows: int
    epochs: float
    share: float
    taken: int
    epochs_taken: float


@dataclass(frozen=True)
class Inspection:
    """All of it, by corpus where it says dict.

    rows, last_step  sequences of the step, and the last step of the budget
    passes           over the mixture, before the step
    packed           the way that is configured, one of `wastes`
    planned          shards on which wastes were found
    """

    name: str
    sequence_length: int
    step: int
    window_number: int
    rows: int
    last_step: int
    passes: float
    window: Window
    mixture: dict[str, Row]
    packed: str
    wastes: dict[str, dict[str, Waste]]
    planned: dict[str, int]
    lengths: dict[str, Lengths]
    usage: dict[str, Usage]
    tokenizer: Tokenizer

    def mixed(self) -> np.ndarray:
        """Share of each token in what is read, float64 (vocabulary,)."""
        shares = {name: row.share for name, row in self.mixture.items() if name in self.usage}
        mixed = np.zeros(self.tokenizer.vocab_size)
        for name, share in shares.items():
            mixed += share / sum(shares.values()) * self.usage[name].share
        return mixed

    def top(self) -> list[int]:
        """The most frequent tokens in what is read, that occur."""
        mixed = self.mixed()
        order = np.argsort(-mixed, kind="stable")[:TOP]
        return order[mixed[order] > 0].tolist()

    def unused(self) -> float:
        """Share of the vocabulary that does not occur in any corpus."""
        return float(np.mean(self.mixed() == 0))

    def as_dict(self) -> dict:
        """For inspection.json."""
        mixed = self.mixed()
        window = asdict(self.window)
        for segment in window["segments"]:
            segment["pieces"] = [piece(self.tokenizer, token) for token in segment["tokens"]]
        return {
            "data": self.name,
            "sequence_length": self.sequence_length,
            "step": self.step,
            "last_step": self.last_step,
            "sequences": self.rows,
            "passes": self.passes,
            "window": {"number": self.window_number, **window},
            "mixture": {name: asdict(row) for name, row in self.mixture.items()},
            "packing": {
                "chosen": self.packed,
                "shards": self.planned,
                "waste": {name: {k: asdict(w) for k, w in wastes.items()} for name, wastes in self.wastes.items()},
            },
            "document_tokens": {
                name: {
                    "shards": found.n_shard,
                    "mean": found.mean,
                    "median": found.median,
                    "longest": found.longest,
                    "longer_than_a_sequence": {"documents": found.longer[0], "tokens": found.longer[1]},
                    "edges": found.edges.tolist(),
                    "documents": found.counts.tolist(),
                    "tokens": found.tokens.tolist(),
                }
                for name, found in self.lengths.items()
            },
            "tokens": {
                "vocabulary": self.tokenizer.vocab_size,
                "unused": self.unused(),
                "counted": {name: {"tokens": u.counted, "of": u.n_token} for name, u in self.usage.items()},
                "bytes_a_token": {name: row.bytes / max(1, row.tokens) for name, row in self.mixture.items()},
                "top": [
                    {
                        "token": token,
                        "piece": piece(self.tokenizer, token),
                        "share": mixed[token],
                        "by_corpus": {name: usage.share[token] for name, usage in self.usage.items()},
                    }
                    for token in self.top()
                ],
            },
        }


def inspect(config: InspectConfig, console: Console | None = None) -> Inspection:
    """Prepares what is not prepared yet and looks. Raises UserError as training would, and for what is out of range."""
    config.check()
    if config.output_dir is not None:  # before any work
        make_folder(Path(config.output_dir).expanduser())
    start = None
    if config.resume:
        run = find_run(config.resume)
        refuse_changes(run, config)
        start = find_checkpoint(config.resume) if list_checkpoints(run) else None
    given = None
    if start is not None:
        given = read_tokenizer(start)
    elif config.tokenizer.source == "init_from":
        assert config.init_from is not None  # checked
        given = load(config.init_from)[1]
    data = prepare(config.data, config.tokenizer, console, given)
    begun = read_progress(start)["data"] if start is not None else None
    order = Order(data, config.data, config.trainer, config.sequence_length, begun=begun)
    n_row = order.tokens(config.step) // order.lengths.length(config.step)
    if config.window >= n_row:
        raise UserError(
            f"window={config.window} is out of range: step {config.step} has {n_row} sequences, 0 to {n_row - 1}"
        )
    window = read_window(order, data.tokenizer, config.step, config.window)
    corpora, tokenizer = data.corpora, data.tokenizer
    wastes = {name: packing_wastes(corpus, config.sequence_length, tokenizer) for name, corpus in corpora.items()}
    return Inspection(
        config.data.name,
        config.sequence_length,
        config.step,
        config.window,
        n_row,
        config.total_steps - 1,
        order.passes(config.step),
        window,
        mixture_table(order, data, config.step),
        config.data.packing + " + mask" * config.data.document_mask,
        {name: found for name, (found, _) in wastes.items()},
        {name: n_shard for name, (_, n_shard) in wastes.items()},
        {name: document_lengths(corpus, config.sequence_length) for name, corpus in corpora.items()},
        {name: token_usage(corpus, tokenizer.vocab_size, config.sample_tokens) for name, corpus in corpora.items()},
        tokenizer,
    )


def read_window(order: Order, tokenizer: Tokenizer, step: int, row: int) -> Window:
    """One row of a step's batch, of all ranks together."""
    length = order.lengths.length(step)
    whole, part = divmod(row, order.length // length)  # in a warm-up of the length several rows are one sequence
    sources, which, windows = order.history.windows(order.sizes.position(step) + whole, 1)
    name = sources[int(which[0])].name
    if name not in order.packings:
        raise UserError(f"step={step} reads corpus {name!r}, which has been left out since: bring it back to see it")
    packing = order.packings[name]
    batch = packing.read(windows)
    inputs, targets = batch.inputs[0].tolist(), batch.targets[0].tolist()
    begin, end = part * length, (part + 1) * length
    segments, place = [], 0
    for document, first, count in packing.segments(int(windows[0])):
        a, b = max(place, begin), min(place + count, end)
        if a < b:
            tokens = targets[a:b]
            ends = tokens[-1] == tokenizer.eot_id
            segments.append(Segment(document, first + a - place, inputs[a], ends, tokens, tokenizer.decode(tokens)))
        place += count
    return Window(name, length, segments, length - sum(len(segment.tokens) for segment in segments))


def mixture_table(order: Order, data: Prepared, step: int) -> dict[str, Row]:
    """The corpora that a step reads from; one that has been left out since has nothing but what was taken of it."""
    mixture, taken = order.history.at(order.sizes.position(step)), order.taken(step)
    total = sum(source.per_pass for source in mixture.sources)
    rows = {}
    for source in mixture.sources:
        corpus = data.corpora.get(source.name)
        split = corpus.train.split if corpus is not None else None
        rows[source.name] = Row(
            split.documents if split else 0,
            split.tokens if split else 0,
            split.bytes if split else 0,
            source.n_window,
            float(source.epochs),
            float(source.per_pass / total),
            taken[source.name],
            taken[source.name] / source.n_window,
        )
    return rows
