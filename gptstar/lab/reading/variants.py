"""Which runs are seeds of one variant, and what to call it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from gptstar.lab.reading.runs import Run
from gptstar.lab.reading.settings import default, flat, position, same_variant

NOTHING = object()
LONGEST = 3  # settings that a name has, where so many are enough
SHORT = 24  # characters of a value
TRIED = 40  # settings that names are looked for among


def variants(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """{variant: its runs}, in the order of their first runs.

    A run belongs to the variant that its study, group or table names (STUDY/VARIANT, where several studies mean
    different things by it); else to those whose configuration is equal but for what
    `gptstar.lab.reading.settings.SAME_VARIANT` lists, called model.name and the fewest keys that tell it from the
    others; a run without configuration is a variant of its name. Of runs with the same seed the last one without a
    problem is kept; the others get a problem that says so.
    """
    runs = _told_by_study(list(runs))
    made = {key: run.config for run in runs if run.variant is None and (key := _key(run.config)) is not None}
    names = _names(made, {run.variant for run in runs})
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        key = _key(run.config)
        name = run.variant or (names[key] if key is not None else run.name)
        grouped.setdefault(name, []).append(run)
    return {name: _one_a_seed(name, group) for name, group in grouped.items()}


def _told_by_study(runs: list[Run]) -> list[Run]:
    """A variant's name that several studies have for different settings gets the study's name in front."""
    studies: dict[str, dict[str, set]] = {}
    for run in runs:
        if run.variant is not None:
            studies.setdefault(run.variant, {}).setdefault(_study(run), set()).add(_key(run.config))
    shared = {name for name, of in studies.items() if len(of) > 1 and len(set().union(*of.values())) > 1}
    return [replace(r, variant=f"{_study(r)}/{r.variant}") if r.variant in shared else r for r in runs]


def _study(run: Run) -> str:
    """Its group or the folder that it lies in."""
    logger = run.config.get("logger")
    group = logger.get("group") if isinstance(logger, dict) else None
    return str(group or Path(run.source).parent.name)


def digest(config: dict) -> str:
    """Of a variant's settings: equal for its seeds."""
    return hashlib.sha256((_key(config) or "").encode()).hexdigest()[:16]


def _key(config: dict) -> str | None:
    """Equal for seeds of one variant; None without a configuration."""
    values = _settings(config)
    return json.dumps(values, sort_keys=True, default=str) if values else None


def _settings(config: dict) -> dict[str, Any]:
    return {key: _plain(value) for key, value in flat(config).items() if not same_variant(key)}


def _plain(value: Any) -> Any:
    """1 and 1.0 are one value: what has been through JSON may have either."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _names(made: dict[str, dict], taken: set[str | None]) -> dict[str, str]:
    """A name for each configuration, by its key."""
    by_model: dict[str, dict[str, dict[str, Any]]] = {}
    for key, config in made.items():
        values = _settings(config)
        by_model.setdefault(str(values.get("model.name", "run")), {})[key] = values
    names = {}
    for model, configs in by_model.items():
        for key, told in _told_apart(configs).items():
            name = " ".join([model, *(f"{setting}={_shown(value)}" for setting, value in told.items())])
            names[key] = f"{name} (by its configuration)" if name in taken else name
    return names


def _told_apart(configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each configuration the fewest settings whose values no other one has together, rather unusual values than
    usual ones, rather short than long; nothing for one that is usual throughout.

    Usual is the default where some configuration has it, else what most have.
    """
    settings = sorted({key for values in configs.values() for key in values}, key=position)
    unusual: dict[str, dict[str, Any]] = {key: {} for key in configs}
    common: dict[str, dict[str, Any]] = {key: {} for key in configs}
    for setting in settings:
        values = {key: values.get(setting) for key, values in configs.items()}
        usual = _usual(setting, list(values.values()))
        if any(value != usual for value in values.values()):
            for key, value in values.items():
                (unusual if value != usual else common)[key][setting] = value
    return {
        key: _fewest(own, common[key], [unusual[k] | common[k] for k in configs if k != key])
        for key, own in unusual.items()
    }


def _fewest(unusual: dict[str, Any], common: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    if not unusual:
        return {}
    own = unusual | common
    names = sorted(own, key=lambda name: (name in common, len(_shown(own[name])) > SHORT))[:TRIED]
    for count in range(1, LONGEST + 1):
        for some in combinations(names, count):
            if not any(all(other[name] == own[name] for name in some) for other in others):
                return {name: own[name] for name in some}
    return unusual


def _usual(setting: str, values: list[Any]) -> Any:
    texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
    own = json.dumps(_plain(default(setting)), sort_keys=True, default=str)
    if own in texts:
        return values[texts.index(own)]
    (most, count), *others = Counter(texts).most_common()
    return NOTHING if others and others[0][1] == count else values[texts.index(most)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str).replace(" ", "")


def _one_a_seed(name: str, runs: list[Run]) -> list[Run]:
    kept: dict[int, int] = {}
    for i, run in enumerate(runs):
        if run.seed is not None and run.problem is None:
            kept[run.seed] = i
    made = []
    for i, run in enumerate(runs):
        last = kept.get(run.seed, i) if run.seed is not None else i
        if run.problem is None and last != i:
            run = replace(run, problem=f"seed {run.seed} of {name} is there again: {runs[last].source} is kept")
        made.append(run)
    return made
