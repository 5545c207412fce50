import shlex
import sys

import pytest
import torch

from gptstar.environment import describe_environment


@pytest.mark.parametrize(
    ("started", "command"),
    [
        (["/usr/bin/python3", "train.py", "run_dir=my run"], ["python", "train.py", "run_dir=my run"]),
        (["/usr/bin/python3", "/opt/bin/gptstar", "train", "tags=[a, b]"], ["gptstar", "train", "tags=[a, b]"]),
    ],
)
def test_the_command_of_a_run_can_be_typed_again(monkeypatch, started, command):
    monkeypatch.setattr(sys, "orig_argv", started)
    assert shlex.split(describe_environment(torch.device("cpu"))["command"]) == command
