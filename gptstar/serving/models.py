"""The models a server has: read one after another while it already answers, each with a worker of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import free_memory, pick_device
from gptstar.errors import UserError
from gptstar.generation.continuation import TooLong
from gptstar.generation.decoding import Decoder
from gptstar.generation.engine import Engine
from gptstar.generation.settings import SamplingSettings
from gptstar.model.config import ModelConfig
from gptstar.model.describe import cache_bytes_per_token, parameter_count
from gptstar.model.transformer import GPT
from gptstar.pretrained.load import load, load_config
from gptstar.pretrained.telling import telling
from gptstar.serving.names import Source, resolve
from gptstar.serving.records import current
from gptstar.serving.settings import ServerSettings
from gptstar.serving.worker import Job, Worker

BYTES = {None: 4.0, "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "int4": 0.65}  # a weight, scales included
CUT_SLACK = 64  # tokens: where a text is cut the first ones may differ from those of the whole
SHARE_FOR_CACHE = 0.8  # of what memory is left once weights are read, where no budget is set

T = TypeVar("T")
State = Literal["waiting", "loading", "ready", "failed"]


class NotReady(Exception):
    """A model that is still being read, or could not be."""


class Served:
    """One model.

    state      waiting for its turn, loading, ready or failed
    progress   share of the weights that is read, 0 to 1
    error      why it failed
    model, tokenizer, worker   once it is ready
    """

    def __init__(self, source: Source, settings: ServerSettings) -> None:
        self.name, self.source, self.settings = source.name, source, settings
        self.state: State = "waiting"
        self.progress = 0.0
        self.error: str | None = None
        self.created = int(time.time())
        self.finished: Callable[[Job, str], object] = lambda job, how: None  # told of each job that has ended
        self._model: GPT | None = None
        self._tokenizer: Tokenizer | None = None
        self._worker: Worker | None = None
        self._longest_token = 1  # characters

    @property
    def model(self) -> GPT:
        """Raises NotReady, as the next two do."""
        return self._there(self._model)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._there(self._tokenizer)

    @property
    def worker(self) -> Worker:
        return self._there(self._worker)

    def _there(self, value: T | None) -> T:
        if self.state != "ready" or value is None:
            reason = f"could not be loaded: {self.error}" if self.state == "failed" else f"is {self.state}"
            raise NotReady(f"the model {self.name} {reason}")
        return value

    async def load(self) -> None:
        """Reads the weights in a thread and starts the worker. What goes wrong is in `state` and `error`."""
        self.state = "loading"
        try:
            engine = await _in_thread(self._read)
            self._model, self._tokenizer = engine.model, engine.tokenizer
            self._longest_token = max(map(len, engine.tokenizer.fast.get_vocab()))
            self._worker = Worker(engine, self.settings.max_queue, lambda job, how: self.finished(job, how))
            self.progress, self.state = 1.0, "ready"
        except Exception as error:
            self.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.state = "failed"

    def _read(self) -> Engine:
        settings = self.settings
        device = pick_device(settings.device)
        budget = settings.memory_budget
        if budget is not None:
            check_budget(self.name, load_config(self.source.source), settings.dtype, budget)
        with telling(self._hear):
            model, tokenizer = load(self.source.source, device, settings.dtype)
        left = free_memory(device) * SHARE_FOR_CACHE if budget is None else budget - held_bytes(model)
        capacity = model.longest or 2 * model.config.context
        n_row = rows_that_fit(model, capacity, left, settings.max_rows)
        return Engine(model, tokenizer, n_row, capacity, decoder=Decoder(model, settings.compile))

    def _hear(self, share: float) -> None:
        self.progress = share

    async def count(self, prompt: str) -> int:
        """Tokens of a prompt as it will be read, its beginning lost where the settings say so. Raises NotReady."""
        most = self.settings.max_input_token_length
        tokens = await asyncio.to_thread(self.tokenizer.encode, self._end_of(prompt, most))
        return max(1, min(len(tokens), most or len(tokens)))

    async def ask(self, prompt: str | list[int], settings: SamplingSettings, prompt_logprobs: int | None = None) -> Job:
        """Starts a request. Raises UserError for what cannot be done, NotReady, Busy and Closed."""
        return (await self.ask_all([prompt], settings, prompt_logprobs))[0]

    async def ask_all(
        self, prompts: Sequence[str | list[int]], settings: SamplingSettings, prompt_logprobs: int | None = None
    ) -> list[Job]:
        """Starts a request of several prompts, a job for each. Raises as `ask` does, and then none has started."""
        worker = self.worker
        truncated = worker.engine.capacity if settings.truncate else None
        most, asked = settings.max_prompt_tokens or truncated, settings.max_new_tokens
        cut = [prompt if isinstance(prompt, list) else self._end_of(prompt, most, asked) for prompt in prompts]
        ready = await asyncio.to_thread(lambda: [worker.prepare(prompt, settings) for prompt in cut])
        jobs = worker.start_all(ready, settings, prompt_logprobs)
        record = current.get()
        if record is not None:
            record.asked(self.name, jobs)
        return jobs

    def _end_of(self, text: str, n_token: int | None, asked: int = 0) -> str:
        """As much of a text as its last n_token tokens can need. Raises TooLong where all of it counts (None) and it
        is longer than what the model can read.

        A megabyte takes seconds to tokenise, and no token has more characters than the longest one.
        """
        if n_token is not None:
            return text[-(n_token + CUT_SLACK) * self._longest_token :]
        capacity, least = self.worker.engine.capacity, len(text) // self._longest_token
        if least > capacity:
            raise TooLong(least, asked, capacity, "shorten the prompt, which has so many tokens or more")
        return text


async def _in_thread(function: Callable[[], T]) -> T:
    """Like asyncio.to_thread, but no process that is told to end waits for the thread."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    future.set_running_or_notify_cancel()  # it cannot be cancelled from now on
    threading.Thread(target=work, name="loading", daemon=True).start()
    return await asyncio.wrap_future(future)


class Models:
    """All models by name; the first is the default."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises UserError for a name that means nothing."""
        sources = [resolve(name, settings.checkpoint if i == 0 else None) for i, name in enumerate(settings.sources)]
        self.served: dict[str, Served] = {}
        for source in sources:
            if source.name in self.served:
                raise UserError(f"two models are called {source.name}: {source.source} and another; rename one folder")
            self.served[source.name] = Served(source, settings)

    async def load(self) -> None:
        """One after another, in order."""
        for served in self.served.values():
            await served.load()

    def pick(self, name: str | None) -> Served:
        """The default one for None. Raises KeyError for a name that is not served."""
        return self.default if name is None else self.served[name]

    @property
    def default(self) -> Served:
        return next(iter(self.served.values()))

    async def drain(self, seconds: float) -> None:
        """Takes nothing new; requests come to their end within `seconds` or are told that they do not."""
        await asyncio.gather(*(w.drain(seconds) for w in self._workers()))

    def close(self) -> None:
        """Ends all threads."""
        for worker in self._workers():
            worker.close()

    def _workers(self) -> list[Worker]:
        return [s.worker for s in self.served.values() if s.state == "ready"]


def check_budget(name: str, config: ModelConfig, dtype: str | None, budget: int) -> None:
    """Raises UserError, with what would fit, for weights that take more than `budget` bytes."""
    n = parameter_count(config)
    needed = {kind: n * size for kind, size in BYTES.items()}
    if needed[dtype] <= budget:
        return
    fits = [kind for kind in ("bf16", "int8", "int4") if needed[kind] <= budget]
    remedy = f"DTYPE={fits[0]} takes {needed[fits[0]] / 1e9:.1f} GB" if fits else "no DTYPE makes it fit"
    raise UserError(
        f"{name} takes {needed[dtype] / 1e9:.1f} GB in {dtype or 'fp32'}, "
        f"and MEMORY_BUDGET is {budget / 1e9:.1f} GB: {remedy}"
    )


def held_bytes(model: GPT) -> int:
    """Of weights and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def rows_that_fit(model: GPT, capacity: int, left: float, wanted: int) -> int:
    """How many sequences there is memory for. Raises UserError where there is none for a single one."""
    numbers = torch.finfo(model.dtype).bits // 8
    row = capacity * cache_bytes_per_token(model.config, numbers)
    if row > left:
        raise UserError(
            f"weights leave {left / 1e9:.2f} GB, and the cache of one sequence of {capacity} tokens takes "
            f"{row / 1e9:.2f} GB: raise MEMORY_BUDGET, or set DTYPE=int8"
        )
    return max(1, min(wanted, int(left // row)))
