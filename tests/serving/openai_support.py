"""A tiny model behind a real server on the loopback, and OpenAI's clients for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import torch
import uvicorn
from fastapi import FastAPI

from gptstar.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from gptstar.generation.engine import Engine
from gptstar.model.transformer import GPT
from gptstar.serving.app import create_app
from gptstar.serving.models import Models
from gptstar.serving.settings import ServerSettings
from support import tiny_model

NAME = "gpt2"  # any name that needs no file to mean something
TOKENIZER = train_tokenizer(["the cat sat on the mat ☃ é 👩‍🚀. User: hi\n" * 20], TokenizerConfig(vocab_size=320))
CONTEXT = 128


def tiny_gpt(seed: int = 0) -> GPT:
    """Float64: rounding in a batch must not decide between two tokens. Its positions end at CONTEXT."""
    torch.manual_seed(seed)
    config = tiny_model(vocab_size=320, context=CONTEXT, init_std=0.4, n_head=4, position="learned", block="sequential")
    return GPT(config).double().eval()


@dataclass
class Live:
    """A server that answers at `url`."""

    url: str
    app: FastAPI
    models: Models
    model: GPT
    tokenizer: Tokenizer
    http: httpx.Client

    @property
    def engine(self) -> Engine:
        return self.models.default.worker.engine

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
        )

    def asynchronous(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=httpx.AsyncClient(trust_env=False)
        )

    def post(self, path: str, **body) -> httpx.Response:
        return self.http.post(f"{self.url}/v1/{path}", json=body)

    def is_idle(self, seconds: float = 20) -> bool:
        """Whether the engine has nothing to do before so many seconds are over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.engine.idle and not self.models.default.worker.pending:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def live(
    tokenizer: Tokenizer = TOKENIZER, model: GPT | None = None, rows: int = 8, budget: int = 512, **settings
) -> Iterator[Live]:
    """Serves until the block ends."""
    model = model or tiny_gpt()
    given = ServerSettings(_env_file=None, model_name=NAME, page=False, **settings)
    models = Models(given)
    models.default._read = lambda taken: Engine(model, tokenizer, rows, budget=budget)
    app = create_app(given, models)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started or models.default.state != "ready":
            assert thread.is_alive() and time.monotonic() < end, models.default.error
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(trust_env=False, timeout=60) as http:
            yield Live(f"http://127.0.0.1:{port}", app, models, model, tokenizer, http)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
