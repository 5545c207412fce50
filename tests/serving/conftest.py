"""A tiny model in a folder, and servers over it: in this process, and on a port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from gptstar.data.tokenizer import Tokenizer
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import save_weights
from gptstar.serving.app import create_app
from gptstar.serving.server import Protocol, Server
from gptstar.serving.settings import ServerSettings, read_settings
from gptstar.serving.worker import Job
from support import tiny_model, tiny_tokenizer

CONTEXT = 128  # tokens


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer(400)


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory) -> Path:
    """A model with random weights, as checkpoints are saved."""
    torch.manual_seed(0)
    config = tiny_model(vocab_size=tokenizer.vocab_size, context=CONTEXT, position="learned", init_std=0.3)
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    save_weights(path, GPT(config).eval(), tokenizer, {})
    return path


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    for name in ServerSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def settings(folder) -> Callable[..., ServerSettings]:
    """Settings for the tiny model, with changes."""
    return lambda **changes: read_settings(None, **{"model_name": str(folder), "device": "cpu", **changes})


@pytest.fixture(scope="session")
def client(folder) -> Iterator[TestClient]:
    """Of a server as it is without any settings; one for all tests."""
    with within(create_app(read_settings(None, model_name=str(folder), device="cpu"))) as made:
        yield made


@pytest.fixture
def serve(settings) -> Iterator[Callable[..., TestClient]]:
    """A client in this process, once all models are ready: serve(rate_limit=3)."""
    with contextlib.ExitStack() as stack:
        yield lambda **changes: stack.enter_context(within(create_app(settings(**changes))))


@contextlib.contextmanager
def within(app: FastAPI) -> Iterator[TestClient]:
    """Waits for the models, whether they become ready or fail."""
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: app.state.models.settled)
        yield client


@pytest.fixture
def listen(settings) -> Iterator[Callable[..., SimpleNamespace]]:
    """A server on a port of this machine: listen(max_rows=2).client is an httpx client, .app, .server and .port."""
    running: list[SimpleNamespace] = []

    def start(**changes) -> SimpleNamespace:
        chosen = settings(shutdown_seconds=changes.pop("shutdown_seconds", 5), **changes)
        app = create_app(chosen)
        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, http=Protocol, ws="none", log_config=None, access_log=False)
        server = Server(config, app.state.models, chosen.shutdown_seconds)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        port = listening.getsockname()[1]
        made = SimpleNamespace(app=app, server=server, thread=thread, port=port)
        made.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        running.append(made)
        wait_until(lambda: server.started)
        wait_until(lambda: app.state.models.settled)
        return made

    yield start
    for made in running:
        made.client.close()
        made.server.should_exit = True
        made.server.force_exit = True
        made.thread.join(30)
        assert not made.thread.is_alive()


class Gate:
    """Holds up an engine's rounds while it is closed, so that tests decide what happens meanwhile."""

    def __init__(self, engine) -> None:
        self._open, self._step = threading.Event(), engine.step
        self._open.set()
        self.rounds = 0
        engine.step = self.step

    def step(self):
        assert self._open.wait(60)
        self.rounds += 1
        return self._step()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Callable[[FastAPI], Gate]]:
    """gate(app) is closed; it is opened at the end of the test."""
    made: list[Gate] = []

    def close(app: FastAPI) -> Gate:
        made.append(Gate(app.state.models.default.worker.engine))
        made[-1].close()
        return made[-1]

    yield close
    for each in made:
        each.open()


@pytest.fixture
def jobs(monkeypatch) -> list[Job]:
    """What models are asked to do."""
    made: list[Job] = []
    begin = Job.__init__

    def noted(self, *arguments):
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Job, "__init__", noted)
    return made


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    """Fails where `true` does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


@pytest.fixture(name="wait_until")
def waiting():
    return wait_until
