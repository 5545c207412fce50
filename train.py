"""Trains a GPT: python train.py --help"""

from __future__ import annotations

import os
import shlex
import sys

from gptstar.allocator import keep_freed_memory
from gptstar.configuration import run_door

if __name__ == "__main__":
    keep_freed_memory()  # before torch is imported
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars, in the middle of ours
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

    from rich.console import Console

    from gptstar.environment import door_command
    from gptstar.errors import EXIT_INTERRUPTED, EXIT_NONFINITE, complain, rank_by_launcher
    from gptstar.training.config import TrainConfig

    def main(config: TrainConfig) -> None:
        """One run, and what to try after it."""
        from gptstar.training.loop import train  # a second, which --help and a mistyped setting need not wait for
        from gptstar.training.trainer import NonFiniteLoss

        try:
            outcome = train(config, Console())
        except NonFiniteLoss as error:
            complain(error)
            sys.exit(EXIT_NONFINITE)
        if outcome.interrupted:
            sys.exit(EXIT_INTERRUPTED)
        if rank_by_launcher() != "0":
            return
        if outcome.suggested_lr is not None:
            budget = ("trainer.max_steps=", "trainer.max_tokens=")
            ours = ("experiment=lr_range", "run_dir=", "resume=", "optimizer.lr=", "schedule", *budget)
            told = [argument for argument in sys.argv[1:] if not argument.startswith(ours)]
            told.append(f"optimizer.lr={outcome.suggested_lr:.1e}")
            print(f"\ntry next\n  {door_command('train')} {shlex.join(told)}")
            return
        limit = "max_steps" if config.trainer.max_steps else "max_tokens"
        print(
            f"""
try next
  {door_command("sample")} checkpoint={outcome.run} prompt={shlex.quote(config.trainer.sample_prompt)}
  {door_command("evaluate")} checkpoint={outcome.run} tasks=[held_out]
  {door_command("train")} resume={outcome.run} trainer.{limit}={2 * getattr(config.trainer, limit)}"""
        )
        if len(sys.argv) == 1:
            print(f"  {door_command('train')} model=gpt2_3m trainer.sequence_length=256")

    if any(argument.startswith("plan=") for argument in sys.argv[1:]):
        from gptstar.plan import plan_or_train

        plan_or_train(main)
    elif {"-m", "--multirun"} & {*sys.argv[1:]}:
        from gptstar.lab.sweeps.plugins import PLUGINS

        run_door("train", TrainConfig, main, PLUGINS)
    else:
        run_door("train", TrainConfig, main)
