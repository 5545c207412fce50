"""Runs in the .wandb files that wandb keeps of each, offline and online alike: RUN/wandb/offline-run-*/run-ID.wandb.

Such a file is a LevelDB log (github.com/google/leveldb, doc/log_format.md; its checksums are plain CRC-32 here) after a
header of seven bytes, and each entry a protocol buffer Record of the wandb package, whose version 0.31 has the messages
but no reader in Python.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptstar.errors import UserError
from gptstar.lab.reading.columns import find_columns, foreign_rows
from gptstar.lab.reading.read import checked_facts, cpu, ending
from gptstar.lab.reading.runs import HeldOut, Run
from gptstar.lab.reading.series import curves
from gptstar.lab.reading.settings import budget, is_ours, seed_of, size, variant_of

MAGIC = b":W&B"
HEADER = 7
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def find_wandb(folder: Path) -> list[Path]:
    """The .wandb files of a wandb folder or of one of its runs, oldest first."""
    return sorted({*folder.glob("*.wandb"), *folder.glob("*run-*/*.wandb")}, key=begun)


def begun(file: Path) -> str:
    """When the file was begun, which its folder's name says; sorts as time does."""
    found = re.search(r"\d{8}_\d{6}.*", file.absolute().parent.name)
    return found[0] if found else ""


def wandb_id(file: Path) -> str:
    """The id of the run in a file: a resumed run goes on in another file under the same one."""
    return file.stem.removeprefix("run-")


def read_wandb(files: Sequence[Path], columns: Mapping[str, str] | None = None) -> Run:
    """One run from its files, oldest first.

    Our own runs hold what their folders do. Of a foreign one, metrics are found by their usual names
    or `columns`, {ours: theirs}; its last validation counts as the final one. Raises UserError for a file that is none
    of wandb's.
    """
    config: dict[str, Any] = {}
    logged: list[dict] = []
    seen: dict[str, Any] = {}
    problems: list[str] = []
    for file in files:
        for record in _records(file, problems):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                seen["name"] = record.run.display_name or record.run.run_id
                seen["group"] = record.run.run_group or None
                seen["commit"] = record.run.git.commit[:12] or None
                _update(config, record.run.config.update)
            elif kind == "config":
                _update(config, record.config.update)
            elif kind == "environment":
                _look_at(record.environment, seen)
            elif kind == "history":
                logged.append({_key(item): json.loads(item.value_json) for item in record.history.item})
    config.pop("_wandb", None)
    facts = checked_facts(config.pop("facts", None))
    name = seen.get("name") or wandb_id(files[-1])
    if is_ours(config):
        rows = [_own(row) for row in logged]
        sized, wanted = size(config), budget(config)
    else:
        rows, missing = _foreign(logged, config, columns)
        problems += missing
        sized, wanted = (None, None), None
    found = curves(rows)
    if not problems:
        problems += ending(found, wanted[0] if wanted else None)
    on_cpu = config.get("trainer", {}).get("device") == "cpu" if is_ours(config) else False
    return Run(
        source=str(files[-1].parent),
        name=name,
        config=config,
        seed=seed_of(config),
        variant=variant_of(config, name, seen.get("group")),
        budget=wanted[1] if wanted else None,
        parameters=sized[0],
        flops_per_token=sized[1],
        hardware=seen.get("cpu") if on_cpu or not seen.get("gpu") else seen["gpu"],
        commit=seen.get("commit"),
        command=seen.get("command"),
        tokenizer=facts["tokenizer"] if facts else None,
        held_out=HeldOut(**facts["held_out"]) if facts else None,
        problem=problems[0] if problems else None,
        **found,
    )


def _records(file: Path, problems: list[str]) -> Iterator[Any]:
    """Those of one file, up to where it is damaged or, in a run that was killed, torn."""
    from google.protobuf.message import DecodeError  # late, for wandb takes its time
    from wandb.proto import wandb_internal_pb2 as proto

    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if data[:4] != MAGIC:
        raise UserError(f"{file} is no file of wandb's: it does not begin with {MAGIC.decode()}")
    for entry in _entries(data):
        if entry is None:
            problems.append(f"{file.name} is damaged")
            return
        record = proto.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(entry)
        except DecodeError:
            problems.append(f"{file.name} holds what this version of wandb cannot read")
            return
        yield record


def _entries(data: bytes) -> Iterator[bytes | None]:
    """The entries of a LevelDB log; None in the end for one that its checksum refuses. A torn last one is left out."""
    at, parts = HEADER, b""
    while at + 7 <= len(data):
        room = BLOCK - at % BLOCK
        if room < 7:
            at += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        body = data[at + 7 : at + 7 + length]
        if kind == 0 and not length:  # zeros, up to where something is
            at += room
            continue
        if len(body) < length:
            return
        if kind not in (FULL, FIRST, MIDDLE, LAST) or zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
            yield None
            return
        at += 7 + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts


def _key(item: Any) -> str:
    """Of an item of a configuration or of history, which may be nested."""
    return item.key or ".".join(item.nested_key)


def _update(config: dict, items: Any) -> None:
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = config
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)


def _look_at(environment: Any, seen: dict[str, Any]) -> None:
    """What it ran on and how it was started; it comes in pieces."""
    if environment.cpu.model:
        seen["cpu"] = cpu(environment.cpu.model, environment.cpu_count_logical or environment.cpu_count)
    if environment.gpu_type:
        seen["gpu"] = environment.gpu_type
    if environment.program and "command" not in seen:
        seen["command"] = " ".join([environment.program, *environment.args])


def _own(row: dict) -> dict:
    """A row as its lines in metrics.jsonl were: what is not finite was not logged."""
    row = {key: _value(value) for key, value in row.items()}
    return {"loss": None, **row} if "lr" in row else row


def _foreign(logged: list[dict], config: dict, columns: Mapping[str, str] | None) -> tuple[list[dict], list[str]]:
    """Rows under our names, and what is wrong with them: a run that ended early may lack what the others log."""
    names = dict.fromkeys(key for row in logged for key in row)
    if not names:
        return [], []
    found = find_columns(names, {ours: theirs for ours, theirs in (columns or {}).items() if theirs in names})
    rows = [{ours: _value(row[theirs]) for ours, theirs in found.items() if theirs in row} for row in logged]
    each = config.get("tokens_per_step")
    rows, problems = foreign_rows(rows, each if isinstance(each, (int, float)) else None)
    if "validation_loss" not in found and "final_loss" not in found:
        problems = [f"it logs {', '.join(names)}: none is known for validation_loss, which columns can tell"]
    missing = [theirs for theirs in (columns or {}).values() if theirs not in names]
    return rows, [f"it logs no {missing[0]}"] if missing else problems


def _value(value: Any) -> Any:
    """A logged number; wandb writes what is not finite as text."""
    return value if isinstance(value, (int, float, type(None))) else math.nan
