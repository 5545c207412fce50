import dataclasses

import pytest

from gptstar.errors import UserError
from gptstar.pretrained.native import read_run_config
from gptstar.training.run_folder import open_run_folder, write_description


def test_what_is_written_is_the_whole_configuration(train_config, tmp_path):
    run, start = open_run_folder(train_config)
    assert start is None and run.is_dir()
    write_description(run, train_config, {"a": 1})
    saved = read_run_config(run)
    assert saved["model"] == dataclasses.asdict(train_config.model)
    assert saved["optimizer"]["betas"] == [0.9, 0.95]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config.yaml cannot be read .* is .* a run folder"):
        read_run_config(tmp_path)
