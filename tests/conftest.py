"""Fixtures: a small invented corpus, small configurations, and the real data where a checkout has it beside it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a network
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp()  # where transformers copies the code of exported models
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import torch
from hydra.core.global_hydra import GlobalHydra
from ranks import Ranks

from gptstar import garbage, ideas
from gptstar.configuration import run_door
from gptstar.data.config import DataConfig
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.lab.sweeps.plugins import PLUGINS
from gptstar.training.config import TrainConfig, TrainerConfig
from gptstar.training.loop import train
from gptstar.training.tables import TABLES
from support import tiny_model, write_corpus

# The same examples every time, however slow the machine.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")

# Every run of a test would search all that pytest and all libraries hold: minutes of the whole suite.
garbage.search_all = partial(gc.collect, 1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def door(monkeypatch, tmp_path):
    """Runs train.py's (or another) command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, name="train", schema=TrainConfig, main=train, continues=False):
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        run_door(name, schema, main, PLUGINS, continues)

    yield call
    GlobalHydra.instance().clear()


@pytest.fixture
def no_ideas(monkeypatch, tmp_path):
    """As in a process of its own, on a machine where nobody has named an idea."""
    monkeypatch.setattr(ideas, "_imported", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = {key: dict(table) for key, table in TABLES.items()}
    yield
    for key, table in TABLES.items():
        table.clear()
        table.update(before[key])


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def ranks():
    """Four processes that train together, started at the first call."""
    made: list[Ranks] = []

    def get() -> Ranks:
        if not made:
            made.append(Ranks(4))
        return made[0]

    yield get
    for each in made:
        each.close()


@pytest.fixture
def train_config(corpus_dir: Path, cache_dir: Path, tmp_path: Path) -> TrainConfig:
    """A run of a second or so."""
    return TrainConfig(
        model=tiny_model(),
        data=DataConfig(
            name="tiny",
            corpus="text_files",
            paths=[f"{corpus_dir}/*.txt"],
            cache_dir=str(cache_dir),
            validation_fraction=0.2,
        ),
        tokenizer=TokenizerConfig(vocab_size=300),
        trainer=TrainerConfig(
            batch_size=4, max_steps=8, eval_every=4, checkpoint_every=4, eval_tokens=512, peak_flops=1e11, device="cpu"
        ),
        run_dir=str(tmp_path / "run"),
    )


@pytest.fixture
def exact_budgets(monkeypatch):
    """Under a memory budget nothing is set aside, so that a few kilobytes decide."""
    from gptstar.offload import load, plan

    for name, value in (("SLACK", 0), ("TILE", 0), ("SAMPLE", 1), ("memory_in_use", lambda: 0)):
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(load, "_check_room", lambda *_: None)
    monkeypatch.setattr(load, "whole_bytes", lambda *_: 1 << 60)  # nothing fits whole
