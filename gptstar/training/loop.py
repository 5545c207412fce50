"""A run from its configuration: what can be refused is refused first, then it is trained."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from gptstar.data.batches import window_count
from gptstar.data.prepare import Prepared, prepare
from gptstar.data.tokenizer import Tokenizer, load_tokenizer
from gptstar.environment import describe_environment
from gptstar.errors import UserError
from gptstar.model.choices import longest as longest_of
from gptstar.pretrained.native import find_run, read_tokenizer
from gptstar.training.config import TrainConfig, check_vocabulary
from gptstar.training.downstream import load_downstream
from gptstar.training.metrics import check_tracker
from gptstar.training.optimizers import check_optimizer
from gptstar.training.run_folder import check_room, find_start, hold, open_run_folder, told_changes, write_facts
from gptstar.training.spread import check_spread
from gptstar.training.start import Origin, read_origin
from gptstar.training.trainer import Outcome, Trainer
from gptstar.training.world import World, open_world


def train(config: TrainConfig, console: Console | None = None) -> Outcome:
    """Trains one model from a configuration, or continues a run, and leaves everything in config.run_dir.

    Under torchrun every process calls it. Raises UserError before any work for a configuration that cannot be trained,
    NonFiniteLoss, and LostRank where another process is gone.
    """
    config.check()
    check_tracker(config.logger)
    check_optimizer(config.optimizer, config.model)
    options = config.trainer
    with (
        open_world(options.parallel, options.device, options.timeout, options.tensor_parallel) as world,
        ExitStack() as held,
    ):
        config = world.same(config)
        check_spread(config, world)
        console = console if console is not None and world.main else Console(quiet=True)
        if begun := world.decided(lambda: Path(config.run_dir).expanduser().is_dir()):
            world.decided(lambda: hold(Path(config.run_dir), held))
        trainer, start = _prepared(config, world, console)
        if world.main:
            check_room(config.run_dir, trainer.checkpoint_bytes)
        changed = told_changes(find_run(str(start)), config) if start is not None else []
        entry = {**describe_environment(world.device), "changed": changed}
        run = world.decided(lambda: open_run_folder(trainer.config, start, entry))
        if not begun:
            world.decided(lambda: hold(run, held))
        if world.main:
            write_facts(run, trainer.config, trainer.data)
        return trainer.run_to_the_end(run, console, changed)


def _prepared(config: TrainConfig, world: World, console: Console) -> tuple[Trainer, Path | None]:
    """All that can be refused, before anything is written; and the checkpoint it goes on from."""
    if config.tokenizer.source not in ("train", "init_from"):  # known, and so refused, before the corpus is prepared
        check_vocabulary(load_tokenizer(config.tokenizer.source, config.tokenizer.eot_token).vocab_size, config.model)
    tasks = load_downstream(config.trainer) if world.main else []
    start = world.decided(lambda: find_start(config))
    origin = read_origin(config.init_from, config.model) if config.init_from and start is None else None
    given = _given_tokenizer(config, start, origin)
    data = world.first(lambda: prepare(config.data, config.tokenizer, console, given))
    _check_data(config, data)
    trainer = Trainer(config, data, world, origin, start, tasks)
    if trainer.total < trainer.state.step:
        raise UserError(
            f"resume={config.resume} has taken {trainer.state.step} steps and the budget is {trainer.total}: "
            "raise trainer.max_steps"
        )
    return trainer, start


def _given_tokenizer(config: TrainConfig, start: Path | None, origin: Origin | None) -> Tokenizer | None:
    """The tokenizer of the model that the run starts from, or that the run has had from its beginning."""
    if start is not None:
        return read_tokenizer(start)
    if config.tokenizer.source != "init_from":
        return None
    assert origin is not None
    return origin.tokenizer


def _check_data(config: TrainConfig, data: Prepared) -> None:
    check_vocabulary(data.tokenizer.vocab_size, config.model)
    length = config.sequence_length
    for name, corpus in data.corpora.items():
        if window_count(len(corpus.train), length) < 1:
            raise UserError(
                f"data={name}: {len(corpus.train)} training tokens are less than one sequence of {length}: give it "
                "more text or lower trainer.sequence_length"
            )
    if not data.held_out(config.eval_length):
        longest = max(len(corpus.validation) for corpus in data.corpora.values())
        key = "eval_length" if config.trainer.eval_length else "sequence_length"
        raise UserError(
            f"data={config.data.name}: {longest} held-out tokens are less than one sequence of {config.eval_length}: "
            f"give it more text, or lower trainer.{key}"
        )
    prompt = len(data.tokenizer.encode(config.trainer.sample_prompt))
    limit = longest_of(config.model)
    if limit is not None and prompt >= limit:
        raise UserError(
            f"trainer.sample_prompt has {prompt} tokens, which fill the {limit} positions the model has: shorten it"
        )
