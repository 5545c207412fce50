"""Sliding-window perplexity of any text, for several models, contexts and strides."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import DTYPES
from gptstar.errors import UserError
from gptstar.evaluation.budget import token_budget
from gptstar.evaluation.checkpoint import load_for_evaluation
from gptstar.evaluation.provenance import about, evaluation_folder, trained_length
from gptstar.evaluation.results import read_results, write_results
from gptstar.evaluation.store import fingerprint, request_key
from gptstar.evaluation.texts import PRESETS, Text, read_files, read_preset
from gptstar.evaluation.windows import PROTOCOLS, cut_windows, score_windows
from gptstar.files import make_folder
from gptstar.model.choices import longest
from gptstar.model.transformer import GPT
from gptstar.offload.load import Limits
from gptstar.pretrained.load import load_config
from gptstar.progress import progress
from gptstar.quantization.quantize import KINDS

BLOCK = 1024  # tokens; the standard error takes the loss of blocks, not of tokens, to be independent


@dataclass
class PerplexityConfig:
    """What is measured, and how.

    checkpoints   what gptstar.load takes, each
    text          globs: .jsonl[.gz|.xz|.zst] and .parquet hold a document a record, any other file is one document
    preset        wikitext2, enwik8 or text8: the text that GPT* published figures of, and its protocol. text=[PATH]
                  names its file (WikiText-2's raw test split; enwik8 or its zip file); enwik8 and text8 are
                  downloaded into cache_dir where none is named
    contexts      tokens a window; empty: each model's own. Those that are too long for a model are left out
    strides       tokens from one window to the next, each with every context that is not shorter; empty: the context
    protocol      exact (every token is scored) or original (the first of each window is not, stride = context);
                  null: original with a preset, otherwise exact. See `windows.py`
    max_bytes     only the beginning of the text; null: all
    text_field    of jsonl and parquet records
    output_dir    where perplexity.json, .md and .png go; null: RUN/evaluation, evaluations/NAME for what is no run,
                  evaluations/perplexity for several checkpoints. What is there is not measured again
    batch_tokens  tokens a forward pass (at least one window); auto: what memory holds and the device is fast at
    dtype         auto (as saved), fp32, bf16, fp16, int8 or int4
    memory_budget, gpu_memory_budget, quantized_dir  as `sample.py` takes them; for one checkpoint after the other
    """

    checkpoints: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    preset: str | None = None
    contexts: list[int] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)
    protocol: str | None = None
    max_bytes: int | None = None
    text_field: str = "text"
    output_dir: str | None = None
    cache_dir: str = "~/.cache/gptstar"
    batch_tokens: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    memory_budget: str | None = None
    gpu_memory_budget: str | None = None
    quantized_dir: str | None = None

    def __post_init__(self) -> None:
        for key, choices in (("preset", (None, *PRESETS)), ("protocol", (None, *PROTOCOLS))):
            if getattr(self, key) not in choices:
                known = ", ".join(map(str, choices[1:]))
                raise ValueError(f"{key}={getattr(self, key)!r} is unknown: choose one of {known}")
        if self.dtype not in ("auto", *DTYPES, *KINDS):
            raise ValueError(f"dtype={self.dtype!r} is unknown: choose one of auto, fp32, bf16, fp16, int8, int4")
        if not self.checkpoints:
            raise ValueError("checkpoints is empty: name at least one, checkpoints=[RUN]")
        if not self.text and self.preset is None:
            raise ValueError("there is no text: name a file, text=[PATH], or a preset")
        least = 2 if self.how == "original" else 1
        for key, values, low in (
            ("contexts", self.contexts, least),
            ("strides", self.strides, 1),
            ("max_bytes", [] if self.max_bytes is None else [self.max_bytes], 1),
        ):
            if min(values, default=low) < low:
                raise ValueError(f"{key}={min(values)} must be at least {low}")
        if self.strides and self.how == "original":
            raise ValueError("protocol=original has stride = context: leave strides out, or set protocol=exact")

    @property
    def how(self) -> str:
        """The protocol that is meant."""
        return self.protocol or ("original" if self.preset else "exact")


@dataclass(frozen=True)
class Outcome:
    """rows: of perplexity.json (`results.py`), in the order of checkpoints and contexts. notes: what was left out."""

    rows: list[dict]
    notes: list[str]
    folder: Path


def perplexity(config: PerplexityConfig, console: Console | None = None) -> Outcome:
    """Measures every checkpoint at every context and stride, each on disk as soon as it is done.

    Raises UserError, before anything is measured, for a context that is too long for a model with learned positions
    (where others remain for that model they are measured, and a note says what was left out), and for a missing text.
    """
    notes: list[str] = []
    plans = {name: list(_pairs(config, name, notes)) for name in dict.fromkeys(config.checkpoints)}
    folder = _output_folder(config)
    read_results(folder / "perplexity.json")  # refuses one it could not add to
    if config.preset:
        text = read_preset(config.preset, config.text, config.cache_dir)
    else:
        text = read_files(config.text, config.text_field)
    text = text.beginning(config.max_bytes)
    if not any(text.documents):
        raise UserError(f"{', '.join(text.files)}: there is no text in it")
    make_folder(folder)
    rows = []
    for name, pairs in plans.items():
        for row in _measure_model(config, name, pairs, text, folder / "perplexity.json", notes, console):
            rows.append(row)
            if console is not None:
                console.print(describe(row), highlight=False, markup=False, soft_wrap=True)
    if console is not None:
        for note in notes:
            console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return Outcome(rows, notes, folder)


def _pairs(config: PerplexityConfig, checkpoint: str, notes: list[str]) -> Iterator[tuple[int, int]]:
    """The contexts and strides of a model."""
    model = load_config(checkpoint)
    limit, contexts = longest(model), config.contexts or [model.context]
    beyond = [context for context in contexts if limit is not None and context > limit]
    if beyond:
        what = f"contexts={beyond} of {checkpoint}: its {limit} learned positions are the most it can read"
        if len(beyond) == len(contexts):
            raise UserError(f"{what}: lower them")
        notes.append(f"{what}; left out")
    for stride in config.strides:
        if stride > max(contexts):
            raise UserError(f"strides={stride} is longer than every context, so tokens would be left out: lower it")
    for context in contexts:
        if context not in beyond:
            yield from ((context, stride) for stride in config.strides or [context] if stride <= context)


def _output_folder(config: PerplexityConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir).expanduser()
    one = len(set(config.checkpoints)) == 1
    return evaluation_folder(config.checkpoints[0]) if one else Path("evaluations") / "perplexity"


def _measure_model(
    config: PerplexityConfig,
    checkpoint: str,
    pairs: list[tuple[int, int]],
    text: Text,
    path: Path,
    notes: list[str],
    console: Console | None,
) -> Iterator[dict]:
    limits = Limits(config.memory_budget, config.gpu_memory_budget, config.quantized_dir)
    most = max(context for context, _ in pairs)
    model, tokenizer = load_for_evaluation(checkpoint, config.device, config.dtype, limits, config.batch_tokens, most)
    budget = token_budget(config.batch_tokens, model)
    stream, of_text = _stream(config, checkpoint, text, model, tokenizer)
    counts = text.counts()
    same = {**about(checkpoint, model), "text": text.name, "preset": text.preset, "files": text.files, **counts}
    same |= {"trained_length": trained_length(checkpoint, model.config), "longest": model.longest}
    same |= {"position": "+".join(dict.fromkeys(model.config.schemes)), "tokenizer": tokenizer.fingerprint()}
    same |= {"vocabulary": tokenizer.vocab_size}
    same |= {"tokens": int(of_text.sum()), "text_sha256": text.sha256(), "batch_tokens": budget, "protocol": config.how}
    weights = fingerprint(model, tokenizer, device=model.device.type)
    measured = 0
    for context, stride in pairs:
        if config.how == "original" and len(stream) < context:
            notes.append(f"context {context} of {checkpoint}: the text has {len(stream):,} tokens; left out")
            continue
        measured += 1
        identity = request_key("perplexity", weights, same["text_sha256"], config.how, context, stride)
        old = [row for row in read_results(path) if row.get("fingerprint") == identity]
        if old:
            yield old[0]
            continue
        start = time.perf_counter()
        windows = cut_windows(len(stream), context, stride, config.how)
        with progress(console, f"{checkpoint}, context {context}", sum(w.end - w.start for w in windows)) as advance:
            try:
                nats = score_windows(model, stream, windows, budget, advance)
            except torch.OutOfMemoryError as error:
                raise UserError(f"context={context} does not fit into the GPU's memory: lower batch_tokens") from error
        if np.isfinite(nats).sum() < sum(w.end - w.first + 1 for w in windows):
            raise UserError(f"{checkpoint} gives no numbers at context={context}: is it damaged, or dtype too narrow?")
        row = {
            "task": text.name,
            "part_of": None,
            "kind": "perplexity",
            "metrics": metrics(nats[of_text], counts, len(windows) * context if config.how == "original" else None),
            "of": counts["documents"],
            "max_length": context,
            "stride": stride,
            "tokens_scored": int(np.isfinite(nats[of_text]).sum()),
            "seconds": round(time.perf_counter() - start, 3),
            "fingerprint": identity,
            "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            **same,
        }
        write_results(path, [row])
        yield row
    if not measured:
        raise UserError(f"the text has {len(stream):,} tokens, fewer than one window: lower contexts")


def _stream(
    config: PerplexityConfig, checkpoint: str, text: Text, model: GPT, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    stream, of_text = text.stream(tokenizer)
    if stream.max() >= model.config.vocab_size:
        raise UserError(
            f"{checkpoint}: its tokenizer has the token {stream.max()} and the model {model.config.vocab_size} tokens: "
            "they do not belong together"
        )
    # The original begins with the text itself.
    return (stream[1:], of_text[1:]) if config.how == "original" else (stream, of_text)


def metrics(nats: np.ndarray, counts: dict[str, int], n_windowed: int | None = None) -> dict[str, dict]:
    """{name: {"value", "stderr", "higher_is_better"}} from the nats of each token of a text, NaN where not scored.

    loss                 mean nats of a scored token
    token_perplexity     exp(loss)
    word_perplexity      exp(loss * tokens / words)
    bits_per_byte        loss / ln 2 * tokens / bytes; bits_per_character likewise

    Where tokens are not scored their loss is taken to be the mean. n_windowed: tokens in all windows (protocol
    original): token_perplexity is then exp(loss * n_windowed / tokens), as it was published. That leaves the rest after
    the last window out of the sum and not out of the division, so it is too low: by 1% at context 1024 on WikiText-2,
    2% at 3072. The standard error comes from the spread between blocks of `BLOCK` tokens; None where there is but one.
    """
    n_token = len(nats)
    loss, error = _mean(nats)
    share = 1.0 if n_windowed is None else n_windowed / n_token
    per = {name: n_token / max(1, counts[name]) for name in ("words", "bytes", "characters")}
    found = {
        "loss": (loss, error),
        "token_perplexity": _exp(loss, error, share),
        "word_perplexity": _exp(loss, error, per["words"]),
        "bits_per_byte": (loss * per["bytes"] / math.log(2), error * per["bytes"] / math.log(2)),
        "bits_per_character": (loss * per["characters"] / math.log(2), error * per["characters"] / math.log(2)),
    }
    return {
        name: {
            "value": value if math.isfinite(value) else None,
            "stderr": spread if math.isfinite(spread) else None,
            "higher_is_better": False,
        }
        for name, (value, spread) in found.items()
    }


def _mean(nats: np.ndarray) -> tuple[float, float]:
    """Mean of what is scored, and its standard error: that of a ratio of sums over blocks."""
    n_block = -(-len(nats) // BLOCK)
    padded = np.full(n_block * BLOCK, np.nan)
    padded[: len(nats)] = nats
    blocks = padded.reshape(n_block, BLOCK)
    sums, sizes = np.nansum(blocks, 1), np.isfinite(blocks).sum(1)
    mean, n = sums.sum() / sizes.sum(), int((sizes > 0).sum())
    if n < 2:
        return float(mean), math.nan
    return float(mean), float(math.sqrt(n / (n - 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum())


def _exp(loss: float, error: float, factor: float) -> tuple[float, float]:
    """exp(factor * loss), which may be beyond what a float holds, and its standard error (first order)."""
    value = math.exp(factor * loss) if factor * loss < 700 else math.inf
    return value, value * factor * error


def describe(row: dict) -> str:
    """One line."""
    found = row["metrics"]
    values = []
    for name, text in (
        ("token_perplexity", "token perplexity {:.3f}"),
        ("word_perplexity", "word perplexity {:.3f}"),
        ("bits_per_byte", "{:.4f} bits/byte"),
        ("bits_per_character", "{:.4f} bits/character"),
    ):
        if found[name]["value"] is not None:
            values.append(text.format(found[name]["value"]))
    stride = "" if row["stride"] == row["max_length"] else f", stride {row['stride']}"
    what = f"{row['checkpoint']} on {row['text']}, context {row['max_length']}{stride}"
    return f"{what}: {', '.join(values)} ({row['tokens_scored']:,} tokens, {row['seconds']:.0f} s)"
