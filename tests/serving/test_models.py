from __future__ import annotations

import asyncio
import shutil
import threading

import pytest
import torch
from fastapi.testclient import TestClient

from gptstar.errors import UserError
from gptstar.model.describe import cache_bytes_per_token, parameter_count
from gptstar.offload.layers import find_layers
from gptstar.offload.load import Limits
from gptstar.offload.plan import Room, least_bytes
from gptstar.offload.stream import READ_AT_ONCE, layers_of
from gptstar.pretrained.load import load, load_config
from gptstar.pretrained.native import save_weights
from gptstar.serving import models
from gptstar.serving.app import create_app
from gptstar.serving.models import Models, check_budget, held_bytes, rows_that_fit
from gptstar.serving.names import resolve


def test_loading_is_503_with_progress_and_then_200(settings, monkeypatch, wait_until):
    going, told = threading.Event(), threading.Event()
    load = models.load

    def slowly(*arguments):
        served._hear(0.25)
        told.set()
        assert going.wait(60)
        return load(*arguments)

    monkeypatch.setattr(models, "load", slowly)
    app = create_app(settings())
    served = app.state.models.default
    with TestClient(app) as client:
        assert told.wait(60)
        response = client.get("/health")
        assert response.status_code == 503
        (said,) = response.json()["models"]
        assert response.json()["status"] == said["state"] == "loading" and said["progress"] == 0.25
        asked = client.post("/", json={"text": {"plain": "a"}})
        assert asked.status_code == 503 and asked.headers["retry-after"] == "5" and "loading" in asked.json()["error"]
        assert client.get("/talk", params={"input": "a"}).status_code == 503
        going.set()
        wait_until(lambda: client.get("/health").status_code == 200)
        assert client.get("/health").json()["status"] == "ready"
        assert client.head("/health").status_code == 200
        assert client.post("/", json={"text": {"plain": "a"}}).status_code == 200


def test_a_model_that_cannot_be_loaded_says_why(serve, tmp_path):
    (tmp_path / "broken").mkdir()
    client = serve(model_name=str(tmp_path / "broken"))
    response = client.get("/health")
    assert response.status_code == 503 and response.json()["status"] == "failed"
    assert "broken" in response.json()["models"][0]["error"]
    asked = client.post("/", json={"text": {"plain": "a"}})
    assert asked.status_code == 503 and "could not be loaded" in asked.json()["error"]


def test_a_hub_name_that_is_not_in_the_cache_says_why(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    client = serve(model_name="nobody/nothing-here")
    response = client.get("/health").json()
    assert response["status"] == "failed" and "nobody/nothing-here" in response["models"][0]["error"]


def test_a_failed_engine_is_seen(serve, caplog):
    client = serve()

    def fail():
        raise RuntimeError("out of memory")

    client.app.state.models.default.worker.engine.step = fail
    response = client.post("/", json={"text": {"plain": "a"}})
    assert response.status_code == 503 and "out of memory" not in response.text
    assert "out of memory" in caplog.text and "out of memory" not in client.get("/health").text
    assert 'gptstar_ready{model="tiny"} 0' in client.get("/metrics").text
    assert client.app.state.models.hopeless
    assert client.get("/health").json()["status"] == "failed" and client.get("/health").status_code == 503
    assert client.post("/", json={"text": {"plain": "a"}}).status_code == 503


def test_two_models_are_told_apart(settings, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    made = Models(settings(more_models=str(tmp_path / "other")))
    assert list(made.served) == ["tiny", "other"] and made.default.name == "tiny"
    assert made.pick("other").name == "other" and made.pick(None).name == "tiny"
    with pytest.raises(KeyError):
        made.pick("third")


def test_memory_that_does_not_do_is_refused_with_what_would(folder, tmp_path, tokenizer):
    source = resolve(str(folder))
    n = parameter_count(load_config(folder))
    said = r"tiny takes .* KiB in fp32, and there are .* KiB of MEMORY_BUDGET: DTYPE=bf16"
    with pytest.raises(UserError, match=said):
        check_budget(source, None, 3 * n)
    with pytest.raises(UserError, match="no DTYPE makes it fit"):
        check_budget(source, None, 1000)
    check_budget(source, None, 4 * n)
    half = tmp_path / "half"
    half.mkdir()
    save_weights(half, load(folder, dtype="fp16")[0], tokenizer, {})
    check_budget(resolve(str(half)), None, 3 * n)  # as it was saved
    with pytest.raises(UserError, match="in fp16"):
        check_budget(resolve(str(half)), None, n)


def test_a_budget_holds_for_all_models_together(settings, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    weights = 4 * parameter_count(load_config(folder))
    made = Models(settings(more_models=str(tmp_path / "other"), memory_budget=str(3 * weights), max_rows=1000))
    asyncio.run(_load_and_close(made))
    assert made.served["tiny"].held > 2 * weights  # all it can have
    assert made.served["other"].state == "failed" and "MEMORY_BUDGET" in made.served["other"].error


async def _load_and_close(made: Models) -> None:
    await made.load()
    made.close()


def test_rows_are_as_many_as_memory_allows(client):
    model = client.app.state.models.default.model
    assert rows_that_fit(model, 128, 1e9, 16) == 16
    one = 128 * cache_bytes_per_token(model.config, 4)
    assert rows_that_fit(model, 128, 3.5 * one, 16) == 3
    with pytest.raises(UserError, match="raise MEMORY_BUDGET"):
        rows_that_fit(model, 128, 10, 16)
    assert held_bytes(model) > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_budget": "1k"}, "MEMORY_BUDGET"),
        ({"gpu_memory_budget": "1k"}, "GPU_MEMORY_BUDGET=1000 needs a GPU and the device is cpu: leave it out"),
        ({"device": "x"}, "device=x"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_read(settings, changes, words):
    with pytest.raises(UserError, match=words):
        Models(settings(**changes))


def test_what_went_wrong_is_in_the_log(serve, caplog, monkeypatch):
    def broken(*_):
        raise KeyError("a part")

    monkeypatch.setattr(models, "load", broken)
    with caplog.at_level("INFO"):
        client = serve()
    assert "tiny could not be loaded: KeyError" in caplog.text and "Traceback" in caplog.text
    assert client.app.state.models.hopeless == "KeyError: 'a part'"


def test_long_texts_are_cut_where_that_changes_nothing(client, tokenizer):
    served = client.app.state.models.default
    text = "abc def gh, ij. " * 5000
    cut = served.end_of(text, 13)
    assert len(cut) < 3000
    assert tokenizer.encode(cut)[-13:] == tokenizer.encode(text)[-13:]
    assert served.end_of("abc", None) == served.end_of("abc", 13) == "abc"
    with pytest.raises(UserError, match="exceed the 128 tokens the model can read: shorten"):
        served.end_of(text, None)


def test_a_model_that_does_not_fit_is_served_from_disk(serve, folder, exact_budgets, monkeypatch, caplog):
    config, found = load_config(folder), find_layers(folder)
    whole = serve().post("/", json={"text": {"plain": "a"}}).json()
    budget = least_bytes(found, torch.float32, Room(config.context, READ_AT_ONCE, READ_AT_ONCE, config.context))
    monkeypatch.setattr(models, "BYTES", dict.fromkeys(models.BYTES, 1e9))
    client = serve(memory_budget=str(budget), max_rows=1)
    found_text = client.post("/", json={"text": {"plain": "a"}}).json()
    assert {**found_text, "s_elapsed": None} == {**whole, "s_elapsed": None}
    served = client.app.state.models.default
    assert served.worker.engine.decoder.shared and layers_of(served.model) is not None and served.held > 0
    assert "does not fit, and stays on disk in part" in caplog.text


@pytest.mark.parametrize(("least", "whole"), [(0, False), (1e12, True)])
def test_weights_alone_are_not_enough_to_be_read_whole(settings, folder, monkeypatch, least, whole):
    weights = 4 * parameter_count(load_config(folder))
    monkeypatch.setattr(models, "_least", lambda *_: least)
    served = Models(settings(memory_budget=str(weights + 10))).default
    assert served._fits_whole(weights + 10, torch.device("cpu")) == whole  # else the refusal says what is missing
    assert served._fits_whole(3 * weights, torch.device("cpu"))


def test_on_a_gpu_each_memory_has_its_own_budget(settings, folder, monkeypatch):
    cuda, asked = torch.device("cuda"), []

    def within(source, device, dtype, limits, *_):
        asked.append(limits)
        raise UserError("not here")

    monkeypatch.setattr(models, "pick_device", lambda _: cuda)
    monkeypatch.setattr(models, "free_memory", lambda _: 1000)
    monkeypatch.setattr(models, "_least", lambda *_: 0)
    monkeypatch.setattr(models, "load_within", within)
    for changes, expected in (
        ({"gpu_memory_budget": "600"}, Limits(None, 500)),
        ({"gpu_memory_budget": "600", "memory_budget": "9G"}, Limits(9000000000, 500)),
        ({"memory_budget": "9G"}, Limits(9000000000, 950)),
        ({"gpu_memory_budget": "9G", "memory_budget": "1"}, Limits(1, 8999999900)),  # it passes through memory
    ):
        with pytest.raises(UserError, match="not here"):
            Models(settings(**changes)).default._read(100)
        assert asked.pop() == expected
    served = Models(settings(gpu_memory_budget="9G", memory_budget="9000G")).default
    assert served._fits_whole(9e9, cuda) and Models(settings()).default._budget(cuda, 0) is None
    monkeypatch.setattr(models, "_least", lambda *_: 1e12)
    with pytest.raises(UserError, match=r"there are .* of GPU_MEMORY_BUDGET"):
        Models(settings(gpu_memory_budget="600"))


def test_progress_of_layers_that_are_read_is_told(settings):
    served = Models(settings()).default
    with served._track("reading weights", 8) as advance:
        for share in (0.25, 0.5):
            advance(2)
            assert served.progress == share
