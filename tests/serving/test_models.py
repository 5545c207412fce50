from __future__ import annotations

import shutil
import threading

import pytest
from fastapi.testclient import TestClient

from gptstar.errors import UserError
from gptstar.model.describe import cache_bytes_per_token
from gptstar.serving import models
from gptstar.serving.app import create_app
from gptstar.serving.models import Models, check_budget, held_bytes, rows_that_fit
from support import tiny_model


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


def test_a_failed_engine_is_seen(serve):
    client = serve()

    def fail():
        raise RuntimeError("out of memory")

    client.app.state.models.default.worker.engine.step = fail
    assert client.post("/", json={"text": {"plain": "a"}}).status_code == 503
    assert client.get("/health").json()["status"] == "failed" and client.get("/health").status_code == 503
    assert client.post("/", json={"text": {"plain": "a"}}).status_code == 503


def test_two_models_are_told_apart(settings, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    made = Models(settings(more_models=str(tmp_path / "other")))
    assert list(made.served) == ["tiny", "other"] and made.default.name == "tiny"
    assert made.pick("other").name == "other" and made.pick(None).name == "tiny"
    with pytest.raises(KeyError):
        made.pick("third")


def test_memory_that_does_not_do_is_refused_with_what_would():
    config = tiny_model()
    with pytest.raises(UserError, match=r"tiny takes .* GB in fp32, and MEMORY_BUDGET is"):
        check_budget("tiny", config, None, 1000)
    check_budget("tiny", config, None, 10**9)


def test_rows_are_as_many_as_memory_allows(client):
    model = client.app.state.models.default.model
    assert rows_that_fit(model, 128, 1e9, 16) == 16
    one = 128 * cache_bytes_per_token(model.config, 4)
    assert rows_that_fit(model, 128, 3.5 * one, 16) == 3
    with pytest.raises(UserError, match="raise MEMORY_BUDGET"):
        rows_that_fit(model, 128, 10, 16)
    assert held_bytes(model) > 0


def test_a_budget_below_the_weights_fails_before_they_are_read(serve, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *arguments: pytest.fail("the weights were read"))
    client = serve(memory_budget="1k")
    assert "MEMORY_BUDGET" in client.get("/health").json()["models"][0]["error"]


def test_long_texts_are_cut_where_that_changes_nothing(client, tokenizer):
    served = client.app.state.models.default
    text = "abc def gh, ij. " * 5000
    cut = served._end_of(text, 13)
    assert len(cut) < 3000
    assert tokenizer.encode(cut)[-13:] == tokenizer.encode(text)[-13:]
    assert served._end_of("abc", None) == served._end_of("abc", 13) == "abc"
    with pytest.raises(UserError, match="exceed the 128 tokens the model can read: shorten"):
        served._end_of(text, None)
