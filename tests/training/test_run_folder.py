import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from gptstar.environment import launches
from gptstar.errors import UserError
from gptstar.pretrained.native import read_run_config
from gptstar.training import run_folder
from gptstar.training.loop import train
from gptstar.training.run_folder import find_start, open_run_folder


def test_what_is_written_is_the_whole_configuration_and_every_start(train_config):
    assert find_start(train_config) is None
    run = open_run_folder(train_config, None, {"a": 1})
    open_run_folder(train_config, None, {"a": 2})
    assert json.loads((run / "environment.json").read_text()) == [{"a": 1}, {"a": 2}]
    saved = read_run_config(run)
    assert saved["model"] == dataclasses.asdict(train_config.model)
    assert saved["optimizer"]["betas"] == [0.9, 0.95]


@pytest.mark.parametrize("content", ['[{"a": 1}', "\xff", "{}", "3"])
def test_a_damaged_file_of_environments_is_a_line_and_nothing_is_written(train_config, content):
    run = open_run_folder(train_config, None, {})
    (run / "environment.json").write_text(content, encoding="latin-1")
    (run / "config.yaml").write_text("as it was")
    with pytest.raises(UserError, match=r"environment\.json is damaged \(.*\): move it away"):
        open_run_folder(train_config, None, {})
    assert (run / "config.yaml").read_text() == "as it was" and launches(run) == []


def test_looking_for_the_start_writes_nothing_and_refuses_a_used_folder(train_config, tmp_path):
    find_start(train_config)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    with pytest.raises(UserError, match="is not empty"):
        find_start(train_config)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.yaml cannot be read .* is .* a run folder"):
        read_run_config(tmp_path)


def test_a_run_made_before_a_setting_existed_can_be_resumed(train_config):
    run = train(train_config).run
    saved = yaml.safe_load((run / "config.yaml").read_text())
    del saved["model"]["adapter_width"], saved["trainer"]["trainable"]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    longer = dataclasses.replace(train_config.trainer, max_steps=10)
    assert train(dataclasses.replace(train_config, trainer=longer, resume=str(run))).step == 10


def test_what_a_continued_run_does_otherwise_is_told_and_kept(train_config):
    run = train(train_config).run
    assert json.loads((run / "environment.json").read_text())[-1]["changed"] == []
    longer = dataclasses.replace(train_config.trainer, max_steps=10, timeout=7)
    slower = dataclasses.replace(train_config.optimizer, lr=1e-5)
    train(dataclasses.replace(train_config, trainer=longer, optimizer=slower, resume=str(run)))
    changed = [f"optimizer.lr {train_config.optimizer.lr} -> 1e-05", "trainer.max_steps 8 -> 10"]
    assert json.loads((run / "environment.json").read_text())[-1]["changed"] == changed
    assert f"continuing after step 8, with {'; '.join(changed)}" in (run / "train.log").read_text()


def test_a_disk_too_small_for_a_checkpoint_is_told_before_anything_is_written(train_config, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"run_dir=.*1000 bytes free and a checkpoint takes"):
        train(train_config)
    assert not Path(train_config.run_dir).exists()


def test_a_folder_that_cannot_be_written_is_told(train_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"run_dir=.*file/run cannot be written \(Not a directory\): choose another one"
    ):
        train(dataclasses.replace(train_config, run_dir=str(tmp_path / "file" / "run")))


def test_a_run_folder_is_one_process_s_at_a_time(train_config, monkeypatch):
    run = Path(train_config.run_dir)
    train(train_config)
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    again = dataclasses.replace(train_config, resume=str(run))
    with ExitStack() as held:
        run_folder.hold(run, held)
        with pytest.raises(UserError, match="is being trained by another process: wait for it"):
            train(again)
    assert train(again).step == 8
    with ExitStack() as held:
        run_folder.hold(run / "not there", held)  # nobody's
