"""results.json: what was measured, and everything a reader needs to cite it.

    {"format": "gptstar-evaluation-1", "results": [ROW, ...]}

A row is one task of one checkpoint under one set of settings; measuring it again replaces it:

    task, part_of            its name, and the group it was run in (null: by itself)
    metrics                  {name: {"value", "stderr" (null where there is none), "higher_is_better"}}
    documents, of            how many were evaluated, how many there are
    task_version, num_fewshot, limit, files      files: {path of local data: its sha256}
    checkpoint, fingerprint, model, parameters   fingerprint: a hash of weights, tokenizer, context and precision
    max_length, dtype, device, batch_tokens      in tokens
    harness, gptstar, torch, commit, hardware    versions and machine
    seconds, requests, requests_reused, date     of this run; reused requests were on disk from an earlier one
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptstar.errors import UserError
from gptstar.files import replace_text

FORMAT = "gptstar-evaluation-1"
IDENTITY = ("task", "part_of", "fingerprint", "num_fewshot", "limit", "files")


def read_results(path: Path) -> list[dict]:
    """The rows of a results.json; none where there is no file. UserError for a file that is something else."""
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}")
        return content["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no {FORMAT} file ({error}): move it away, or choose another output_dir") from error


def write_results(path: Path, rows: list[dict]) -> None:
    """Adds rows; each replaces the one of the same task, checkpoint and settings."""
    new = {_identity(row) for row in rows}
    kept = [row for row in read_results(path) if _identity(row) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"format": FORMAT, "results": kept + rows}, indent=1) + "\n")


def _identity(row: dict) -> str:
    return json.dumps([row.get(key) for key in IDENTITY], sort_keys=True)


def harness_metrics(values: dict[str, Any], higher_is_better: dict[str, bool]) -> dict[str, dict]:
    """{metric: value, stderr, direction} out of the harness's flat {"acc,none": ..., "acc_stderr,none": ...}.

    A filter other than "none" is part of the name: "exact_match,strict-match".
    """
    found = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr,{kind}")
        found[metric if kind == "none" else key] = {
            "value": _plain(value),
            "stderr": None if isinstance(stderr, str) else _plain(stderr),  # "N/A"
            "higher_is_better": higher_is_better.get(metric),
        }
    return found


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value  # numpy's numbers
