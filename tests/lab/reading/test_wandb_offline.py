import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from gptstar.errors import UserError
from gptstar.lab.reading.read import read_run
from gptstar.lab.reading.wandb_offline import find_wandb, read_wandb, wandb_id
from gptstar.training.config import LoggerConfig
from gptstar.training.loop import train
from gptstar.training.metrics import MetricsLog, open_tracker
from lab.run_folders import make_config, make_lines, write_run
from lab.wandb_files import track, written
from support import tiny_model

ONLY_IN_FOLDERS = {"source", "config", "tokenizer", "held_out", "command", "commit"}


def same(a, b, apart=ONLY_IN_FOLDERS):
    """Whether two runs are equal but for some fields."""
    for field in dataclasses.fields(a):
        if field.name not in apart:
            left, right = getattr(a, field.name), getattr(b, field.name)
            if isinstance(left, np.ndarray):
                np.testing.assert_allclose(left, right, rtol=1e-12, err_msg=field.name)
            else:
                assert left == right, field.name


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A hand-written run as our tracker logs it."""
    folder = tmp_path_factory.mktemp("study") / "gpt2-0"
    config = make_config(**{"logger.group": "ideas", "logger.name": "wandb"})
    write_run(folder, config, lines=[], facts=None)
    tracker = open_tracker(LoggerConfig(name="wandb", group="ideas", mode="offline"), folder, config, 0)
    log = MetricsLog(folder, 0, tracker)
    lines = make_lines()
    lines[1]["loss"] = None  # a skipped step
    log.write(lines)
    log.close()
    written(folder)
    return folder


def test_a_tracked_run_is_the_one_in_its_folder(tracked):
    run, other = read_wandb(find_wandb(tracked / "wandb")), read_run(tracked)
    assert (run.problem, run.variant, run.name, run.seed) == (None, "gpt2", "gpt2-0", 0)
    assert np.isnan(run.losses).tolist() == [False, True, False, False, False, False]
    same(run, other, ONLY_IN_FOLDERS | {"hardware"})  # the one written by hand has an invented one
    assert run.config == other.config


def test_a_run_trained_here_and_resumed_is_one_run(train_config):
    model, logger = tiny_model(n_layer=1), LoggerConfig(name="wandb", mode="offline")
    config = dataclasses.replace(train_config, model=model, logger=logger)
    folder = train(config).run
    longer = dataclasses.replace(config.trainer, max_steps=10)
    train(dataclasses.replace(config, trainer=longer, resume=str(folder)))
    files = written(folder)
    assert len(files) == 2
    assert {wandb_id(file) for file in files} == {(folder / "wandb_id").read_text()}
    run = read_wandb(files)
    assert (run.problem, run.budget, run.steps.tolist()) == (None, 10 * 128, [*range(1, 11)])
    same(run, read_run(folder), ONLY_IN_FOLDERS - {"tokenizer", "held_out"})
    assert run.held_out is not None and run.tokenizer is not None
    assert read_wandb(files[:1]).budget == 8 * 128


def test_a_foreign_project_and_names_of_its_own(tmp_path):
    rows = [
        {"train/loss": 3.0 - step, "ce": 3.5 - step, "tokens_seen": 10 * step, "deep": {"er": 1}} for step in (0, 1)
    ]
    rows[1]["my/time"] = 7.5
    rows.append({"train/loss": float("inf")})
    files = track(tmp_path, rows, name="theirs", config={"seed": 4, "lr": 0.1})
    run = read_wandb(files, {"validation_loss": "ce", "seconds": "my/time"})
    assert (run.problem, run.name, run.seed, run.config) == (None, "theirs", 4, {"seed": 4, "lr": 0.1})
    np.testing.assert_equal(run.losses, [3.0, 2.0, np.nan])
    assert run.tokens.tolist() == [0, 10, 10]
    assert [(v.step, v.tokens, v.seconds, v.loss) for v in run.validations] == [(0, 0, None, 3.5), (1, 10, 7.5, 2.5)]
    assert run.final_loss == 2.5
    assert read_wandb(files, {"loss": "nothing"}).problem == "it logs no nothing"
    with pytest.raises(UserError, match=r"columns: lass is none that is read: choose among run, "):
        read_wandb(files, {"lass": "ce"})


def test_a_foreign_project_without_a_validation_loss_is_told_what_is_there(tmp_path):
    problem = read_wandb(track(tmp_path, [{"accuracy": 0.5, "tokens": "many"}])).problem
    assert re.fullmatch(r"it logs .*accuracy.*: none is known for validation_loss, which columns can tell", problem)


def test_a_long_record_spans_blocks(tmp_path):
    """A record is cut where a block of 32 KiB ends."""
    config = {"seed": 1, "text": "x" * 100_000}
    run = read_wandb(track(tmp_path, [{"val_loss": 1.0, "tokens": 5}], config=config))
    assert (run.config, run.final_loss) == (config, 1.0)


def test_a_killed_and_a_damaged_file(tracked, tmp_path):
    (whole,) = find_wandb(tracked / "wandb")
    data = whole.read_bytes()
    file = tmp_path / "offline-run-20260101_000000-x" / whole.name
    file.parent.mkdir()
    lengths, problems = [], set()
    for end in range(7, len(data), 97):
        file.write_bytes(data[:end])
        run = read_wandb([file])
        lengths.append(len(run.steps))
        problems.add(run.problem)
    assert lengths == sorted(lengths)
    skipped = "its loss became infinite at step 2"  # while it is the last one
    assert problems <= {"no metrics yet", skipped, *(f"stopped at step {step} of 6" for step in range(1, 6)), None}
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert read_wandb([file]).problem == f"{whole.name} is damaged"
    file.write_text(json.dumps({"not": "wandb's"}))
    with pytest.raises(UserError, match=r"run-.*.wandb is no file of wandb's"):
        read_wandb([file])


def test_files_are_found_oldest_first(tracked, tmp_path):
    (file,) = find_wandb(tracked / "wandb")
    for name in ("offline-run-20260202_000000-b", "run-20260101_000000-long_id"):
        shutil.copytree(file.parent, tmp_path / "wandb" / name)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-20260101_000000-long_id")
    found = find_wandb(tmp_path / "wandb")
    assert [path.parent.name for path in found] == ["run-20260101_000000-long_id", "offline-run-20260202_000000-b"]
    assert find_wandb(found[0].parent) == found[:1]
