"""From a configuration to prepared corpora: read, clean, filter, tokenise, compare, shard; once, then from the cache.

Below data.cache_dir:

    NAME-KEY/            a prepared corpus (gptstar/data/shards.py); KEY covers everything that decided what is in it
    .NAME-KEY.work/      its shards in the making;  .parts-KEY/  prepared documents on their way there (parts.py)
    .locks/              one process at a time works on such parts
    tokenizer-KEY/       a tokenizer that was trained
    contamination-KEY.npz, fingerprints.json, ends.json    what else is worth keeping
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from rich.console import Console

from gptstar.data.assemble import SPLITS, STATE, Repeats, write_marks, write_removed, write_shards
from gptstar.data.batches import window_count
from gptstar.data.cache import disk_errors, key_of, only_one
from gptstar.data.card import write_card
from gptstar.data.config import DataConfig
from gptstar.data.contamination import Contamination, evaluation_texts
from gptstar.data.corpora import Corpus, CorpusConfig, open_corpus
from gptstar.data.ends import is_too_small
from gptstar.data.parts import Part, sweep
from gptstar.data.remote import ShardCache
from gptstar.data.shards import Shard, Split, TokenStream, verify
from gptstar.data.text_files import name_of
from gptstar.data.tokenise import Tally, tokenise
from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, first_bytes, load_tokenizer, train_tokenizer
from gptstar.data.worker import Recipe, cleaner, cut_end, hash_share
from gptstar.errors import UserError
from gptstar.files import locked, replace_text

FORMAT = 2  # of the cached folder; a change of meaning gets a new number, and with it a new key
SMALL = 4_000_000  # bytes of a corpus below which starting processes takes longer than the work


@dataclass
class PreparedCorpus:
    """One corpus, ready to train on.

    cached    whether it was already there
    key       stands for everything that went in: documents, cleaning, split, tokenizer
    offsets   the file with a shard's document starts
    ahead     where shards come over a network: is told which are wanted next
    n_byte    there: room for shards on this machine
    """

    folder: Path
    train: TokenStream
    validation: TokenStream
    cached: bool
    key: str
    offsets: Callable[[Shard], Path]
    ahead: Callable[[list[int]], None] | None = None
    n_byte: int | None = None


@dataclass
class Prepared:
    """All corpora of a configuration, by name, and the tokenizer they share."""

    tokenizer: Tokenizer
    corpora: dict[str, PreparedCorpus]

    def held_out(self, length: int) -> dict[str, TokenStream]:
        """The held-out text of each corpus that has enough for a window of `length` tokens."""
        streams = {name: corpus.validation for name, corpus in self.corpora.items()}
        return {name: stream for name, stream in streams.items() if window_count(len(stream), length)}


def prepare(
    data: DataConfig, tokenizer: TokenizerConfig, console: Console | None = None, given: Tokenizer | None = None
) -> Prepared:
    """The tokens of a corpus or mixture, from the cache where nothing that went into them has changed.

    `given` is used instead of the tokenizer that the configuration names. A kill at any moment loses a few seconds of
    work: the next call goes on from there, and the result is the same to the byte. Raises UserError for a corpus,
    tokenizer or cached shard that cannot be used.
    """
    console = console or Console(quiet=True)
    cache = Path(data.cache_dir).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache_dir={data.cache_dir} cannot be written: {error.strerror}") from error
    if given is None and tokenizer.source != "train":
        given = load_tokenizer(tokenizer.source, tokenizer.eot_token)
    with disk_errors(cache):
        corpora, given = _prepared_before(data, cache, console, given)
        memory = cache / "fingerprints.json"
        opened = {
            name: open_corpus(config, f"data.corpora.{name}" if data.corpora else "data", memory)
            for name, config in data.parts.items()
            if name not in corpora
        }
        for name, corpus in opened.items():
            if is_too_small(corpus, data.clean, data.validation_fraction, cache / "ends.json"):
                opened[name] = replace(corpus, ends=True)
                _plainly(console)(
                    f"{name}: too few documents to hold some of them out, so the last "
                    f"{100 * data.validation_fraction:g}% of each is"
                )
        if given is None:
            given = _trained_tokenizer(data, tokenizer, opened, cache, console)
        contamination = _contamination(data, cache, console)
        earlier: list[PreparedCorpus] = []
        for name, corpus in opened.items():
            work = _Preparation(name, data, data.parts[name], corpus, given, contamination, earlier)
            corpora[name] = work.result(cache, console)
            earlier.append(corpora[name])
    corpora = {name: corpora[name] for name in data.parts}
    for split in SPLITS:
        if not any(len(getattr(corpus, split)) for corpus in corpora.values()):
            remedy = "give it more documents, or hold files out with data.validation_paths=[FILE]"
            if split == "train" and not any(len(corpus.validation) for corpus in corpora.values()):
                remedy = "there is no text in it"
            if split == "validation" and data.validation_fraction == 0:
                remedy = "with data.validation_fraction=0 it needs data.validation_paths or data.validation_split"
            raise UserError(f"the {split} split of data={data.name} has no document: {remedy}")
    return Prepared(given, corpora)


def _prepared_before(
    data: DataConfig, cache: Path, console: Console, tokenizer: Tokenizer | None
) -> tuple[dict[str, PreparedCorpus], Tokenizer | None]:
    """The corpora that somebody has prepared already, and the tokenizer they were prepared with, which must be one."""
    found = {}
    urls = {name: config.url for name, config in data.parts.items() if config.corpus == "prepared"}
    n_remote = sum("://" in (url or "") for url in urls.values())
    for name, url in urls.items():
        assert url is not None
        if "://" in url:
            folder = cache / "remote" / hashlib.sha256(url.encode()).hexdigest()[:16]
            folder.mkdir(parents=True, exist_ok=True)
            n_byte = int(data.cache_gib * 2**30 / n_remote)
            own, found[name] = open_remote(url, folder, n_byte, lambda text: console.print(text, highlight=False))
        else:
            own, found[name] = open_prepared(Path(url).expanduser())
        if tokenizer is not None and own.fingerprint() != tokenizer.fingerprint():
            raise UserError(
                f"data.url={url} was prepared with another tokenizer than the one that is to be used: leave tokenizer "
                "settings out to take over its own, or prepare the corpus anew"
            )
        tokenizer = own
    return found, tokenizer


class _Preparation:
    """One corpus on its way."""

    def __init__(
        self,
        name: str,
        data: DataConfig,
        config: CorpusConfig,
        corpus: Corpus,
        tokenizer: Tokenizer,
        contamination: Path | None,
        earlier: list[PreparedCorpus],
    ) -> None:
        self.name, self.data, self.config, self.corpus, self.tokenizer = name, data, config, corpus, tokenizer
        self.compared = data.exact_duplicates or data.near_duplicates.threshold > 0
        self.earlier = [other.folder for other in earlier] if self.compared else []
        self.recipe = Recipe(
            tokenizer.fast.to_str(),
            tokenizer.eot_token,
            corpus.fields,
            None if corpus.separate else data.validation_fraction,
            data.clean,
            data.bad_records,
            replace(data.filters, newer_than=config.newer_than or data.filters.newer_than),
            data.exact_duplicates,
            data.near_duplicates,
            contamination,
            data.contamination.remove,
            corpus.ends,
        )
        recipe = self.recipe.values() | {"tokenizer": tokenizer.fingerprint(), "format": FORMAT}
        recipe["signatures"] = version("rensa") if data.near_duplicates.threshold else None
        recipe["contamination"] = contamination.stem if contamination else None
        self.parts_key = key_of(recipe)
        self.inputs = recipe | {
            "corpus": corpus.fingerprint,
            "shard_tokens": data.shard_tokens,
            "after": [other.key for other in earlier] if self.compared else [],
        }
        self.key = key_of(self.inputs)

    def result(self, cache: Path, console: Console) -> PreparedCorpus:
        """From the cache, or made now."""
        folder = cache / f"{self.name}-{self.key}"
        parts = cache / f".parts-{self.parts_key}"
        lock = cache / ".locks" / self.parts_key
        made = False
        if not (folder / "meta.json").is_file():
            with only_one(lock, f"a corpus like {self.name}", _plainly(console)):
                if not (folder / "meta.json").is_file():  # another process may have been faster
                    self._make(folder, parts, console)
                    made = True
        if not made and parts.is_dir():  # a kill just after the last rename has left them
            lock.parent.mkdir(exist_ok=True)
            with locked(lock, patience=0) as free:
                if free is not None:
                    sweep(parts, self._names())
        return open_prepared(folder, cached=not made)[1]

    def _make(self, folder: Path, parts_folder: Path, console: Console) -> None:
        parts_folder.mkdir(exist_ok=True)
        tally = Tally(f"preparing {self.name}", len(self.corpus.sources), console)
        with tally.shown():
            by_piece = tokenise(self.corpus.sources, self.recipe, parts_folder, self._n_worker(), tally)
        parts = list(chain.from_iterable(by_piece))
        owners = {p.path: source.piece for source, own in zip(self.corpus.sources, by_piece, strict=True) for p in own}

        def name(part: Part, record: int) -> str:
            return name_of(owners[part.path], record)

        work = folder.with_name(f".{folder.name}.work")
        work.mkdir(exist_ok=True)
        exact, near = self.data.exact_duplicates, self.data.near_duplicates
        repeats = Repeats(parts, self.earlier, exact, near, work / "scratch", name)
        splits = write_shards(parts, repeats, work, self.tokenizer.vocab_size, self.data.shard_tokens)
        removed, contaminated = write_removed(parts, repeats, work)
        write_marks(parts, repeats, work, exact, near.threshold > 0)
        self.tokenizer.save(work / "tokenizer.json")
        read = {"documents": sum(p.n_read for p in parts), "bytes": sum(p.n_byte for p in parts)}
        settings = {key: value for key, value in self.inputs.items() if key not in ("tokenizer", "eot_token", "format")}
        licence, pieces = self.config.licence, self._pieces()
        write_card(work, self.name, licence, pieces, read, splits, removed, contaminated, settings, self.tokenizer)
        meta = {
            "key": self.key,
            "inputs": self.inputs,
            "eot_token": self.tokenizer.eot_token,
            "splits": {name: split.as_dict() for name, split in splits.items()},
        }
        replace_text(work / "meta.json", json.dumps(meta, indent=1))
        (work / STATE).unlink()
        if folder.is_dir():  # without its meta.json: somebody has removed it
            shutil.rmtree(folder)
        os.replace(work, folder)
        sweep(parts_folder, self._names())
        console.print(f"{self.name}: {tally}", highlight=False, markup=False, soft_wrap=True)

    def _pieces(self) -> list[dict]:
        return [
            {"name": source.piece.name, "fingerprint": source.fingerprint, "held_out": source.held_out}
            for source in self.corpus.sources
        ]

    def _names(self) -> set[str]:
        return {source.piece.name for source in self.corpus.sources}

    def _n_worker(self) -> int:
        if self.corpus.n_byte is not None and self.corpus.n_byte < SMALL:
            return 0
        return self.data.workers or os.cpu_count() or 1


def open_prepared(folder: Path, cached: bool = True) -> tuple[Tokenizer, PreparedCorpus]:
    """A prepared corpus by its folder. Raises UserError where it is damaged."""
    remedy = f"delete {folder} to prepare the corpus again"
    key, splits, tokenizer = _read_meta(folder, (folder / "meta.json").read_text, remedy)
    if cached:  # otherwise it has just been written
        for split in splits.values():
            verify(folder, split.shards, tokenizer.vocab_size)
    train, validation = (TokenStream(folder, splits[name], tokenizer.vocab_size) for name in ("train", "validation"))
    return tokenizer, PreparedCorpus(folder, train, validation, cached, key, lambda shard: folder / shard.offsets_file)


def open_remote(url: str, folder: Path, n_byte: int, note: Callable[[str], None]) -> tuple[Tokenizer, PreparedCorpus]:
    """A prepared corpus behind a URL; `folder` keeps what has come of it, up to n_byte bytes of shards.

    note: is told of what goes wrong and is tried again. Raises UserError where it cannot be had.
    """
    cache = ShardCache(url, folder, n_byte, note=note)
    cache.text("tokenizer.json")
    key, splits, tokenizer = _read_meta(
        folder, lambda: cache.text("meta.json").decode(), f"check data.url={url}, or delete {folder}"
    )
    train, validation = (cache.stream(splits[name], tokenizer.vocab_size) for name in ("train", "validation"))

    def ahead(numbers: list[int]) -> None:
        cache.ahead([train.split.shards[number] for number in numbers])

    return tokenizer, PreparedCorpus(folder, train, validation, True, key, cache.offsets, ahead, n_byte)


def _read_meta(folder: Path, read: Callable[[], str], remedy: str) -> tuple[str, dict[str, Split], Tokenizer]:
    try:
        meta = json.loads(read())
        splits = {name: Split.from_dict(meta["splits"][name]) for name in SPLITS}
        return meta["key"], splits, load_tokenizer(str(folder / "tokenizer.json"), meta["eot_token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the prepared corpus in {folder} is damaged ({error}): {remedy}") from error


def _trained_tokenizer(
    data: DataConfig, config: TokenizerConfig, corpora: dict[str, Corpus], cache: Path, console: Console
) -> Tokenizer:
    """A BPE of the training documents, an equal amount of text from each corpus of a mixture."""
    made_of = {
        "format": FORMAT,
        "corpora": [corpus.fingerprint for corpus in corpora.values()],
        "fields": [asdict(corpus.fields) for corpus in corpora.values()],
        "clean": data.clean,
        "validation_fraction": data.validation_fraction,
        "bpe": [config.vocab_size, config.train_bytes, config.eot_token],
    }
    if any(corpus.ends for corpus in corpora.values()):
        made_of["ends"] = [corpus.ends for corpus in corpora.values()]
    folder = cache / f"tokenizer-{key_of(made_of)}"
    path = folder / "tokenizer.json"
    with only_one(cache / ".locks" / folder.name, "the same tokenizer", _plainly(console)):
        if path.is_file():
            return load_tokenizer(str(path), config.eot_token)
        with console.status(f"training a {config.vocab_size}-token BPE") if console.is_terminal else _nothing():
            share = max(1, config.train_bytes // len(corpora))
            texts = (first_bytes(_training_texts(corpus, data), share) for corpus in corpora.values())
            trained = train_tokenizer(chain.from_iterable(texts), config)
        folder.mkdir(exist_ok=True)
        replace_text(path, trained.fast.to_str())
    return load_tokenizer(str(path), config.eot_token)


def _training_texts(corpus: Corpus, data: DataConfig) -> Iterator[str]:
    clean = cleaner(data.clean)
    for text in map(clean, corpus.texts()):
        if corpus.ends:
            text, _ = cut_end(text, data.validation_fraction)
        if text and (corpus.separate or corpus.ends or hash_share(text) >= data.validation_fraction):
            yield text


def _plainly(console: Console) -> Callable[[str], object]:
    """Prints text as it is."""
    return partial(console.print, highlight=False, markup=False)


def _contamination(data: DataConfig, cache: Path, console: Console) -> Path | None:
    """The file with the n-grams of the evaluation sets that are to be kept out."""
    config = data.contamination
    if not config.tasks:
        return None
    texts = {task: [text for _, text in evaluation_texts(task, config.data_dir)] for task in config.tasks}
    content = {task: hashlib.sha256("\0".join(some).encode()).hexdigest() for task, some in texts.items()}
    path = cache / f"contamination-{key_of([FORMAT, content, config.n, config.shortest, config.min_matches])}.npz"
    with only_one(cache / ".locks" / path.stem, "the same evaluation sets", _plainly(console)):
        if not path.is_file():
            part = path.with_name(f".{path.name}.part")
            Contamination(texts, config.n, config.shortest, config.min_matches).save(part)
            os.replace(part, path)
    return path


@contextmanager
def _nothing() -> Iterator[None]:
    yield
