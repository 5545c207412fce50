"""Files of one's own: what they add, what is kept of them, and whose code is run."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar import ideas
from gptstar.errors import UserError
from gptstar.lab.planning.memory import Setting, bias_bytes, memory
from gptstar.model.choices import check_choices
from gptstar.model.own import add, completed
from gptstar.model.positions import SCHEMES, NoPosition
from gptstar.pretrained.native import read_config, save_weights
from support import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_ideas")
IDEA = """
from gptstar.model.own import add
from gptstar.model.positions import SCHEMES, NoPosition

@add(SCHEMES, "later", step=2)
class Later(NoPosition):
    def __init__(self, config):
        super().__init__(config)
        self.step = config.own["step"]

    def embed(self, x_BTC, position):
        return x_BTC + 0.01 * self.step * position[..., None]
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "later.py"
    path.write_text(IDEA)
    return path


def forget() -> None:
    ideas._imported.clear()
    SCHEMES.pop("later", None)


def saved(folder: Path, **changes) -> gptstar.GPT:
    torch.manual_seed(0)
    model = gptstar.GPT(tiny_model(position="later", **changes)).eval()
    folder.mkdir()
    save_weights(folder, model, tiny_tokenizer(), {})
    return model


def test_a_checkpoint_brings_its_code_and_settings(file, tmp_path):
    ideas.use([file])
    model = saved(tmp_path / "weights", own={"step": 5})
    assert model.config.own == {"step": 5} and model.position["later"].step == 5
    assert (tmp_path / "weights" / "ideas" / "later.py").read_text() == IDEA
    file.unlink()
    forget()
    again, _ = gptstar.load(tmp_path / "weights")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(tokens), model(tokens)) and again.config == model.config


def test_code_that_nobody_has_named_is_not_run(file, tmp_path, monkeypatch):
    ideas.use([file])
    saved(tmp_path / "weights")
    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"code that it brings along.*allow it with python -m gptstar.check .*later.py"):
        gptstar.load(tmp_path / "weights")
    assert "later" not in SCHEMES
    ideas.use([tmp_path / "weights" / "ideas" / "later.py"])
    gptstar.load(tmp_path / "weights")


def test_changed_code_is_not_that_which_was_allowed(file, tmp_path):
    ideas.use([file])
    saved(tmp_path / "weights")
    forget()
    copy = tmp_path / "weights" / "ideas" / "later.py"
    copy.write_text(IDEA + "print('surprise')\n")
    with pytest.raises(UserError, match="never run on this machine"):
        gptstar.load(tmp_path / "weights")


def test_only_what_the_model_is_made_of_goes_with_it(file, tmp_path):
    ideas.use([file])
    folder = tmp_path / "plain"
    folder.mkdir()
    save_weights(folder, gptstar.GPT(tiny_model()), tiny_tokenizer(), {})
    assert not (folder / "ideas").exists() and read_config(folder).own == {}


def test_two_files_of_one_name_are_told_apart(file, tmp_path):
    ideas.use([file])
    ideas.use([file])  # once more is nothing new
    other = tmp_path / "other" / "later.py"
    other.parent.mkdir()
    other.write_text(IDEA.replace("later", "sooner"))
    with pytest.raises(UserError, match=r"differs from the later\.py that this process imported"):
        ideas.use([other])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("idea.txt", "", "is no Python file"),
        ("an idea.py", "", "use letters, digits and _ in its name"),
        ("broken.py", "x = 1\nimport nonsense_\n", r"cannot be imported \(line 2\): ModuleNotFoundError"),
        ("typo.py", "def f(:\n", "cannot be imported: SyntaxError"),
        ("taken.py", IDEA.replace('"later"', '"alibi"'), "'alibi' is taken by .*: choose another name"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        ideas.use([path])
    assert not ideas._imported


def test_a_mistake_has_the_line_of_the_idea(file):
    file.write_text(IDEA.replace("self.step * position", "self.step * config.own['stop'] * positions"))
    ideas.use([file])
    model = gptstar.GPT(tiny_model(position="later"))
    with pytest.raises(NameError) as error:
        model(torch.tensor([[1, 2]]))
    said = ideas.mistake_in(error.value)
    assert said.startswith("later.py, line 12, in embed: return x_BTC + 0.01") and "NameError" in said
    assert "gptstar.check later.py" in said and "\n" not in said
    assert ideas.mistake_in(ValueError("of somebody else")) is None
    with pytest.raises(TypeError) as error:
        SCHEMES["later"]()
    assert ideas.mistake_in(error.value).startswith("later.py: TypeError: Later.__init__() missing 1 required")


def test_a_setting_that_was_not_declared_is_told(file):
    file.write_text(IDEA.replace('config.own["step"]', 'config.own["stop"]'))
    ideas.use([file])
    with pytest.raises(KeyError) as error:
        gptstar.GPT(tiny_model(position="later"))
    assert "KeyError: 'stop' is none of its settings: give it to add(TABLE, NAME, ...)" in ideas.mistake_in(error.value)


def test_versions_are_of_the_text_and_of_what_is_used(file, tmp_path):
    changing = tmp_path / "changing.py"
    changing.write_text("import torch\n")
    ideas.use([file, changing])
    (run := tmp_path / "run").mkdir()
    ideas.keep_copies(run, [file, changing])
    (later,) = (v for v in ideas.versions(run, {"later"}) if v.startswith("later.py@"))
    assert len(ideas.versions(run, {"later"})) == 2 and len(later) == len("later.py@") + 8
    assert [v.partition("@")[0] for v in ideas.versions(run, {"alibi"})] == ["changing.py"]
    assert ideas.changed_since(run, [file, changing]) == []
    file.write_text(IDEA + "# another\n")
    assert ideas.changed_since(run, [file, changing]) == ["later.py"]


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.py cannot be read .*check the path"):
        ideas.use([tmp_path / "nowhere.py"])


def test_settings_are_checked_where_a_model_is_built(file):
    ideas.use([file])
    check_choices(tiny_model(position="later"))
    for own, reason in (
        ({"stop": 1}, r"model\.own\.stop=1 is not a setting: choose one of step"),
        ({"step": 1.5}, r"model\.own\.step=1\.5 must be a int"),
    ):
        with pytest.raises(ValueError, match=reason):
            gptstar.GPT(tiny_model(position="later", own=own))
    with pytest.raises(ValueError, match="nothing that is chosen has settings of its own"):
        gptstar.GPT(tiny_model(own={"stop": 1}))
    assert gptstar.GPT(tiny_model(own={"step": 1})).config.own == {}  # the baseline of a sweep over steps
    assert asdict(gptstar.GPT(tiny_model(position="later")).config)["own"] == {"step": 2}


def test_a_subclass_has_the_settings_of_its_parent():
    table: dict = {}
    parent = add(table, "parent", width=1.0)(type("Parent", (NoPosition,), {}))
    child = add(table, "child", depth=2)(type("Child", (parent,), {}))
    assert completed({"width": 3}, [child], "x") == {"width": 3, "depth": 2}
    assert completed({}, [parent], "x") == {"width": 1.0}


def test_an_unknown_name_points_to_ideas():
    with pytest.raises(ValueError, match=r"or name the file that adds it \(ideas=\[FILE\.py\]\)"):
        check_choices(tiny_model(position="later"))


def test_folders_are_copied_whole(file, tmp_path):
    """A checkpoint that is moved keeps its code."""
    ideas.use([file])
    saved(tmp_path / "weights")
    shutil.move(tmp_path / "weights", tmp_path / "moved")
    forget()
    assert gptstar.load(tmp_path / "moved")[0].config.position == "later"


BIAS = """
import torch
from torch import nn
from gptstar.model.own import add
from gptstar.model.positions import SCHEMES, NoPosition

@add(SCHEMES, "falling")
class Falling(NoPosition):
    draws = False

    def __init__(self, config):
        super().__init__(config)
        self.slope = nn.Parameter(torch.empty(config.n_head))

    def initialize_own(self):
        with torch.no_grad():
            self.slope.fill_(0.1)

    def score_bias(self, slot, key_S, dtype):
        distance = (key_S - slot[..., None]).unsqueeze(-3)
        return (self.slope[:, None, None] * distance).to(dtype)
"""


@pytest.fixture
def falling(tmp_path) -> None:
    (tmp_path / "falling.py").write_text(BIAS)
    ideas.use([tmp_path / "falling.py"])


def test_what_draws_nothing_leaves_the_other_weights_of_a_seed_alone(falling):
    made = []
    for position in ("none", "falling"):
        torch.manual_seed(3)
        made.append(gptstar.GPT(tiny_model(position=position)).state_dict())
    assert set(made[1]) - set(made[0]) == {"position.falling.slope"}
    assert all(torch.equal(made[1][name], value) for name, value in made[0].items())


def test_a_block_that_would_not_see_it_refuses_a_position(falling):
    with pytest.raises(
        ValueError, match=r"'falling' has no effect with model\.block='gmlp'.*none, learned, sinusoidal"
    ):
        gptstar.GPT(tiny_model(block="gmlp", position="falling"))


def test_a_run_with_ideas_can_be_planned(falling):
    model, how = tiny_model(position="falling"), Setting("fp32", "cpu", "sdpa", rows=2, n_token=16, optimizer="mine")
    assert bias_bytes(model, how) == bias_bytes(replace(model, position="alibi"), how) > 0
    assert memory(model, how) == memory(model, replace(how, optimizer="adamw"))


def test_an_exported_folder_holds_the_idea(falling, tmp_path):
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    model = gptstar.GPT(tiny_model(position="falling")).eval()
    gptstar.export(model, tiny_tokenizer(), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)


def test_an_idea_that_cannot_travel_is_refused_at_export(tmp_path):
    (tmp_path / "wide.py").write_text("from gptstar.errors import UserError\n" + BIAS.replace("falling", "wide"))
    ideas.use([tmp_path / "wide.py"])
    with pytest.raises(UserError, match=r"wide\.py cannot be exported .*'from gptstar\.errors import UserError'"):
        gptstar.export(gptstar.GPT(tiny_model(position="wide")), tiny_tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
