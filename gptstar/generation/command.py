"""What `sample.py` does."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import free_memory, pick_device
from gptstar.environment import door_command
from gptstar.errors import UserError
from gptstar.generation.beam import BeamSettings, beam_search, check_beams
from gptstar.generation.decoding import Decoder
from gptstar.generation.draft import N_DRAFT, Draft, PromptLookup
from gptstar.generation.engine import Engine
from gptstar.generation.generate import Generation, generate_detailed, generate_stream
from gptstar.generation.interactive import converse
from gptstar.generation.many import Request, continue_many, read_requests, submit_many
from gptstar.generation.randomness import fresh_seed
from gptstar.generation.settings import SamplingSettings
from gptstar.generation.speculation import DraftModel, same_tokenizer
from gptstar.model.choices import capacity_of, longest
from gptstar.model.config import ModelConfig
from gptstar.model.describe import cache_bytes_per_token
from gptstar.model.transformer import GPT
from gptstar.offload.load import Limits, load_within
from gptstar.offload.plan import Room
from gptstar.offload.speed import Speed
from gptstar.pretrained.load import load
from gptstar.progress import progress
from gptstar.sizes import say_bytes

MAX_ROWS = 32  # lines of prompts that are written at a time
ALWAYS_SAID = ("checkpoint", "prompt", "max_new_tokens", "temperature", "top_p", "seed")


@dataclass
class SampleConfig(SamplingSettings):
    """What is continued, by which model, and how (the rest is a request).

    checkpoint   a run or checkpoint folder, or anything else `gptstar.load` reads
    prompt       text; null: the model begins a document of its own
    prompt_file  a file that holds the prompt; -: standard input
    prompts      a file of JSON lines, {"prompt": "..."} and settings of its own where wanted, decoded together
    output       prompts: the file of JSON lines that is written
    interactive  a text is written in turns, the model's part streaming
    dtype        auto (as saved), fp32, bf16, fp16, int8 or int4
    draft        lookup: what followed the same words before; or a smaller model with the same tokenizer, as checkpoint:
                 guesses that the model checks several at a time. In fp32 the text is the same; in half precision
                 rounding may decide otherwise between two tokens that are nearly as likely
    n_draft      tokens guessed at a time, at most
    n_beam       2 or more: instead of drawing, the n likeliest continuations as a whole are searched for, so many
                 followed at a time; length_penalty and early_stopping as in gptstar/generation/beam.py
    compile      takes a while at the start, and then less time a token
    memory_budget  what the process may take in all, as in 16GiB; what does not fit stays on disk and is read for each
                 token. The plan goes to stderr, and how fast it was
    gpu_memory_budget  what it may take of the GPU's memory
    quantized_dir  where the copy of a model that is quantised under a budget is kept; null: ~/.cache/gptstar/quantized
    """

    checkpoint: str = "???"  # must be given
    prompt: str | None = None
    prompt_file: str | None = None
    prompts: str | None = None
    output: str | None = None
    interactive: bool = False
    device: str = "auto"
    dtype: str = "auto"
    draft: str | None = None
    n_draft: int = N_DRAFT
    n_beam: int = 0
    length_penalty: float = BeamSettings.length_penalty
    early_stopping: bool | str = BeamSettings.early_stopping
    compile: bool = False
    memory_budget: str | None = None
    gpu_memory_budget: str | None = None
    quantized_dir: str | None = None
    max_new_tokens: int = 200
    temperature: float = 0.8
    top_p: float | None = 0.95
    seed: int | None = 0


def run(config: SampleConfig) -> None:
    """What is asked for: one sample to standard output, lines to a file, or a conversation.

    Raises UserError for what makes no sense together, before the model is read.
    """
    _check_sources(config)
    if config.prompts is None and not config.interactive:
        sample(config, sys.stdout)
        return
    model, tokenizer, decoder = _load(config)
    if config.interactive:
        engine = Engine(model, tokenizer, max_rows=1, decoder=decoder)
        converse(engine, config, input, sys.stdout, sys.stderr, _prompt(config))
        return
    _continue_lines(config, model, tokenizer, decoder)


def _continue_lines(config: SampleConfig, model: GPT, tokenizer: Tokenizer, decoder: Decoder) -> None:
    assert config.prompts is not None and config.output is not None
    if config.seed is None:
        config.seed = fresh_seed()
    requests = read_requests(Path(config.prompts), config, tokenizer.vocab_size)
    capacity, total = _longest(requests, tokenizer, model.config), sum(r.wish.n for r in requests)
    a_row = capacity * cache_bytes_per_token(model.config, model.dtype.itemsize)
    fits = int(0.5 * free_memory(model.device)) // a_row  # the other half is for what a round computes
    if not fits:
        raise UserError(
            f"prompts={config.prompts}: the longest line needs {capacity} tokens with its continuation, and "
            f"{say_bytes(a_row)} for them: lower its max_new_tokens"
        )
    engine = Engine(model, tokenizer, max_rows=min(MAX_ROWS, total, fits), capacity=capacity, decoder=decoder)
    numbers = submit_many(engine, requests)
    print(command_line(config), file=sys.stderr)
    console = Console(stderr=True)
    with Path(config.output).open("x", encoding="utf-8") as out, progress(console, "prompts", total) as advance:
        speed = Speed(model)
        n_token = continue_many(engine, requests, numbers, out, advance)
    if speed.streams:
        print(speed.since(n_token), file=sys.stderr)


def sample(config: SampleConfig, out: TextIO | None = None) -> str:
    """The prompt and its continuation; where n asks for several, each under a line with the seed that makes it alone.

    out: where it is written, a single one as it comes. The command that makes the sample again goes to stderr.
    """
    config.check()
    if config.seed is None:
        config.seed = fresh_seed()
    prompt = _prompt(config)
    model, tokenizer, decoder = _load(config)
    print(command_line(config), file=sys.stderr)
    if config.n_beam:
        text = _likeliest(model, tokenizer, prompt, config)
        if out is not None:
            print(text, file=out)
        return text
    if config.n == 1 and config.logprobs is None:
        stream = generate_stream(model, tokenizer, prompt, config, decoder)
        start = tokenizer.decode(tokenizer.encode(prompt))
        speed = Speed(model)
        lines = speed.streams and config.draft is None  # of a draft's guesses a pass takes several
        pieces = _slowly(start, stream, speed) if lines else chain([start], stream)
        written = []
        for piece in pieces:
            written.append(piece)
            if out is not None:
                print(piece, end="", file=out, flush=True)
        if out is not None:
            print(file=out)
        if speed.streams and not lines:
            print(speed.since(len(tokenizer.encode("".join(written[1:])))), file=sys.stderr)
        _report(decoder)
        return "".join(written)
    if decoder.shared and decoder.draft is None:
        done = _together(model, tokenizer, prompt, config, decoder)
    else:
        done = generate_detailed(model, tokenizer, prompt, config, decoder)
    _report(decoder)
    texts = [one.prompt + one.text + _table(one, tokenizer) for one in done]
    if len(done) > 1:
        texts = [f"--- seed={one.seed}\n{text}" for one, text in zip(done, texts, strict=True)]
    if out is not None:
        print("\n\n".join(texts), file=out)
    return "\n\n".join(texts)


def _likeliest(model: GPT, tokenizer: Tokenizer, prompt: str, config: SampleConfig) -> str:
    """What a beam search finds; several each under a line with its score."""
    wish, beams = _beams(config)
    speed = Speed(model)
    found = beam_search(model, tokenizer, prompt, wish, beams)
    if speed.streams:
        print(speed.since(), file=sys.stderr)
    start = tokenizer.decode(tokenizer.encode(prompt))
    if len(found) == 1:
        return start + found[0].text
    return "\n\n".join(f"--- score={beam.score:.4f}\n{start}{beam.text}" for beam in found)


def _beams(config: SampleConfig) -> tuple[SamplingSettings, BeamSettings]:
    """Of a command that names no temperature and no top_p, which a search does not know."""
    usual, asked = SampleConfig(), {f.name: getattr(config, f.name) for f in fields(SamplingSettings)}
    for name in ("temperature", "top_p"):
        if asked[name] == getattr(usual, name):
            asked[name] = getattr(SamplingSettings, name)
    return SamplingSettings(**asked), BeamSettings(config.n_beam, config.length_penalty, config.early_stopping)


def _together(
    model: GPT, tokenizer: Tokenizer, prompt: str, config: SampleConfig, decoder: Decoder
) -> list[Generation]:
    """What `generate_detailed` gives, all sequences in each pass."""
    capacity = _longest([Request("", {"prompt": prompt}, config)], tokenizer, model.config)
    engine, speed = Engine(model, tokenizer, config.n, capacity, decoder=decoder), Speed(model)
    engine.submit(prompt, config)
    done = {event.index: event.done for event in engine.run() if event.done is not None}
    if speed.streams:
        print(speed.since(sum(len(one.tokens) for one in done.values())), file=sys.stderr)
    return [done[index] for index in sorted(done)]


def _slowly(start: str, stream: Iterator[str], speed: Speed) -> Iterator[str]:
    """A line on stderr for each piece of text, which may take seconds."""
    on_screen = sys.stdout.isatty() and sys.stderr.isatty()
    pieces = [start]
    if not on_screen:
        yield start
    for piece in stream:
        print(f"{piece!r}: {speed.since()}", file=sys.stderr, flush=True)
        if on_screen:
            pieces.append(piece)  # the lines show it already: all of it comes at the end, in one piece
        else:
            yield piece
    if on_screen:
        yield "".join(pieces)


def _report(decoder: Decoder) -> None:
    if decoder.draft is not None:
        draft = decoder.draft
        share = f"{draft.acceptance:.0%} of {draft.proposed} guessed tokens were right"
        print(f"draft: {share}, {draft.accepted} tokens needed no pass of their own", file=sys.stderr)


def _check_sources(config: SampleConfig) -> None:
    config.check()
    given = [name for name in ("prompt", "prompt_file", "prompts") if getattr(config, name) is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are given: one of them is enough")
    if config.draft is not None and (config.interactive or config.prompts is not None):
        raise UserError("draft speeds up a single sample: leave it out with prompts and interactive")
    if _limits(config) and config.compile:
        raise UserError("a model under a memory budget cannot be compiled: leave compile out")
    for name in ("length_penalty", "early_stopping"):
        if not config.n_beam and getattr(config, name) != getattr(SampleConfig, name):
            raise UserError(f"{name}={getattr(config, name)} is of a beam search: add n_beam=4, or leave it out")
    if config.n_beam:
        if config.n_beam == 1:
            raise UserError("n_beam=1 searches nothing: 2 or more, or 0 to draw")
        check_beams(*_beams(config))
        if config.draft is not None or config.compile or config.interactive or config.prompts is not None:
            raise UserError(
                f"n_beam={config.n_beam} searches from one prompt: leave draft, compile, interactive and prompts out"
            )
    if config.n_draft < 1:
        raise UserError(f"n_draft={config.n_draft} must be at least 1")
    if config.interactive and config.prompt_file == "-":
        raise UserError("interactive=true reads standard input itself: give the prompt in a file, or as prompt=...")
    if config.interactive and config.prompts is not None:
        raise UserError("interactive=true writes one text: leave prompts out")
    if (config.prompts is None) != (config.output is None):
        raise UserError("prompts and output go together: a file of JSON lines to read and one to write")
    if config.prompts is not None and config.output is not None:
        config.prompts, config.output = (str(Path(p).expanduser()) for p in (config.prompts, config.output))
        if not Path(config.prompts).is_file():
            raise UserError(f"prompts={config.prompts} is no file: check the path")
        _check_output(Path(config.output))
    if not config.interactive:
        _prompt(config)


def _check_output(path: Path) -> None:
    if path.exists():
        raise UserError(f"output={path} exists: choose another name, or move it away")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output={path}: there is no such folder: make it, or choose another one")
    try:
        path.open("x").close()  # what may be written can only be found out by writing
        path.unlink()
    except OSError as error:
        raise UserError(f"output={path} cannot be written ({error.strerror}): choose another one") from error


def _prompt(config: SampleConfig) -> str:
    """The prompt, wherever it comes from; empty where none was given. UserError for one that is given and empty."""
    if config.prompt_file is not None:
        config.prompt = _read(config.prompt_file)  # once: standard input cannot be read again
        config.prompt_file = None
    if config.prompt == "":
        raise UserError("the prompt is empty: write one, or leave it out and the model begins a document of its own")
    return config.prompt or ""


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"prompt_file={name} cannot be read ({error.strerror}): check the path") from error
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"prompt_file={name} is not UTF-8 (byte {error.start}): convert it") from error


def _load(config: SampleConfig) -> tuple[GPT, Tokenizer, Decoder]:
    device = pick_device(config.device)
    limits = _limits(config)
    draft = None if config.draft in (None, "lookup") else load(config.draft, device, config.dtype)  # counts as used
    if limits:
        model, tokenizer = load_within(
            config.checkpoint,
            device,
            config.dtype,
            limits,
            lambda tokenizer, model_config: _room(config, tokenizer, model_config, draft),
            lambda text: print(text, file=sys.stderr, flush=True),
            partial(progress, Console(stderr=True)),
        )
    else:
        model, tokenizer = load(config.checkpoint, device, config.dtype)
    return model, tokenizer, Decoder(model, config.compile, _draft(config, tokenizer, draft))


def _limits(config: SampleConfig) -> Limits:
    """Raises UserError for a folder of copies that are never made."""
    limits = Limits(config.memory_budget, config.gpu_memory_budget, config.quantized_dir)
    if config.quantized_dir is not None and not limits:
        raise UserError("quantized_dir is where copies are kept under a budget: add memory_budget, or leave it out")
    return limits


def _room(config: SampleConfig, tokenizer: Tokenizer, model: ModelConfig, draft: tuple[GPT, Tokenizer] | None) -> Room:
    """For all sequences that are there at a time, prompts included, and the cache of a draft model."""
    rows = max(config.n, config.n_beam)
    if config.interactive:
        length, rows = capacity_of(model), 1
    elif config.prompts is not None:
        requests = read_requests(Path(config.prompts), config, tokenizer.vocab_size)
        length, rows = _longest(requests, tokenizer, model), min(MAX_ROWS, sum(r.wish.n for r in requests))
    else:
        length = _longest([Request("", {"prompt": config.prompt or ""}, config)], tokenizer, model)
    other = 0
    if draft is not None:  # it grows to twice what is needed
        other = 2 * length * cache_bytes_per_token(draft[0].config, draft[0].dtype.itemsize)
    return Room(rows * length, longest=length, other=other)


def _longest(requests: list[Request], tokenizer: Tokenizer, model: ModelConfig) -> int:
    """Tokens of the longest of several prompts with its continuation; what is longer is refused or truncated."""
    found = max(len(tokenizer.encode(r.values["prompt"])) + r.wish.max_new_tokens + 1 for r in requests)
    return min(found, longest(model) or found)


def _draft(config: SampleConfig, tokenizer: Tokenizer, loaded: tuple[GPT, Tokenizer] | None) -> Draft | None:
    if config.draft is None:
        return None
    if loaded is None:
        return PromptLookup(config.n_draft)
    model, theirs = loaded
    same_tokenizer(tokenizer, theirs)
    return DraftModel(Decoder(model, config.compile), theirs, config.n_draft)


def command_line(config: SampleConfig) -> str:
    """What to type for the same sample: the settings that always matter, and those that are not as usual."""
    usual, settings = asdict(SampleConfig()), asdict(config)
    always = ("checkpoint", "prompt", "max_new_tokens") if config.n_beam else ALWAYS_SAID
    keys = [*always, *(k for k, v in settings.items() if k not in always and v != usual[k])]
    return " ".join([door_command("sample"), *(shlex.quote(f"{k}={_typed(k, settings[k])}") for k in keys)])


def _typed(key: str, value: Any) -> str:
    """A value as the command line takes it: Hydra's grammar, but prompt and checkpoint as they are."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_typed('', v) for v in value)}]"
    if not isinstance(value, str) or key == "device":
        return str(value)
    looks_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key and not looks_quoted and value != "null":
        return value
    value = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value).replace("${", "\\${")
    return f"'{value}'"


def _table(one: Generation, tokenizer: Tokenizer) -> str:
    """Log-probabilities, a line a token, where they were asked for."""
    lines = [""]
    for token in one.logprobs or []:
        likeliest = "  ".join(f"{tokenizer.decode([i])!r} {value:.3f}" for i, value in token.top)
        lines.append(f"{tokenizer.decode([token.token])!r} {token.logprob:.3f}    {likeliest}".rstrip())
    return "\n".join(lines)
