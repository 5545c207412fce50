"""Ideas of your own: files that put blocks, positions, optimizers, ... into the tables without a change to the package.

    python train.py ideas=[kerple.py] model.position=kerple         # docs/your_first_idea.md

A file is a Python module whose classes or functions are marked with `gptstar.model.own.add`. Runs and checkpoints keep
a copy, `ideas/FILE.py`, so whatever reads one finds its code. Code that comes with a checkpoint is run only where
somebody on this machine has named that very text before, in `ideas=` or to `python -m gptstar.check`: its SHA-256 is
kept in ~/.cache/gptstar/ideas.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptstar.errors import UserError
from gptstar.files import cache_folder, replace_text
from gptstar.model.choices import check_choices, chosen
from gptstar.model.config import ModelConfig

FOLDER = "ideas"
_PACKAGE = "gptstar_ideas"
_ADDED = re.compile(r"""\badd\(\s*[\w.]+\s*,\s*["'](\w+)["']""")


@dataclass(frozen=True)
class Idea:
    """A file that was imported, as its text was then."""

    name: str  # FILE.py
    text: str


_imported: dict[str, Idea] = {}


def use(files: Sequence[str | Path]) -> None:
    """Imports ideas that somebody names, each once in a process, and remembers that they were named.

    Raises UserError for a file that is missing, cannot be imported, or was imported with another text.
    """
    for file in files:
        _import(Path(file).expanduser())
        with suppress(OSError):  # a home that cannot be written to: it has to be named again
            mark = _mark(_imported[Path(file).name].text)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def use_those_of(folder: Path) -> None:
    """Imports what a checkpoint or run brings along. Raises UserError for code that nobody here has named yet."""
    for file in files_of(folder):
        text = _read(file)
        if _imported.get(file.name) == Idea(file.name, text):
            continue
        if not _mark(text).exists():
            raise UserError(
                f"{folder} needs {file}, code that it brings along and that was never run on this machine: read it, "
                f"then allow it with python -m gptstar.check {file}"
            )
        _import(file)


def files_of(folder: Path) -> list[Path]:
    """The copies in a checkpoint or run."""
    return sorted((folder / FOLDER).glob("*.py"))


def versions(folder: Path, names: Collection[str]) -> list[str]:
    """FILE.py@HASH of the copies in a run that count: those that add one of these names, or none at all (what they
    change is not to be seen from outside). Nothing is imported.
    """
    found = []
    for file in files_of(folder):
        text = _read(file)
        added = set(_ADDED.findall(text))
        if not added or added & set(names):
            found.append(f"{file.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}")
    return found


def changed_since(folder: Path, files: Sequence[str | Path]) -> list[str]:
    """Names of files whose text is another than that of a run's copy."""
    copies = {file.name: file for file in files_of(folder)}
    named = [Path(file).expanduser() for file in files]
    return [file.name for file in named if file.name in copies and _read(file) != _read(copies[file.name])]


def keep_copies(folder: Path, files: Sequence[str | Path]) -> None:
    """Copies of files that are in use into a run's folder."""
    _write(folder, [_imported[Path(file).name] for file in files])


def keep_with(folder: Path, config: ModelConfig) -> None:
    """Copies of what a model is made of, beside its weights."""
    _write(folder, ideas_of(config))


def ideas_of(config: ModelConfig) -> list[Idea]:
    """Those that a model is made of."""
    homes = [str(getattr(thing, "__module__", "")) for thing in chosen(config)]
    return [_imported[f"{home.partition('.')[2]}.py"] for home in dict.fromkeys(homes) if home.startswith(_PACKAGE)]


def module_of(file: Path) -> str:
    """What an idea is called once it is imported."""
    return f"{_PACKAGE}.{file.stem}"


def place_of(error: BaseException) -> str | None:
    """The last line of an idea on the way to an error, "FILE.py, line 12, in forward: CODE"; None if there is none."""
    home = {module.__file__: module for name, module in sys.modules.items() if name.startswith(f"{_PACKAGE}.")}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in home]
    if frames:
        last = frames[-1]
        return f"{Path(last.filename).name}, line {last.lineno}, in {last.name}: {last.line}"
    called = re.match(r"(\w+)[\w.]*\(\) ", str(error)) if isinstance(error, TypeError) else None  # with other arguments
    files = [file for file, module in home.items() if called is not None and called[1] in vars(module)]
    return Path(str(files[0])).name if files else None


def mistake_in(error: Exception) -> str | None:
    """In one line what went wrong within an idea; None for what went wrong elsewhere."""
    if (place := place_of(error)) is None:
        return None
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        said += " is none of its settings: give it to add(TABLE, NAME, ...) with its usual value"
    file = place.partition(",")[0]
    return f"{place}: {type(error).__name__}: {said}; python -m gptstar.check {file} asks what else it has to do"


def check_model(config: ModelConfig, folder: Path) -> None:
    """`check_choices` once the ideas of a checkpoint are in the tables."""
    use_those_of(folder)
    check_choices(config)


def _import(file: Path) -> None:
    text = _read(file)
    there = _imported.get(file.name)
    if there is not None:
        if there.text != text:
            raise UserError(
                f"{file} differs from the {file.name} that this process imported before: give one of them another name"
            )
        return
    if not file.stem.isidentifier():
        raise UserError(f"{file} cannot be imported: use letters, digits and _ in its name")
    name = module_of(file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = f" (line {frames[-1].lineno})" if frames else ""
        raise UserError(f"{file} cannot be imported{line}: {type(error).__name__}: {error}") from error
    _imported[file.name] = Idea(file.name, text)


def _read(file: Path) -> str:
    if file.suffix != ".py":
        raise UserError(f"ideas={file} is no Python file: name one that ends in .py")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"ideas={file} cannot be read ({error}): check the path (from {Path.cwd()})") from error


def _mark(text: str) -> Path:
    return cache_folder() / FOLDER / hashlib.sha256(text.encode()).hexdigest()


def _write(folder: Path, ideas: Sequence[Idea]) -> None:
    for idea in ideas:
        (folder / FOLDER).mkdir(exist_ok=True)
        replace_text(folder / FOLDER / idea.name, idea.text)
