"""The doors' side of configuration: Hydra composes YAML, our dataclasses check it, mistakes become one clear line.

Below the doors nobody sees Hydra.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_type_hints

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.plugin import Plugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptstar.data.config import MIXTURE
from gptstar.data.corpora import CorpusConfig
from gptstar.environment import launch, launches
from gptstar.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError, complain, say_interrupted
from gptstar.mistakes import failed_job, no_folder, no_memory, one_line, refuse_options
from gptstar.model.config import ModelConfig
from gptstar.pipes import outliving_readers

_SWEPT = "GPTSTAR_SWEPT"
# Taken literally, whatever they hold, in sweeps too.
TEXT_KEYS = (
    *("prompt", "prompt_file", "prompts", "output", "draft", "trainer.sample_prompt"),
    *("checkpoint", "resume", "init_from", "data_dir", "output_dir", "trainer.eval_tasks_dir"),
    *("baseline", "title", "log", "log_file"),
)


def config_directory() -> Path:
    """The configs/ folder: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def preset(name: str, **changes: Any) -> ModelConfig:
    """The ModelConfig of configs/model/NAME.yaml, with some fields changed. UserError for an unknown name."""
    path = config_directory() / "model" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise UserError(f"model={name} is unknown: choose one of {', '.join(known)}")
    return ModelConfig(**{**yaml.safe_load(path.read_text()), **changes})


def run_door(
    name: str,
    schema: type,
    main: Callable[[Any], None],
    plugins: Sequence[type[Plugin]] = (),
    continues: bool = False,
) -> None:
    """Runs configs/NAME.yaml through Hydra, checks it against `schema`, and calls `main` with the dataclass.

    plugins: sweepers and launchers of our own, hydra_plugins.gptstar.CLASS in a configuration.
    continues: whether the same command, after a Ctrl-C, goes on from what is finished.

    A mistake of the user's ends in one line on stderr and exit code 2, a Ctrl-C in one and EXIT_INTERRUPTED.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # lets errors reach us instead of printing them its own way

    sweep = {"-m", "--multirun"} & {*sys.argv[1:]}
    texts = set() if sweep else _text_keys(schema)  # in a sweep, commas separate what is tried
    for n, argument in enumerate(sys.argv[1:], 1):
        sys.argv[n] = _literal_text(forced(_one_idea(_full_name(argument))), texts)
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in sweep)  # Hydra wants -m before settings
    for plugin in plugins:  # Hydra takes only what goes by the name of a package of plugins
        Plugins.instance().register(plugin)
        Plugins.instance().class_name_to_class[f"hydra_plugins.gptstar.{plugin.__name__}"] = plugin
    failed: list[str | int | None] = []

    def task(config: DictConfig) -> None:
        try:
            with _ends_in_one_line(schema, continues):  # here already: Hydra would add lines of its own
                main(_checked(config, schema))
        except SystemExit as end:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))
            queued_again = end.code == -1  # by submitit
            if HydraConfig.get().mode != RunMode.MULTIRUN or end.code == EXIT_INTERRUPTED or queued_again:
                raise
            if "SUBMITIT_EXECUTOR" in os.environ:  # on another machine: an exception is what travels back
                number = HydraConfig.get().job.num
                raise UserError(f"run {number} ended with exit code {end.code}: its log is in run_dir/.slurm") from None
            failed.append(end.code)  # the other runs of a sweep go on

    with outliving_readers(), _ends_in_one_line(schema, continues):
        refuse_options(sys.argv[1:], schema)
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(task)()
    if failed:
        sys.exit(failed[0])


def with_list(arguments: list[str], key: str, options: tuple[str, ...] = ()) -> list[str]:
    """Words that are no KEY=VALUE as KEY=[...], and `--option TEXT` as option=TEXT, for doors that take files."""
    words, rest = [], []
    left = iter(arguments)
    for argument in left:
        option, equals, text = argument.partition("=")
        if option.startswith("--") and option[2:] in options:
            rest.append(f"{option[2:]}={text if equals else next(left, '')}")
        elif argument.startswith("-") or (
            re.match(r"[+~]*[\w./@]+=", argument) and "/" not in argument.partition("=")[0]
        ):
            rest.append(argument)
        else:
            words.append(argument)
    return [*rest, *([f"{key}=[{','.join(_quoted(word) for word in words)}]"] if words else [])]


def quoted(value: str) -> str:
    """For Hydra's grammar, where it needs that."""
    return value if re.fullmatch(r"[\w./-]+", value) else _quoted(value)


def _quoted(value: str) -> str:
    """For Hydra's grammar. Backslashes count only before a quote; "${" would start an interpolation."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value).replace("${", "\\${") + "'"


def _full_name(argument: str) -> str:
    """launcher=slurm, short for hydra/launcher=slurm."""
    return "hydra/" + argument if argument.startswith("launcher=") else argument


def _one_idea(argument: str) -> str:
    """ideas=FILE.py, short for ideas=[FILE.py]."""
    return f"ideas=[{quoted(argument[6:])}]" if re.fullmatch(r"ideas=[^\['\",]+\.py", argument) else argument


def config_folders() -> list[str]:
    """--config-dir and its folder, where the command line has them, for processes that go on with it."""
    return [a for n, a in enumerate(sys.argv) if "--config-dir" in (a.partition("=")[0], sys.argv[n - 1])]


def forced(argument: str) -> str:
    """Lets what is named by the user (corpora of a mixture, columns of a table, settings of an idea) be given and
    changed alike, whether a file or a run has it already or not.
    """
    own = ("model.own.", "optimizer.own.", "schedule.own.")
    named = argument.lstrip("+").startswith(("data.corpora.", "columns=", "columns.", *own))
    return "++" + argument.lstrip("+") if named else argument


def _literal_text(argument: str, texts: Collection[str] = ()) -> str:
    """Quotes a prompt or path for Hydra's grammar, in which commas, brackets and outer spaces mean something.

    texts: keys whose values are quoted where they need it, unless they refer to another key.
    """
    key, equals, value = argument.partition("=")
    already = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if not equals or already or value == "null":
        return argument
    if key in TEXT_KEYS:
        return f"{key}={_quoted(value)}"
    return f"{key}={quoted(value)}" if key.lstrip("+") in texts and "${" not in value else argument


@contextmanager
def _ends_in_one_line(schema: type, continues: bool) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(say_interrupted(continues))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        complain(one_line(error, schema, config_directory() / "model"))
        sys.exit(EXIT_BAD_INPUT)
    except Exception as error:
        if said := failed_job(error) or no_folder(error) or no_memory(error):
            complain(said)
            sys.exit(EXIT_BAD_INPUT if isinstance(error, OSError) else 1)
        if said := _mistake_in_an_idea(error):
            complain(said)
            sys.exit(EXIT_BAD_INPUT)
        raise


def _mistake_in_an_idea(error: Exception) -> str | None:
    ideas = sys.modules.get("gptstar.ideas")  # where nobody has imported it there are none
    return ideas.mistake_in(error) if ideas is not None else None


def _remove_if_empty(folder: Path) -> None:
    """Hydra makes the run folder before anything is checked."""
    if folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir()):
        folder.rmdir()


def _checked(config: DictConfig, schema: type) -> Any:
    """The dataclass, after its own checks; a resumed run's own configuration with this command line's changes."""
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        begun = (output / "config.yaml").is_file()
        _refuse_one_of_many()
        if "resume" in config and config.resume == "auto":
            _refuse_a_name_of_the_moment()
        if "resume" in config and begun and (config.resume == "auto" or _started_again(output)):
            config.resume = str(output)
            config = _resumed(config, schema, same_command=True)
        elif "resume" in config and config.resume and config.resume != "auto":
            config = _resumed(config, schema)
        elif "init_from" in config and config.init_from:
            config = _shaped_like_origin(config)
        if "resume" in config and config.resume == "auto":
            config.resume = None
        if "run_dir" in config:
            config.run_dir = os.path.relpath(output) if output.is_relative_to(Path.cwd()) else str(output)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command line")
        return made_of(config)
    except ValueError as error:  # of a dataclass's __post_init__
        raise UserError(str(error)) from error


def made_of(config: DictConfig) -> Any:
    """The dataclass, once the files that `ideas` names are in the tables. Raises ValueError from its own checks."""
    if ideas := OmegaConf.select(config, "ideas"):
        from gptstar.ideas import use  # which imports torch: doors set its allocator up before

        use(ideas)
    return OmegaConf.to_object(config)


def _started_again(run: Path) -> bool:
    """Whether a launcher runs once more what has begun in this folder, after a process was lost or a job preempted."""
    counts = (os.environ.get(key) or 0 for key in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return any(int(count) > 0 for count in counts) and launch() in launches(run)


def _refuse_one_of_many() -> None:
    """A study is no run: without -m its settings alone would be trained, into the study's own folder."""
    found = HydraConfig.get()
    target = str((found.sweeper or {}).get("_target_", ""))
    own_folder = any(override.startswith("run_dir=") for override in found.overrides.task)
    if target.startswith("hydra_plugins.gptstar.") and found.mode != RunMode.MULTIRUN and not own_folder:
        raise UserError("this experiment is a study of many runs: add -m, or set run_dir to train its settings once")


def _refuse_a_name_of_the_moment() -> None:
    """resume=auto looks into a folder that has to be the same the next time."""
    named = any(override.startswith("run_dir=") for override in HydraConfig.get().overrides.task)
    if not named and launch() is None:
        raise UserError("resume=auto needs to know where the run is or will be: set run_dir")


def _resumed(config: DictConfig, schema: type, same_command: bool = False) -> DictConfig:
    """The configuration the run was started with, changed by what this command line names.

    same_command: whether it is the one that the run was started with.
    """
    from gptstar.ideas import files_of
    from gptstar.pretrained.native import find_run, read_run_config

    run = find_run(config.resume)
    saved = read_run_config(run)
    if files_of(run):  # as they were when it began
        saved["ideas"] = [str(file) for file in files_of(run)]
    merged = OmegaConf.merge(OmegaConf.structured(schema), saved)
    assert isinstance(merged, DictConfig)
    overrides = HydraConfig.get().overrides.task
    if any(override.lstrip("+").startswith("data.corpora.") for override in overrides):
        _make_mixture(merged.data)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+").replace("/", ".")
        if same_command and key in ("init_from", "experiment", "resume", "ideas"):
            continue
        if key == "init_from":
            raise UserError(f"resume={config.resume} goes on with the run's own weights: leave init_from=... out")
        if key == "experiment":
            raise UserError(f"resume={config.resume} continues the run's own configuration: leave {override} out")
        if key == "ideas":
            raise UserError(f"resume={config.resume} has copies of its ideas: leave {override} out")
        OmegaConf.update(merged, key, OmegaConf.select(config, key))
    merged.resume = config.resume
    return merged


def _make_mixture(data: DictConfig) -> None:
    """A run's only corpus becomes the first one of a mixture that others are added to."""
    if not data.corpora and data.corpus != MIXTURE:
        own = {each.name: data[each.name] for each in fields(CorpusConfig)}
        data.corpora = {data.name: own}
        for each in fields(CorpusConfig):
            data[each.name] = OmegaConf.structured(CorpusConfig)[each.name]
        data.corpus = MIXTURE


def _shaped_like_origin(config: DictConfig) -> DictConfig:
    """The model and tokenizer of `init_from`, changed by what this command line names."""
    from gptstar.pretrained.load import load_config

    named = {override.partition("=")[0].lstrip("+") for override in HydraConfig.get().overrides.task}
    chosen = {key.partition("=")[0] for key in HydraConfig.get().overrides.task if key.startswith("model=")}
    if chosen:
        raise UserError(f"init_from={config.init_from} brings its own shape: leave model=... out, change model.KEY=...")
    if "experiment" in named:
        raise UserError(f"init_from={config.init_from} brings its own shape: leave experiment=... out")
    if not named & {"tokenizer", "tokenizer.source"} and any(key.startswith("tokenizer.") for key in named):
        raise UserError(f"init_from={config.init_from} brings its own tokenizer: leave tokenizer.KEY=... out")
    shape = asdict(load_config(config.init_from))
    changes = {key.partition(".")[2] for key in named if key.startswith("model.")}
    OmegaConf.update(config, "model", {k: v for k, v in shape.items() if k not in changes})
    if not named & {"tokenizer", "tokenizer.source"}:
        config.tokenizer.source = config.tokenizer.name = "init_from"
    return config


def _default_run_dir(resume: str | None) -> str:
    """Where a run goes that was not told: into the run it continues, or runs/ and the time; with a launcher, runs/ and
    what all its processes know, those that are started again too.
    """
    if resume and (Path(resume).expanduser() / "config.yaml").is_file():
        return str(Path(resume).expanduser())
    if (job := launch()) is not None:
        return f"runs/{job}"
    return f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S}"


def _sweep_name(number: int, overrides: Sequence[str]) -> str:
    """The folder of one run of a sweep: its number and what is its own, in characters that no command line minds."""
    if {"-m", "--multirun"} & {*sys.argv}:
        told = [argument for argument in sys.argv[1:] if "=" in argument and not argument.startswith("-")]
        parsed = OverridesParser.create().parse_overrides(told)
        os.environ[_SWEPT] = " ".join(each.key_or_group for each in parsed if each.is_sweep_override())
    several = os.environ.get(_SWEPT, "").split()  # a job of a cluster has another command line, and this environment
    own = [plain for override in overrides if (plain := override.lstrip("+")).partition("=")[0] in several]
    return re.sub(r"[^\w.-]+", "_", f"{number}-{','.join(own).replace('=', '-')}").rstrip("-")[:120]


def _text_keys(schema: type, prefix: str = "") -> set[str]:
    """Those that hold one text."""
    hints = get_type_hints(schema)
    found = {prefix + name for name, hint in hints.items() if hint in (str, str | None)}
    deeper = (_text_keys(hints[name], f"{prefix}{name}.") for name in hints if is_dataclass(hints[name]))
    return found.union(*deeper)


# Here, so that jobs on other machines, which only import this, have them.
OmegaConf.register_new_resolver("default_run_dir", _default_run_dir, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True)
