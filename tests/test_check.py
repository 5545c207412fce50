"""The battery finds what is wrong with an idea, and says so."""

from __future__ import annotations

import pytest

from gptstar import check
from gptstar.check import main

HEAD = """
import torch
from torch import nn
from gptstar.model.own import add
from gptstar.model.positions import SCHEMES, NoPosition
from gptstar.training.optimizers import OPTIMIZERS, parameter_groups
from gptstar.training.schedules import SCHEDULES
"""
POSITION = """
@add(SCHEMES, "mine", size=0.01)
class Mine(NoPosition):
    def __init__(self, config):
        super().__init__(config)
        self.size = config.own["size"]
        self.weight = nn.Parameter(torch.empty(config.context, config.d_model))

    def embed(self, x_BTC, position):
        return {}
"""
RIGHT = "x_BTC + self.size * self.weight[position]"
OPTIMIZER = """
@add(OPTIMIZERS, "mine")
def mine(model, config):
    return {}
"""
SCHEDULE = """
@add(SCHEDULES, "mine")
def mine(config, step, total):
    return {}
"""


@pytest.fixture(autouse=True)
def one_base(monkeypatch, no_ideas):
    monkeypatch.setattr(check, "BASES", ("star_3m",))


@pytest.fixture
def asked(tmp_path, capsys):
    def ask(text: str, *own: str) -> tuple[int, str]:
        (tmp_path / "idea.py").write_text(HEAD + text)
        status = main([str(tmp_path / "idea.py"), *own])
        out, err = capsys.readouterr()
        return status, out + err

    return ask


def test_what_is_right_is_right(asked):
    status, said = asked(POSITION.format(RIGHT), "size=0.5")
    assert status == 0 and said.count("  ok ") == 10 and "all answers are right" in said


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ("x_BTC + x_BTC.mean(1, keepdim=True)", "is causal: a changed token changed an earlier logit"),
        ("x_BTC + self.size * self.weight[: x_BTC.shape[1]]", "decodes with a cache: decoding with the cache differs"),
        ("x_BTC + 0.01 * position[..., None]", "has complete gradients: position.mine.weight has no gradient"),
        ("x_BTC + float('nan')", "gives finite logits: some logits are not finite"),
        ("x_BTC + self.weigth[position]", "reads tokens: idea.py, line 17, in embed: return x_BTC + self.weigth"),
        (
            "x_BTC + torch.rand_like(x_BTC)",
            "says the same twice: the same tokens give other logits the second time",
        ),
        ("x_BTC + torch.ones(1, dtype=torch.float64)", "computes in fp32 and bf16: RuntimeError: "),
    ],
)
def test_what_is_wrong_with_a_position_is_said(asked, body, failure):
    status, said = asked(POSITION.format(body))
    assert status == 1 and f"FAILED {failure}" in said and "wrong" in said


@pytest.mark.parametrize(
    ("made", "failure"),
    [
        ("torch.optim.SGD(parameter_groups(model, 0.0), lr=config.lr)", "lowers the loss: the loss of one batch goes"),
        (
            "torch.optim.AdamW([p for p in model.parameters() if p.ndim > 1], lr=config.lr, weight_decay=0)",
            "is not moved: is it in no group?",
        ),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_said(asked, made, failure):
    status, said = asked(OPTIMIZER.format(made))
    assert status == 1 and failure in said


def test_what_is_drawn_in_training_alone_is_right(asked):
    status, said = asked(POSITION.format(f"nn.functional.dropout({RIGHT}, 0.1, self.training)"))
    assert status == 0, said


def test_a_good_optimizer_passes(asked):
    status, said = asked(OPTIMIZER.format("torch.optim.Adam(parameter_groups(model, 0.0), lr=config.lr)"))
    assert status == 0 and said.count("  ok ") == 3


def test_an_optimizer_that_forgets_is_found(asked):
    forgets = """
class Forgets(torch.optim.AdamW):
    def state_dict(self):
        return {**super().state_dict(), "state": {}}
"""
    status, said = asked(forgets + OPTIMIZER.format("Forgets(parameter_groups(model, 0.0), lr=config.lr)"))
    assert status == 1 and "FAILED continues from its state: after its state is loaded" in said


def test_a_schedule_stays_between_0_and_1(asked):
    assert asked(SCHEDULE.format("1 - step / total"))[0] == 0


def test_a_schedule_that_draws_is_found(asked):
    status, said = asked(SCHEDULE.format("torch.rand(()).item()"))
    assert status == 1 and "has the factor" in said


def test_a_schedule_that_leaves_its_bounds_is_found(asked):
    status, said = asked(SCHEDULE.format("1 - 2 * step / total"))
    assert status == 1 and "gives factors: at step" in said


def test_mistakes_are_told_in_a_line(asked, tmp_path, capsys):
    status, said = asked("x = 1")
    assert status == 2 and "nothing is added to a table: mark it with gptstar.model.own.add" in said
    assert main([str(tmp_path / "nowhere.py")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    status, said = asked(SCHEDULE.format("1.0"), "power=[1")
    assert status == 2 and said.startswith("error: power=[1 cannot be read (expected ',' or ']'")
    assert "write NAME=VALUE" in said and said.count("\n") == 1
    assert main(["power=2"]) == 2
    assert capsys.readouterr().err == "error: no file is named: begin with the one that adds your idea, FILE.py\n"


def test_ctrl_c_is_a_line(asked, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "check", interrupted)
    assert asked(SCHEDULE) == (75, "interrupted\n")


def test_an_unknown_setting_is_told(asked):
    status, said = asked(POSITION.format(RIGHT), "sise=1")
    assert status == 2 and "sise is not a setting of these: choose one of size" in said
