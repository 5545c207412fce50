"""What a door says of a mistake on its command line: one line, the thing, the value, the remedy."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException, OverrideParseException

from gptstar.errors import UserError
from gptstar.sizes import say_bytes

# What one door calls so and another one otherwise: who types a neighbour's name is told this one's.
SYNONYMS = (
    ("dtype", "precision"),
    ("output", "output_dir", "run_dir"),
    ("max_length", "sequence_length", "context", "contexts"),
    ("checkpoint", "checkpoints", "init_from"),
    ("max_steps", "max_iters", "steps", "epochs", "num_epochs", "max_epochs"),
    ("context", "block_size", "n_ctx", "n_positions"),
    ("d_model", "n_embd", "hidden_size"),
    ("n_layer", "n_layers", "num_layers"),
    ("n_head", "n_heads", "num_heads"),
    ("lr", "learning_rate"),
    ("prompt", "p"),
)
IDEAS_ADD_TO = {  # group: the setting that chooses what a file of ideas has added
    "model": "model.block={0}, model.position={0}, model.norm={0} or model.activation={0}",
    "optimizer": "optimizer.name={}",
    "schedule": "schedule.name={}",
}
PACKAGE = ("-p", "--package")  # Hydra's own, which only mean something to those who look at a configuration (--cfg)


def refuse_options(arguments: Sequence[str], schema: type) -> None:
    """Of --KEY VALUE, other programs' way, Hydra's parser would only print how it is called."""
    known = [option for action in get_args_parser()._actions for option in action.option_strings]
    if not {"-c", "--cfg"} & {*arguments}:
        known = [option for option in known if option not in PACKAGE]
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        short = re.fullmatch(r"-[a-z]\w*", name) and not any(name.startswith(o) for o in known if o[1] != "-")
        if short or (name.startswith("--") and not any(option.startswith(name) for option in known)):
            value = value if equals else after if after and not after.startswith("-") and "=" not in after else "VALUE"
            key = name.lstrip("-").replace("-", "_")
            key = next(iter(meant(key, all_keys(schema))), key)
            raise UserError(f"{name} is not an option: settings are KEY=VALUE, so {key}={value}; --help lists them")


def failed_job(error: Exception) -> str | None:
    """In one line, where it is a job of a cluster that failed."""
    if not type(error).__module__.startswith("submitit."):
        return None
    reason = next((line for line in reversed(str(error).splitlines()) if "Error" in line or "error:" in line), "")
    return f"a job of the sweep failed ({reason.strip() or type(error).__name__}): its log is in run_dir/.slurm"


def no_folder(error: Exception) -> str | None:
    """In one line, where Hydra could not make the run folder, which it does before anything of ours runs."""
    ours = any(frame.name in ("task", "_checked") for frame in traceback.extract_tb(error.__traceback__))
    if not isinstance(error, OSError) or ours:
        return None
    return f"run_dir={error.filename} cannot be made ({error.strerror}): choose another one"


def no_memory(error: Exception) -> str | None:
    """In one line, where there was too little of it."""
    text = str(error)
    if not isinstance(error, MemoryError) and not re.search("allocate memory|out of memory", text, re.IGNORECASE):
        return None
    asked = re.search(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]iB)", text)
    wanted = (f" for another {asked[2] or say_bytes(int(asked[1]))}") if asked else ""
    return f"not enough memory{wanted}: a smaller batch, shorter sequences or a smaller model take less"


def one_line(error: Exception, schema: type, presets: Path) -> str:
    """What is wrong and how to mend it. presets: the folder of the architectures that have names."""
    text = str(error).strip()
    if isinstance(error, UserError):
        return text
    if isinstance(error, MissingConfigException):
        first, _, options = text.partition("\n")
        wanted = first.removeprefix("In ").partition("Could not find ")[2].strip().strip("'")
        group, _, choice = wanted.partition("/")
        names = [line.strip() for line in options.partition("Config search path")[0].splitlines() if "\t" in line]
        if not names:
            return first
        hint = ""
        if any(word.startswith("ideas=") for word in sys.argv) and group in IDEAS_ADD_TO:
            hint = f"; what ideas= adds is chosen with {IDEAS_ADD_TO[group].format(choice)}"
        return f"{group}={choice} is unknown: choose one of {', '.join(names)}{hint}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not of the form key=value: {_example(schema, error.override, presets)}"
    if (several := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)'", text)) is not None:
        key, values = several[1], several[2]
        return f"{key}={values} is several values: write {key}=[{values}], or add -m for a run of each"
    cause = str(error.__cause__ or error)  # OmegaConf's own words where Hydra wraps them
    full_key = next((line.split(":", 1)[1].strip() for line in cause.splitlines() if "full_key:" in line), "")
    if "not in" in cause and full_key:
        known, name = all_keys(schema), full_key.rpartition(".")[2]
        close = (
            meant(full_key, known)
            or difflib.get_close_matches(full_key, known, n=1, cutoff=0.75)
            or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        )
        hint = f"did you mean {close[0]}?" if close else "--help lists them"
        return f"{full_key} is not a setting: {hint}"
    if "is not a ListConfig" in cause:
        return f"{full_key} must be a list: write {full_key}=[...]"
    reason = next(line for line in cause.splitlines() if line.strip())
    return f"{full_key}: {reason}" if full_key else reason


def meant(full_key: str, known: Sequence[str]) -> list[str]:
    """The settings that mean what full_key says, or are called so in some group; those beside it first."""
    if full_key in known:
        return [full_key]
    group, _, name = full_key.rpartition(".")
    same = [other for names in SYNONYMS if name in names for other in names]
    same += [name] if len(name) > 1 else []  # a letter says too little
    found = [key for other in same for key in known if key.rpartition(".")[2] == other]
    return sorted(found, key=lambda key: key.rpartition(".")[0] != group)


def _example(schema: type, word: str, presets: Path) -> str:
    """How what stands alone is probably meant."""
    if "=" in word or " " in word:
        return "quote values with spaces or special characters"
    known, path = all_keys(schema), Path(word).expanduser()
    if "data.paths" in known and path.is_file():
        return f"is it data=text_files data.paths=[{word}]?"
    for key in ("checkpoint", "run"):
        if key in known and path.exists():
            return f"is it {key}={word}?"
    if "model" in known and (presets / f"{word}.yaml").is_file():
        return f"is it model={word}?"
    return "--help lists the settings"


def all_keys(schema: type, prefix: str = "") -> list[str]:
    """Every setting of a door, with dots."""
    keys = []
    hints = get_type_hints(schema)
    for f in fields(schema):
        keys.append(prefix + f.name)
        if is_dataclass(hints[f.name]):
            keys += all_keys(hints[f.name], f"{prefix}{f.name}.")
    return keys
