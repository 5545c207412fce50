"""From a configuration to a prepared corpus: read, clean, split, tokenise, shard; once, then from the cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gptstar.data.corpora import Corpus, DataConfig, open_corpus
from gptstar.data.shards import ShardWriter, Split, TokenStream, verify
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from gptstar.errors import UserError

FORMAT = 1  # of the cached folder; a change of meaning gets a new number, and with it a new key
BATCH_BYTES = 4_000_000  # text tokenised at a time


@dataclass
class PreparedCorpus:
    """Tokens ready to train on. `cached` tells whether they were already there."""

    folder: Path
    tokenizer: Tokenizer
    train: TokenStream
    validation: TokenStream
    cached: bool

    @property
    def key(self) -> str:
        """Stands for everything that went in: corpus, cleaning, split, tokenizer."""
        return self.folder.name.rpartition("-")[2]


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, console: Console | None = None, given: Tokenizer | None = None
) -> PreparedCorpus:
    """The tokens of a corpus, from the cache when nothing that went into them has changed.

    `given` is used instead of the tokenizer that the configuration names.

    The cache key covers the corpus's content, the cleaning, the split and the tokenizer. A new folder is written
    beside and renamed when complete, so a killed preparation leaves nothing half-done. Raises UserError for a
    corpus, tokenizer or cached shard that cannot be used.
    """
    if given is None and tokenizer.source != "train":
        given = load_tokenizer(tokenizer.source, tokenizer.eot_token)
    corpus = open_corpus(data)
    inputs = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "clean": data.clean,
        "validation": "separate" if corpus.validation else f"hash < {data.validation_fraction}",
        "shard_tokens": data.shard_tokens,
        "tokenizer": given.fingerprint()
        if given
        else f"bpe {tokenizer.vocab_size} {tokenizer.train_bytes} {tokenizer.eot_token}",
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(data.cache_dir).expanduser() / f"{data.name}-{key}"
    cached = (folder / "meta.json").is_file()
    if not cached:
        _write(folder, inputs, data, tokenizer, corpus, given, console or Console(quiet=True))
    return _open(folder, cached)


def _open(folder: Path, cached: bool) -> PreparedCorpus:
    remedy = f"delete {folder} to prepare the corpus again"
    try:
        meta = json.loads((folder / "meta.json").read_text())
        splits = {name: Split.from_dict(values) for name, values in meta["splits"].items()}
        tokenizer = load_tokenizer(str(folder / "tokenizer.json"), meta["eot_token"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"the prepared corpus in {folder} is damaged ({error}): {remedy}") from error
    for split in splits.values():
        verify(folder, split.shards, tokenizer.vocab_size)
    streams = {name: TokenStream(folder, split, tokenizer.vocab_size) for name, split in splits.items()}
    return PreparedCorpus(folder, tokenizer, streams["train"], streams["validation"], cached)


def _write(
    folder: Path,
    inputs: dict,
    data: DataConfig,
    config: TokenizerConfig,
    corpus: Corpus,
    tokenizer: Tokenizer | None,
    console: Console,
) -> None:
    _remove_abandoned(folder)
    work = folder.parent / f".{folder.name}.{platform.node()}.{os.getpid()}"
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"data.cache_dir={data.cache_dir} cannot be written: {error.strerror}") from error
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console) as progress:
            if tokenizer is None:
                task = progress.add_task(f"training a {config.vocab_size}-token BPE", total=corpus.n_document, state="")
                documents = (text for held_out, text in _documents(data, corpus) if not held_out)
                tokenizer = train_tokenizer(progress.track(documents, total=corpus.n_document, task_id=task), config)
                progress.update(task, total=1, completed=1)  # held-out documents were not counted
            task = progress.add_task(f"tokenising {data.name}", total=corpus.n_document, state="")
            writers = {
                name: ShardWriter(work, name, tokenizer.vocab_size, tokenizer.eot_id, data.shard_tokens)
                for name in ("train", "validation")
            }
            for batch in _batches(_documents(data, corpus)):
                for (held_out, text), tokens in zip(
                    batch, tokenizer.encode_batch([text for _, text in batch]), strict=True
                ):
                    writers["validation" if held_out else "train"].add(tokens, len(text.encode()))
                progress.update(task, advance=len(batch), state=_state(writers.values()))
            progress.update(task, total=1, completed=1)
        splits = {name: writer.close() for name, writer in writers.items()}
        for name, split in splits.items():
            if not split.documents:
                raise UserError(f"the {name} split of data={data.name} has no document: give it more text")
        tokenizer.save(work / "tokenizer.json")
        meta = {
            "inputs": inputs,
            "eot_token": tokenizer.eot_token,
            "splits": {name: split.as_dict() for name, split in splits.items()},
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        if not (folder / "meta.json").is_file():  # another process may have been faster
            os.replace(work, folder)
    except OSError as error:
        raise UserError(f"the prepared corpus cannot be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _documents(data: DataConfig, corpus: Corpus) -> Iterator[tuple[bool, str]]:
    """(held out?, cleaned text) of every document that is not empty."""
    clean = _cleaner(data.clean)
    for text in map(clean, corpus.documents()):
        if text:
            yield corpus.validation is None and _hash_share(text) < data.validation_fraction, text
    if corpus.validation is not None:
        for text in map(clean, corpus.validation()):
            if text:
                yield True, text


def _cleaner(name: str):
    if name == "ftfy":
        import ftfy

        return ftfy.fix_text
    return lambda text: text


def _hash_share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _batches(documents: Iterable[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    batch: list[tuple[bool, str]] = []
    size = 0
    for item in documents:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _state(writers: Iterable[ShardWriter]) -> str:
    tokens = sum(w.split.tokens + w._filled for w in writers)
    return f"{tokens / 1e6:.1f}M tokens"


def _remove_abandoned(folder: Path) -> None:
    """Work folders of preparations on this machine that were killed (their process is gone)."""
    for work in folder.parent.glob(f".{folder.name}.{platform.node()}.*"):
        try:
            os.kill(int(work.suffix[1:]), 0)
        except (ValueError, ProcessLookupError):
            shutil.rmtree(work, ignore_errors=True)
        except PermissionError:
            pass
