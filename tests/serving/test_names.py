from __future__ import annotations

import shutil

import pytest

from gptstar.errors import UserError
from gptstar.serving.models import Models, Served
from gptstar.serving.names import NAMES, Source, resolve
from gptstar.serving.settings import BY_NUMBER, read_settings


@pytest.mark.parametrize("name", ["gpt2", "gpt-neo-125M", "gpt-neo-1.3B", "gpt-neo-2.7B", "gpt-j-6B", "gpt-neox-20b"])
def test_the_names_of_earlier_servers_mean_what_they_meant(name):
    found = resolve(name)
    assert found.name == name and found.source.lower().endswith(name.lower())
    assert found.link == f"https://huggingface.co/{found.source}"


def test_all_numbers_of_the_rest_server_are_names():
    assert BY_NUMBER == ("gpt2", "gpt-neo-125M", "gpt-neo-1.3B", "gpt-neo-2.7B", "gpt-j-6B")
    assert set(BY_NUMBER) <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("GPT-NEO-125M", "gpt-neo-125M"), ("gpt-neo-125m", "gpt-neo-125M"), ("gpt-j-6b", "gpt-j-6B"), ("zzz", "")],
)
def test_the_case_matters_and_there_is_a_hint(name, hint):
    with pytest.raises(UserError, match=f"MODEL_NAME={name} is unknown") as told:
        resolve(name)
    assert (f"did you mean {hint}?" in str(told.value)) == bool(hint)
    assert "\n" not in str(told.value)


def test_a_folder_goes_by_its_name(folder):
    found = resolve(str(folder))
    assert (found.name, found.source, found.link) == ("tiny", str(folder), None)


def test_a_hub_name_is_taken_as_it_is():
    assert resolve("owner/model-1").source == "owner/model-1"


def test_a_preset_needs_weights():
    with pytest.raises(UserError, match="set CHECKPOINT"):
        resolve("star_3m")


def test_a_preset_with_a_checkpoint_must_fit(folder, tmp_path):
    with pytest.raises(UserError, match=r"has \w+=.*leave MODEL_NAME out"):
        resolve("star_3m", folder)
    with pytest.raises(UserError, match="does not exist"):
        resolve("star_3m", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"MODEL_NAME=gpt-2 is unknown: choose one of .*; or leave it out"):
        resolve("gpt-2", folder)


def test_a_checkpoint_alone_is_what_is_served(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in (str(folder), "~/tiny"):
        settings = read_settings(None, checkpoint=name)
        found = resolve(settings.sources[0], settings.checkpoint)
        assert (found.name, found.source, found.link) == ("tiny", str(folder), None)
    settings = read_settings(None, checkpoint="nowhere")
    with pytest.raises(UserError, match="CHECKPOINT=nowhere does not exist"):
        resolve(settings.sources[0], settings.checkpoint)


def test_hub_names_are_read_from_the_hubs_cache(settings, folder, monkeypatch):
    """What `load` does with the name is its own test; here it is asked for the name of the hub."""
    asked = []

    def read(source, *rest):
        asked.append(source)
        raise UserError("not here")

    monkeypatch.setattr("gptstar.serving.models.load", read)
    served = Served(resolve("gpt-neo-125M"), settings())
    with pytest.raises(UserError):
        served._read()
    assert asked == ["EleutherAI/gpt-neo-125m"]


def test_two_models_of_one_name_are_refused(settings, folder, tmp_path):
    other = tmp_path / "tiny"
    other.mkdir()
    with pytest.raises(UserError, match="two models are called tiny"):
        Models(settings(more_models=str(other)))


def test_a_runs_best_checkpoint_has_the_runs_name(tmp_path, folder):
    for step in (1, 2):
        shutil.copytree(folder, tmp_path / "first" / "checkpoints" / f"step-{step:08d}")
    run = tmp_path / "first"
    assert resolve(str(run / "best")) == Source("first/best", str(run / "best"), None)
    assert resolve(str(run / "last"), run / "last").name == "first/last"
    with pytest.raises(UserError, match="does not exist, though"):
        resolve(str(run / "worst"))
