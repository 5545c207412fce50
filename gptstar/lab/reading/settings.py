"""A run's configuration, flat: what makes it another variant, and what it says of budget and size."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import cache
from typing import Any

from gptstar.errors import UserError
from gptstar.model.choices import check_choices
from gptstar.model.config import ModelConfig
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.training.config import BatchWarmup, LengthWarmup, TrainConfig, TrainerConfig, batch_sizes
from gptstar.training.run_folder import flat as flat_settings
from gptstar.training.run_folder import plain, under

# What two runs may differ in and still be seeds of one variant, and why.
SAME_VARIANT = {
    "seed": "seeds are what a variant has several of",
    "trainer.seed": "the same",
    "run_dir": "where it writes",
    "resume": "a resumed run is the run it would have been",
    "logger": "who else is told",
    "data.cache_dir": "where prepared text is kept",
    "data.cache_gib": "the same",
    "data.workers": "who prepares it",
    "trainer.device": "arithmetic is the same; times are compared with the hardware in mind",
    "trainer.timeout": "when a lost rank is given up",
    "trainer.microbatch": "how a step is divided, not what it computes",
    "trainer.recompute": "memory for time, not what it computes",
    "trainer.peak_flops": "what MFU is a share of",
    "trainer.profile": "whether a step is looked at",
    "trainer.eval_every": "how often it is measured",
    "trainer.eval_tokens": "on how much text, before the end",
    "trainer.eval_tasks": "what else is measured",
    "trainer.eval_tasks_every": "the same",
    "trainer.eval_tasks_limit": "the same",
    "trainer.eval_tasks_dir": "the same",
    "trainer.sample_every": "what is shown",
    "trainer.sample_prompt": "the same",
    "trainer.checkpoint_every": "what is kept",
    "trainer.keep_last": "the same",
}
# What says nothing about the idea that is tried.
NOT_A_DIFFERENCE = ("seed", "trainer.seed", "run_dir", "resume", "logger", "data.cache_dir", "trainer.eval_tasks_dir")


def flat(config: dict) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; our own configurations whole, with the defaults of settings they do not name,
    for a setting is at its default in a run that is older than it.
    """
    own = flat_settings(plain(config))
    return flat_settings(_usual() | own) if is_ours(config) else own


def default(key: str) -> Any:
    """Of one of our settings, None where there is none."""
    return _usual().get(key)


def position(key: str) -> tuple[int, str]:
    """Sorts settings as TrainConfig declares them, foreign ones behind them by name."""
    return _positions().get(key, len(_positions())), key


def is_ours(config: dict) -> bool:
    """Whether it is the configuration of a run that train.py made."""
    return all(isinstance(config.get(section), dict) for section in ("model", "data", "tokenizer", "trainer"))


def difference(config: dict, baseline: dict) -> dict[str, tuple[Any, Any]]:
    """{key: (baseline's, its own)} where they differ, None for a key that one of them lacks; without seeds, trackers
    and the paths of a machine.
    """
    own, other = flat(config), flat(baseline)
    keys = [*other, *(key for key in own if key not in other)]
    return {
        key: (other.get(key), own.get(key))
        for key in keys
        if other.get(key) != own.get(key) and not under(key, NOT_A_DIFFERENCE)
    }


@cache
def same_variant(key: str) -> bool:
    """Whether seeds of one variant may differ in this flat key."""
    return under(key, SAME_VARIANT)


def seed_of(config: dict) -> int | None:
    """trainer.seed, or a foreign configuration's seed."""
    values = flat_settings(plain(config))
    seed = values.get("trainer.seed", values.get("seed"))
    return seed if isinstance(seed, int) else None


def variant_of(config: dict, name: str, group: str | None = None) -> str | None:
    """The variant in a run's name, for the runs of a study are called VARIANT-SEED and have its name for their group
    (logger.group, or the given one). None for a run without group, or of another name.
    """
    group = group or _section(config, "logger").get("group")
    stem, dash, seed = name.rpartition("-")
    return stem if group and dash and stem and seed == str(seed_of(config)) else None


def names_in(config: dict) -> set[str]:
    """What it chooses from the tables that ideas add to."""
    model = _section(config, "model")
    layers = model.get("layer_positions")
    chosen = [model.get(key) for key in ("block", "position", "norm", "activation")]
    chosen += [_section(config, section).get("name") for section in ("optimizer", "schedule")]
    return {str(name) for name in [*chosen, *(layers if isinstance(layers, list) else [])]}


def window_length(config: dict) -> int | None:
    """Tokens of a window of validation."""
    return _number(_section(config, "trainer").get("eval_length")) or _sequence_length(config)


def budget(config: dict) -> tuple[int, int] | None:
    """(steps, tokens) that a run was to train on, or None where its configuration does not say."""
    length, options = _sequence_length(config), _trainer(config)
    if not length or options is None:
        return None
    try:
        ramp = batch_sizes(options)
        steps = options.max_steps or ramp.steps_for((options.max_tokens or 0) // length)
        return steps, ramp.position(steps) * length
    except (UserError, ValueError):
        return None


def tokens_per_step(config: dict) -> int | None:
    """Of a step of a run whose batch does not grow, or None where its configuration does not say."""
    trainer = _section(config, "trainer")
    batch, length = _number(trainer.get("batch_size")), _sequence_length(config)
    return batch * length if batch and length and not _section(trainer, "batch_warmup").get("steps") else None


def size(config: dict) -> tuple[int, int] | tuple[None, None]:
    """(parameters, training FLOPs a token), or (None, None) where the model is none that can be built here."""
    length, values = _sequence_length(config), _section(config, "model")
    if not length or not {field.name for field in fields(ModelConfig)} >= set(values):
        return None, None
    try:
        model = ModelConfig(**values)
        check_choices(model)
        return parameter_count(model), flops_per_token(model, length)
    except (TypeError, ValueError):
        return None, None


def _sequence_length(config: dict) -> int | None:
    own = _number(_section(config, "trainer").get("sequence_length"))
    return own or _number(_section(config, "model").get("context"))


def _section(config: dict, name: str) -> dict:
    values = config.get(name)
    return values if isinstance(values, dict) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _trainer(config: dict) -> TrainerConfig | None:
    known = {field.name for field in fields(TrainerConfig)}
    values = {key: value for key, value in _section(config, "trainer").items() if key in known}
    kinds = {"batch_warmup": BatchWarmup, "length_warmup": LengthWarmup}
    try:
        return TrainerConfig(**{k: kinds[k](**v) if k in kinds else v for k, v in values.items()})
    except (TypeError, ValueError):
        return None


@cache
def _positions() -> dict[str, int]:
    return {key: i for i, key in enumerate(_usual())}


@cache
def _usual() -> dict[str, Any]:
    return flat_settings(plain(asdict(TrainConfig())))
