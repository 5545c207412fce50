"""Which model a name means."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from gptstar.configuration import config_directory, preset
from gptstar.errors import UserError
from gptstar.pretrained.load import OF_NOBODY, load_config
from gptstar.pretrained.native import list_checkpoints

# Names that servers before this one took, and where the hub keeps those models. The case matters.
NAMES = {
    "gpt2": "gpt2",
    "gpt-neo-125M": "EleutherAI/gpt-neo-125m",
    "gpt-neo-1.3B": "EleutherAI/gpt-neo-1.3B",
    "gpt-neo-2.7B": "EleutherAI/gpt-neo-2.7B",
    "gpt-j-6B": "EleutherAI/gpt-j-6b",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
}


@dataclass(frozen=True)
class Source:
    """name: as requests and pages call it; source: what `gptstar.load` reads; link: the model's page, if it has one."""

    name: str
    source: str
    link: str | None


def resolve(name: str, checkpoint: Path | None = None) -> Source:
    """Raises UserError for a name that means nothing, before anything is read."""
    if checkpoint is not None:
        return _with_weights(name, checkpoint)
    if name in NAMES:
        return Source(name, NAMES[name], f"https://huggingface.co/{NAMES[name]}")
    path = Path(name).expanduser()
    if (there := _of_path(path)) is not None:
        return there
    if path.parent.is_dir() and len(path.parts) > 1:
        raise UserError(f"MODEL_NAME={name} does not exist, though {path.parent} does: name a run, a folder or a file")
    if name in OF_NOBODY or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Source(name, name, f"https://huggingface.co/{name}")
    known = {known.lower(): known for known in (*OF_NOBODY, *NAMES)}
    if (config_directory() / "model" / f"{name}.yaml").is_file():
        raise UserError(f"MODEL_NAME={name} is an architecture without weights: set CHECKPOINT to a run or a file")
    near = difflib.get_close_matches(name.lower(), known, 1)
    hint = f"did you mean {known[near[0]]}? " if near else ""
    raise UserError(
        f"MODEL_NAME={name} is unknown: {hint}It may be one of {', '.join(NAMES)} (the case matters), "
        "a folder, or a hub name OWNER/NAME"
    )


def _of_path(path: Path) -> Source | None:
    """What lies there; a run's best or last checkpoint goes by the run's name too. None: nothing does."""
    if path.exists():
        return Source(path.resolve().name, str(path), None)
    if path.name in ("best", "last") and list_checkpoints(path.parent):
        return Source(f"{path.parent.resolve().name}/{path.name}", str(path), None)
    return None


def _with_weights(name: str, checkpoint: Path) -> Source:
    """name: a preset, or the checkpoint itself."""
    path = checkpoint.expanduser()
    known = _of_path(path)
    if known is None:
        raise UserError(f"CHECKPOINT={checkpoint} does not exist: name a run, a checkpoint folder or a file")
    if name == str(checkpoint):
        return known
    try:
        wanted = preset(name)
    except UserError as error:
        raise UserError(f"{str(error).replace('model=', 'MODEL_NAME=', 1)}; or leave it out") from error
    found = load_config(path)
    shape = ("n_layer", "d_model", "n_head", "d_ff", "block", "position")
    for field in shape:
        ours, theirs = getattr(wanted, field), getattr(found, field)
        if ours != theirs:
            raise UserError(
                f"CHECKPOINT={checkpoint} has {field}={theirs}, MODEL_NAME={name} has {field}={ours}: "
                "leave MODEL_NAME out"
            )
    return Source(name, str(path), None)
