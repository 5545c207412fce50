"""What is said of ideas that a run names."""

import dataclasses

import pytest

from gptstar import ideas
from gptstar.training.optimizers import OptimizerConfig
from gptstar.training.tables import unused_ideas
from support import tiny_model

pytestmark = pytest.mark.usefixtures("no_ideas")
IDEA = """
from gptstar.model.own import add
from gptstar.model.positions import SCHEMES, NoPosition
from gptstar.training.optimizers import OPTIMIZERS, adamw

@add(SCHEMES, "mine")
class Mine(NoPosition):
    pass

@add(OPTIMIZERS, "other")
def other(model, config):
    return adamw(model, config)
"""


def test_a_file_that_a_run_uses_nothing_of_is_remarked_on(train_config, tmp_path):
    (tmp_path / "mine.py").write_text(IDEA)
    (tmp_path / "changing.py").write_text("import torch\n")  # which may change anything
    files = [str(tmp_path / "mine.py"), str(tmp_path / "changing.py")]
    ideas.use(files)
    plain = dataclasses.replace(train_config, ideas=files)
    assert list(unused_ideas(plain)) == [
        "mine.py adds model.position=mine, optimizer.name=other, and this run uses none of it"
    ]
    for used in ({"model": tiny_model(position="mine")}, {"optimizer": OptimizerConfig(name="other")}):
        assert not list(unused_ideas(dataclasses.replace(plain, **used)))
