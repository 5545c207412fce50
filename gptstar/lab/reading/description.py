"""study.yaml, which a study leaves beside its runs: what it asks, with what, and what to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from gptstar.errors import UserError, reason

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
    values = read_study(folder)
    return Description(
        folder,
        values.get("name") or folder.name,
        values.get("why") or "",
        "\n".join(values.get("commands") or []),
        values.get("baseline"),
        {str(name): one.get("why") or "" for name, one in values["variants"].items()},
        values.get("reports") or {},
    )


def read_study(folder: Path) -> dict:
    """What study.yaml says, with "variants" and "runs" ({run folder: {"variant": ..., "seed": ...}}) always; nothing of
    a folder without one. Raises UserError where it cannot be read.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        return {"variants": {}, "runs": {}}
    try:
        values = yaml.safe_load(path.read_text()) or {}
        runs = {str(name): dict(place) for name, place in (values.get("runs") or {}).items()}
        variants = {str(name): dict(one) for name, one in (values.get("variants") or {}).items()}
        return {**values, "runs": runs, "variants": variants}
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}): mend it, or take it away to group runs by configuration"
        ) from error
