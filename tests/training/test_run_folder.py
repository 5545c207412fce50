import dataclasses
import json

import pytest

from gptstar.errors import UserError
from gptstar.pretrained.native import read_run_config
from gptstar.training.run_folder import find_start, open_run_folder


def test_what_is_written_is_the_whole_configuration_and_every_start(train_config):
    assert find_start(train_config) is None
    run = open_run_folder(train_config, None, {"a": 1})
    open_run_folder(train_config, None, {"a": 2})
    assert json.loads((run / "environment.json").read_text()) == [{"a": 1}, {"a": 2}]
    saved = read_run_config(run)
    assert saved["model"] == dataclasses.asdict(train_config.model)
    assert saved["optimizer"]["betas"] == [0.9, 0.95]


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
