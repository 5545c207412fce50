"""The harness's stock tasks, on the hub's data or on files of one's own.

`data_dir=DIR` puts DIR/<task>.jsonl in the place of a task's data set and changes nothing else: the file becomes the
split that the task is evaluated on, and prompts, preprocessing and metrics stay the stock ones. Examples for few-shot
prompts come from DIR/<task>.train.jsonl.
"""

from __future__ import annotations

import difflib
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from jinja2 import UndefinedError
from lm_eval.tasks import TaskManager

from gptstar.errors import UserError, reason
from gptstar.evaluation.jsonl import check_jsonl

STOCK = Path(lm_eval.tasks.__file__).parent
FEWSHOT_SEED = 1234  # the harness's own


@dataclass(frozen=True)
class LoadedTask:
    """A task, or a group of them under one name, ready for lm_eval's evaluate."""

    name: str
    loaded: Any  # what TaskManager.load returns: {"tasks": {name: task}, "groups": ...}
    files: dict[str, str]  # {file of one's own: its sha256}


def load_tasks(names: list[str], data_dir: str | None = None, num_fewshot: int | None = None) -> list[LoadedTask]:
    """Raises UserError for an unknown name, for data that cannot be had, and for files that do not fit their task."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own stock definitions
    manager = _manager(names)
    with tempfile.TemporaryDirectory() as scratch:  # the data is in memory once it is loaded
        files: dict[str, dict[str, str]] = {name: {} for name in names}
        if data_dir is not None:
            folder = _data_folder(data_dir)
            for name in names:
                for leaf in _leaves(manager, name):
                    files[name] |= _put_in_place(manager, leaf, folder, Path(scratch), num_fewshot)
            ours = TaskManager(include_defaults=False, include_path=scratch)
            manager.task_index.update(ours.task_index)
        return [LoadedTask(name, _load(manager, name, data_dir, num_fewshot), files[name]) for name in names]


def _manager(names: list[str]) -> TaskManager:
    """The harness's index of the folders that hold these tasks: all of its 14,000 definitions take 8 seconds."""
    homes, mentioned = _scan(names)
    if homes.keys() >= set(names):
        near = TaskManager(include_defaults=False, include_path=list({homes[name] for name in names}))
        if all(name in near.all_subtasks for name in names):
            return near
    manager = TaskManager() if mentioned >= set(names) else None  # groups, and tasks that are named in other ways
    for name in names:
        if name not in (homes if manager is None else manager.task_index):
            known = homes if manager is None else manager.all_tasks
            close = difflib.get_close_matches(name, known, n=4)
            hint = f"did you mean {', '.join(close)}?" if close else "lm-eval ls tasks lists them"
            raise UserError(f"task {name!r} is unknown to lm-evaluation-harness: {hint}")
    assert manager is not None
    return manager


def _scan(names: list[str]) -> tuple[dict[str, Path], set[str]]:
    """The folder of each task that a definition names plainly, and which of `names` occur in any definition."""
    homes: dict[str, Path] = {}
    mentioned: set[str] = set()
    for path in sorted(STOCK.glob("**/*.yaml")):
        text = path.read_bytes()
        found = re.search(rb"""^["']?task["']?:[ \t]*["']?([\w.-]+)["']?[ \t]*$""", text, re.MULTILINE)
        if found:
            homes.setdefault(found[1].decode(), path.parent)  # the first counts, as in the harness
        mentioned.update(name for name in names if name.encode() in text)
    return homes, mentioned


def _leaves(manager: TaskManager, name: str) -> list[str]:
    """The single tasks that a task, a tag or a group stands for."""
    entry = manager.task_index.get(name)
    if entry is None or entry.kind.name in ("TASK", "PY_TASK"):
        return [name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    members = (entry.cfg or {}).get("task") or []
    names = [item if isinstance(item, str) else item.get("group") or item.get("task") for item in members]
    return [leaf for member in names if isinstance(member, str) for leaf in _leaves(manager, member)]


def _data_folder(data_dir: str) -> Path:
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"data_dir={data_dir} is no folder: check the path")
    if not any(folder.glob("*.jsonl")):
        raise UserError(f"data_dir={data_dir} holds no .jsonl file: it needs one a task, named after it")
    return folder


def _put_in_place(
    manager: TaskManager, name: str, folder: Path, scratch: Path, num_fewshot: int | None
) -> dict[str, str]:
    """Writes a definition that includes the stock one and reads our files. Returns those with their sha256."""
    entry = manager.task_index.get(name)
    stock = (entry.cfg if entry else None) or {}
    split = stock.get("test_split") or stock.get("validation_split")
    if entry is None or split is None or "class" in stock:
        raise UserError(f"task {name} reads its data in a way of its own: leave data_dir out, or the task")
    path, examples = folder / f"{name}.jsonl", folder / f"{name}.train.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: task {name} needs it, or leave data_dir out to use the hub")
    files = {split: path}
    few: dict = stock.get("fewshot_config") or {}
    shots = _shots(stock.get("num_fewshot"), num_fewshot)
    if shots and "samples" not in few:  # a definition may bring its own examples
        if not examples.is_file():
            raise UserError(f"num_fewshot={shots} of task {name} needs {examples}: examples to choose from")
        files["train"] = examples
    sums = {str(file): check_jsonl(file) for file in files.values()}
    train = "train" if "train" in files else None
    ours = {
        "include": str(entry.yaml_path),
        "task": name,
        "custom_dataset": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {key: str(file) for key, file in files.items()},
            "cache_dir": str(scratch / "cache"),
            "keep_in_memory": True,
        },
        "training_split": train,
        "validation_split": split if not stock.get("test_split") else None,
        "test_split": split if stock.get("test_split") else None,
        "fewshot_split": train,
    }
    if "split" in few:
        ours["fewshot_config"] = {key: value for key, value in few.items() if key != "split"}
    (scratch / f"{name}.yaml").write_text(yaml.safe_dump(ours))
    return sums


def _shots(stock: int | None, wanted: int | None) -> int:
    """How many examples stand in front of a question; the harness leaves a task that says 0 at 0."""
    if stock is None or (wanted is not None and stock != 0):
        return wanted or 0
    return stock


def _load(manager: TaskManager, name: str, data_dir: str | None, num_fewshot: int | None) -> Any:
    try:
        loaded = manager.load([name])
    except Exception as error:  # tasks are other people's code
        said = f"{type(error).__name__}: {reason(error)}"
        if data_dir is not None and isinstance(error, KeyError | UndefinedError):
            raise UserError(f"the documents in {data_dir} lack a field that task {name} reads ({said})") from error
        if isinstance(error, ConnectionError | FileNotFoundError) and data_dir is None:
            raise UserError(
                f"the data of task {name} is not in the local cache and the hub cannot be had ({said}): "
                f"connect, or give data_dir=DIR with {name}.jsonl"
            ) from error
        raise UserError(f"task {name} cannot be loaded ({said})") from error
    for task in loaded["tasks"].values():
        task.set_config("num_fewshot", _shots(task.get_config("num_fewshot"), num_fewshot))
        task.set_fewshot_seed(FEWSHOT_SEED)
    return loaded
