"""The folder of a run: started afresh, continued in place, or branched off one of its checkpoints.

config.yaml        the resolved configuration
environment.json   what it ran on and which settings were changed, an entry each time it was started or continued
facts.json         parameters, FLOPs a token, tokenizer and held-out text: by these runs are told to be comparable
metrics.jsonl      every step and validation; train.log  what was said
ideas/             copies of the files that ideas= names
checkpoints/       step-N folders; loss.png  the curve
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

import yaml

from gptstar.data.corpora import CorpusConfig
from gptstar.data.prepare import Prepared
from gptstar.errors import UserError
from gptstar.files import locked, replace_text
from gptstar.ideas import keep_copies
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.pretrained.native import find_checkpoint, find_run, list_checkpoints, read_run_config
from gptstar.sizes import say_bytes
from gptstar.training.config import TrainConfig

PATIENCE = 30.0  # seconds that a run folder may take to become free
# What a run is: changing any of these would make its continuation a different run.
FIXED = (
    "model",
    "data",
    "tokenizer",
    "optimizer.name",
    "trainer.seed",
    "trainer.trainable",
    "trainer.batch_size",
    "trainer.sequence_length",
    "trainer.batch_warmup",
)
# Where it runs and what is written beside it: not worth telling.
PLACES = ("run_dir", "resume", "logger", "trainer.device", "trainer.timeout", "trainer.peak_flops", "data.workers")
# What a run may have filled in itself.
FOUND = ("trainer.microbatch", "data.cache_dir", "data.cache_gib")
# Corpora that were read from are known by their content: `gptstar.data.mixture.History` refuses others.
FREE = (
    *("data.cache_dir", "data.cache_gib", "data.workers", "data.corpora", "tokenizer.name", "model.name"),
    *(f"data.{field.name}" for field in fields(CorpusConfig)),
)


def find_start(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, or None for a fresh start; nothing is written yet.

    Raises UserError where the run would write over another, or continue one with a configuration that is not its.
    """
    run = Path(config.run_dir).expanduser()
    if not config.resume:
        _refuse_used(run)
        return None
    origin = find_run(config.resume)
    refuse_changes(origin, config)
    steps = list_checkpoints(origin)
    if origin.resolve() != run.resolve():
        _refuse_used(run)
        return find_checkpoint(config.resume)
    if not steps:  # ended before its first checkpoint: from the beginning again
        return None
    start = find_checkpoint(config.resume)
    if start.name != steps[-1].name:
        raise UserError(
            f"resume={config.resume}: the run has gone on to {steps[-1].name}: choose a new run_dir to branch off, "
            f"or resume={origin}"
        )
    return start


def open_run_folder(config: TrainConfig, start: Path | None, environment: dict) -> Path:
    """Creates or reopens config.run_dir with config.yaml and one more entry in environment.json.

    A run that branches off another one's checkpoint begins with the other's metrics. Raises UserError where it cannot
    be written.
    """
    run = Path(config.run_dir).expanduser()
    path = run / "environment.json"
    try:
        entries = json.loads(path.read_text()) if path.is_file() else []
        if not isinstance(entries, list):
            raise ValueError("it holds no list")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): move it away, the run goes on without it") from error
    try:
        run.mkdir(parents=True, exist_ok=True)
        if start is not None and not _same_run(run, start):
            shutil.copyfile(start.parent.parent / "metrics.jsonl", run / "metrics.jsonl")
        replace_text(run / "config.yaml", yaml.safe_dump(plain(asdict(config)), sort_keys=False))
        keep_copies(run, config.ideas)
        replace_text(path, json.dumps([*entries, environment], indent=1))
    except OSError as error:
        raise UserError(f"run_dir={run} cannot be written ({error.strerror or error}): choose another one") from error
    return run


def hold(run: Path, held: ExitStack) -> None:
    """Keeps other processes of this machine from training in a run folder until `held` closes, or this process ends.

    One that is just saving itself is waited for. Raises UserError where the folder stays taken; a folder that is not
    there, or a disk that knows no locks, is nobody's.
    """
    folder = run.expanduser()
    try:
        if not folder.is_dir():
            return
        lock = held.enter_context(locked(folder, PATIENCE))
    except OSError:
        return
    if lock is None:
        raise UserError(f"run_dir={run} is being trained by another process: wait for it, or choose another run_dir")


def write_facts(run: Path, config: TrainConfig, data: Prepared) -> None:
    """facts.json: see above. The digest is of the held-out tokens, so other text or another tokenizer gives another."""
    splits = {name: stream.split for name, stream in data.held_out(config.eval_length).items()}
    digest = hashlib.sha256(json.dumps([s.sha256 for split in splits.values() for s in split.shards]).encode())
    facts = {
        "parameters": parameter_count(config.model),
        "flops_per_token": flops_per_token(config.model, config.sequence_length),
        "tokenizer": data.tokenizer.fingerprint(),
        "held_out": {
            "digest": digest.hexdigest()[:16],
            "tokens": sum(split.tokens for split in splits.values()),
            "documents": sum(split.documents for split in splits.values()),
            "bytes": sum(split.bytes for split in splits.values()),
            "length": config.eval_length,
        },
    }
    replace_text(run / "facts.json", json.dumps(facts, indent=1))


def check_room(run_dir: str, n_byte: int) -> None:
    """Raises UserError where a checkpoint of so many bytes does not fit the disk beside what is there."""
    place = Path(run_dir).expanduser().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_byte:
        raise UserError(
            f"run_dir={run_dir} has {say_bytes(free)} free and a checkpoint takes {say_bytes(n_byte)}: "
            "free some, or choose another one"
        )


def _same_run(run: Path, start: Path) -> bool:
    return start.parent.parent.resolve() == run.resolve()


def _refuse_used(run: Path) -> None:
    if run.exists() and any(run.iterdir()):
        raise UserError(f"run_dir={run} is not empty: choose another one, or resume={run} to continue the run in it")


def refuse_changes(origin: Path, config: TrainConfig) -> None:
    """Raises UserError where a run's continuation would be another run."""
    changed = [told for key, told in changes(origin, config).items() if under(key, FIXED) and not under(key, FREE)]
    if changed:
        raise UserError(
            f"resume={config.resume}: the run was made with other settings ({'; '.join(changed)}): "
            "leave them out, or begin another run"
        )


def told_changes(run: Path, config: TrainConfig) -> list[str]:
    """Of each setting that the run was made with otherwise "KEY before -> now", but where it runs and what it found."""
    return [told for key, told in changes(run, config).items() if not under(key, (*PLACES, *FOUND))]


def changes(run: Path, config: TrainConfig) -> dict[str, str]:
    """{key: "KEY before -> now"} of every setting that a run was made with otherwise."""
    usual = flat(plain(asdict(TrainConfig())))  # of settings that did not exist when the run was made
    before, now = usual | flat(read_run_config(run)), flat(plain(asdict(config)))
    return {
        key: f"{key} {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    }


def under(key: str, names: Iterable[str]) -> bool:
    """Whether a flat key is one of the names or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def plain(value):
    """Tuples as lists, as YAML knows them."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    found: dict = {}
    for key, value in values.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return found
