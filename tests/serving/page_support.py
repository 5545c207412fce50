"""Servers for tests of the page: tiny models with random weights, on a port, decoding only as far as a test allows."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI

from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.model.transformer import GPT
from gptstar.pretrained.native import save_weights
from gptstar.serving.app import create_app
from gptstar.serving.server import Server
from gptstar.serving.settings import ServerSettings, read_settings
from support import tiny_model

CONTEXT = 128  # tokens


def write_model(path: Path, seed: int = 0, ends: bool = True) -> Path:
    """Random weights over tokens that are nearly all single bytes: much of what it writes is parts of characters.

    ends: whether it may end a text by itself. A test that stops one would find it ended, once in a hundred runs.
    """
    tokenizer = train_tokenizer(["a b c d e f é € " * 20], TokenizerConfig(vocab_size=280))
    torch.manual_seed(seed)
    config = tiny_model(vocab_size=tokenizer.vocab_size, context=CONTEXT, position="learned", init_std=0.3, n_head=4)
    config = dataclasses.replace(config, head_bias=True)
    model = GPT(config).eval()
    with torch.no_grad():
        model.head_bias[tokenizer.eot_id] = 0 if ends else -1e4
    path.mkdir(parents=True)
    save_weights(path, model, tokenizer, {})
    return path


def of(models: list[Path], **changes) -> ServerSettings:
    """Nothing of the machine's own settings."""
    names = {"model_name": str(models[0]), "more_models": ",".join(map(str, models[1:]))}
    return read_settings(None, **{"device": "cpu", "shutdown_seconds": 1, **names, **changes})


def wait_until(true: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


class Site:
    """A running server. rounds: how the engines are held up; ended: how jobs did; url: of the page."""

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app, self.url = app, url
        self.rounds: threading.Semaphore | None = None
        self.ended: list[str] = []
        for served in app.state.models.served.values():
            served.finished = lambda job, how: self.ended.append(how)

    def ready(self) -> Site:
        wait_until(lambda: self.app.state.models.settled)
        return self

    def hold(self) -> None:
        """From now on the default model's engine waits for `allow`."""
        engine = self.app.state.models.default.worker.engine
        allowed = self.rounds = threading.Semaphore(0)
        step = engine.step

        def held():
            assert allowed.acquire(timeout=30)
            return step()

        engine.step = held

    def allow(self, rounds: int = 10_000) -> None:
        assert self.rounds is not None
        self.rounds.release(rounds)


@contextlib.contextmanager
def site(settings: ServerSettings, change: Callable[[FastAPI], object] = lambda app: None) -> Iterator[Site]:
    """On a port of this machine; `change` does something to the application before it starts."""
    app = create_app(settings)
    change(app)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = Server(config, app.state.models, settings.shutdown_seconds)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    made = Site(app, f"http://127.0.0.1:{listening.getsockname()[1]}/")
    try:
        wait_until(lambda: server.started)
        yield made
    finally:
        if made.rounds is not None:
            made.allow()
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
