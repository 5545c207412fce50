"""study.yaml, which a study leaves beside its runs: what it asks, with what, and what to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gptstar.errors import UserError

STUDY_FILE = "study.yaml"


@dataclass(frozen=True)
class Description:
    """folder: of the study; variants: {name: why}; reports: what compare.py makes beside the comparison, by kind."""

    folder: Path
    name: str
    why: str = ""
    command: str = ""
    baseline: str | None = None
    variants: dict[str, str] = field(default_factory=dict)
    reports: dict = field(default_factory=dict)


def find_description(sources: Sequence[str]) -> Description | None:
    """That of the one study that all sources are, or lie in; None where there is none, or several."""
    found: dict[Path, Path] = {}
    for source in sources:
        path = Path(source).expanduser()
        folder = next((f for f in (path, path.parent) if (f / STUDY_FILE).is_file()), None)
        if folder is None:
            return None
        found[folder.resolve()] = folder
    return read_description(found.popitem()[1]) if len(found) == 1 else None


def read_description(folder: Path) -> Description:
    """Raises UserError where it cannot be read."""
    path = folder / STUDY_FILE
    try:
        values = yaml.safe_load(path.read_text())
        return Description(
            folder,
            values.get("name", folder.name),
            values.get("why", ""),
            values.get("command", ""),
            values.get("baseline"),
            {name: one.get("why", "") for name, one in values.get("variants", {}).items()},
            values.get("reports") or {},
        )
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the study's command again, which writes it") from error
