"""Texts whose perplexity is measured: any files, or the three that GPT* published figures of."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gptstar.data.archives import TEXT_SUFFIXES
from gptstar.data.formats import split_suffix
from gptstar.data.reading import Fields, FilePiece, read_texts
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.fetch import fetch_visibly

URL = "http://mattmahoney.net/dc"
N_BYTE = 100_000_000  # of enwik8 and of text8, as their names say
TEST_SPLIT = (95_000_000, 100_000_000)


@dataclass(frozen=True)
class Text:
    """Documents in their order, and the files they come from: {path: sha256}."""

    name: str
    documents: list[str]
    files: dict[str, str]
    preset: str | None = None  # of which it is the whole

    def counts(self) -> dict[str, int]:
        """Documents, UTF-8 bytes, characters, and words as white space separates them."""
        return {
            "documents": len(self.documents),
            "bytes": sum(len(document.encode()) for document in self.documents),
            "characters": sum(map(len, self.documents)),
            "words": sum(len(document.split()) for document in self.documents),
        }

    def sha256(self) -> str:
        """Of all documents."""
        digest = hashlib.sha256()
        for document in self.documents:
            content = document.encode()
            digest.update(b"%d " % len(content) + content)
        return digest.hexdigest()

    def beginning(self, max_bytes: int | None) -> Text:
        """The first max_bytes bytes (None: all), to the last whole character."""
        if max_bytes is None or max_bytes >= self.counts()["bytes"]:
            return self
        kept, left = [], max_bytes
        for document in self.documents:
            part = document.encode()[:left].decode(errors="ignore")
            kept += [part] if part else []
            left -= len(document.encode())
            if left <= 0:
                break
        return Text(f"{self.name}, {max_bytes:,} bytes", kept, self.files)

    def stream(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
        """(token numbers, whether each is of the text): an end-of-text before every document, as in training."""
        tokens: list[int] = []
        joints = []
        for document in tokenizer.encode_batch(self.documents):
            joints.append(len(tokens))
            tokens += [tokenizer.eot_id, *document]
        of_text = np.ones(len(tokens), dtype=bool)
        of_text[joints] = False
        return np.array(tokens, dtype=np.int64), of_text


def read_files(patterns: list[str], text_field: str = "text") -> Text:
    """The files that globs match: .jsonl, .parquet, WARC and tar files hold many documents, others are one each.

    Raises UserError for a pattern without a file and for what is no UTF-8.
    """
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(p for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p))
        if not found:
            raise UserError(f"text: no file matches {pattern!r} (from {os.getcwd()}): check the path")
        files += map(Path, found)
    files = list(dict.fromkeys(files))
    documents: list[str] = []
    for path in files:
        suffix = split_suffix(path.name)
        if suffix is not None and suffix[0] not in TEXT_SUFFIXES:
            fields = Fields(text_field)
            documents += read_texts(FilePiece(str(path), fields), fields)
        else:
            documents.append(_decode(path, _read(path)))
    name = files[0].stem if len(files) == 1 else f"{files[0].parent.name or 'text'} ({len(files)} files)"
    return Text(name, documents, {str(path): _sha256(path) for path in files})


def _wikitext2(path: Path) -> Text:
    """The raw test split as the perplexity guide of transformers joins it: its lines, a blank line between them.

    Lines keep their own end, and lines of white space are empty. With GPT-2's tokenizer: 287,644 tokens.
    """
    lines = _decode(path, _read(path)).removesuffix("\n").split("\n")
    text = "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)
    return Text("wikitext2", [text], {str(path): _sha256(path)}, "wikitext2")


def _test_split(name: str, path: Path) -> Text:
    """Bytes 95M to 100M of enwik8 or text8, or of their zip files; a character that the borders cut is left out."""
    begin, end = TEST_SPLIT
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open(name) as file:
                size = archive.getinfo(name).file_size
                file.seek(begin)
                part = file.read(end - begin)
        else:
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(begin)
                part = file.read(end - begin)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as {name}: {error}") from error
    if size != N_BYTE:
        raise UserError(f"{path} has {size:,} bytes and {name} has {N_BYTE:,}: is it the right file?")
    continuation = bytes(range(0x80, 0xC0))  # of a character that begins before
    text = _decode(path, part.lstrip(continuation), whole=False)
    return Text(name, [text], {str(path): hashlib.sha256(part).hexdigest()}, name)


PRESETS: dict[str, Callable[[Path], Text]] = {
    "wikitext2": _wikitext2,
    "enwik8": partial(_test_split, "enwik8"),
    "text8": partial(_test_split, "text8"),
}
DOWNLOADED = ("enwik8", "text8")


def read_preset(name: str, paths: list[str], cache_dir: str, url: str = URL) -> Text:
    """The text of a preset, from its file; enwik8 and text8 are downloaded where no path is given.

    Raises UserError for an unknown name, a file that is missing or another one, and where there is no network.
    """
    if name not in PRESETS:
        raise UserError(f"preset={name!r} is unknown: choose one of {', '.join(PRESETS)}")
    if len(paths) > 1 or (not paths and name not in DOWNLOADED):
        raise UserError(f"preset={name} is one file, {len(paths)} are given: name its file, text=[PATH]")
    path = Path(paths[0]).expanduser() if paths else download_text(name, Path(cache_dir).expanduser(), url)
    return PRESETS[name](path)


def download_text(name: str, folder: Path, url: str = URL) -> Path:
    """enwik8 or text8 in `folder`, unzipped, brought there if it is not there yet."""
    target = folder / name
    if target.is_file():
        return target
    archive = folder / f"{name}.zip"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch_visibly(f"{url}/{name}.zip", archive, partial(_check_zip, name))
        with zipfile.ZipFile(archive) as zipped:
            part = Path(zipped.extract(name, folder / f"{name}.part"))
        os.replace(part, target)
        part.parent.rmdir()
    except UserError as error:
        raise UserError(f"{error}; or name a file that you have: text=[{name}]") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}: remove it to download it anew") from error
    archive.unlink()
    return target


def _check_zip(name: str, path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo(name)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(f"{path} is no zip file with {name} in it") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


def _decode(path: Path, content: bytes, whole: bool = True) -> str:
    """whole: whether a last character that is cut off is a mistake."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(content, final=whole)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error
