"""The models a server has: read one after another while it already answers, each with a worker of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch

from gptstar.data.tokenizer import Tokenizer
from gptstar.device import dtype_name, free_memory, pick_device
from gptstar.errors import UserError
from gptstar.generation.continuation import TooLong
from gptstar.generation.decoding import Decoder
from gptstar.generation.engine import Engine
from gptstar.generation.settings import SamplingSettings
from gptstar.model.choices import capacity_of
from gptstar.model.describe import cache_bytes_per_token, parameter_count
from gptstar.model.transformer import GPT
from gptstar.offload.layers import find_layers
from gptstar.offload.load import Limits, alike, load_within
from gptstar.offload.plan import Room, least_bytes, memory_in_use
from gptstar.offload.stream import READ_AT_ONCE, layers_of
from gptstar.pretrained.load import load, load_config, saved_dtype
from gptstar.pretrained.telling import telling
from gptstar.serving.names import Source, resolve
from gptstar.serving.records import current
from gptstar.serving.settings import ServerSettings
from gptstar.serving.worker import FAILED, Job, Worker
from gptstar.sizes import say_bytes

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.1, "int4": 0.65}  # a weight, scales included
CUT_SLACK = 64  # tokens: where a text is cut the first ones may differ from those of the whole
SHARE_OF_GPU = 0.95  # of its free memory, where it has no budget but the process has
SHARE_FOR_CACHE = 0.8  # of what memory is left once weights are read, where no budget is set

CPU = torch.device("cpu")

log = logging.getLogger(__name__)
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

    @property
    def failure(self) -> str | None:
        """Why it will never answer."""
        dead = self.state == "ready" and self.worker.error is not None
        return FAILED if dead else self.error

    @property
    def held(self) -> float:
        """Bytes of weights and cache."""
        if self._worker is None or self._model is None:
            return 0.0
        engine = self._worker.engine
        return held_bytes(self._model) + engine.max_rows * _row_bytes(self._model, engine.capacity)

    async def load(self, taken: float = 0.0) -> None:
        """Reads the weights in a thread and starts the worker. What goes wrong is in `state`, `error` and the log.

        taken: bytes of the budget that other models hold.
        """
        self.state = "loading"
        log.info("%s: reading the weights of %s", self.name, self.source.source)
        try:
            engine = await _in_thread(lambda: self._read(taken))
            self._model, self._tokenizer = engine.model, engine.tokenizer
            self._longest_token = max(map(len, engine.tokenizer.fast.get_vocab()))
            self._worker = Worker(engine, self.settings.max_queue, lambda job, how: self.finished(job, how))
            self.progress, self.state = 1.0, "ready"
            rows = f"{engine.max_rows} rows of {engine.capacity} tokens"
            log.info("%s: ready, %s on %s, %s", self.name, say_bytes(self.held), engine.device, rows)
        except Exception as error:
            told = isinstance(error, UserError)
            self.error = str(error) if told else f"{type(error).__name__}: {error}"
            log.error("%s could not be loaded: %s", self.name, self.error, exc_info=None if told else error)
            self.state = "failed"  # last: whoever waits for it finds the reason in the log

    def _read(self, taken: float = 0.0) -> Engine:
        settings = self.settings
        device = pick_device(settings.device)
        budget = self._budget(device, taken)
        if budget is not None and not self._fits_whole(budget, device):
            return self._read_layer_by_layer(device, budget)
        with telling(self._hear):
            model, tokenizer = load(self.source.source, device, settings.dtype)
        left = free_memory(device) * SHARE_FOR_CACHE if budget is None else budget - held_bytes(model)
        capacity = capacity_of(model.config)
        n_row = rows_that_fit(model, capacity, left, settings.max_rows)
        return Engine(model, tokenizer, n_row, capacity, decoder=Decoder(model, settings.compile))

    def _budget(self, device: torch.device, taken: float) -> float | None:
        """Bytes that weights and cache may take where they are computed with; None: what there is."""
        settings = self.settings
        if (budget := budget_on(device, settings)) is not None:
            return budget - taken
        if settings.memory_budget is None:
            return None
        return SHARE_OF_GPU * free_memory(device)  # other models have theirs

    def _fits_whole(self, budget: float, device: torch.device) -> bool:
        """Weights and the cache of a sequence. Raises UserError where not even a part of the layers fits."""
        if not check_budget(self.source, self.settings.dtype, budget, device):
            return False
        needed, memory = needed_bytes(self.source, self.settings.dtype), self.settings.memory_budget
        if device.type == "cuda" and memory is not None and memory_in_use() + needed > memory:
            return False  # for it is read whole before it goes to the GPU
        tight = budget < needed + self._row_bytes(device)
        return not tight or _least(self.source, self.settings.dtype, device) > budget

    def _read_layer_by_layer(self, device: torch.device, budget: float) -> Engine:
        """With layers on disk, which takes seconds a token; a quarter of the memory at most is for the cache."""
        settings = self.settings
        if settings.compile:
            raise UserError(f"{self.name} does not fit into its budget, and with layers on disk it is not compiled")
        capacity = capacity_of(load_config(self.source.source))
        n_row = max(1, min(settings.max_rows, int(0.25 * budget // self._row_bytes(device))))
        gpu = int(budget) if device.type == "cuda" else None
        limits = Limits(settings.memory_budget, gpu, settings.quantized_dir)  # the process, with what other models hold

        def say(plan: str) -> None:
            log.warning("%s does not fit, and stays on disk in part\n%s", self.name, plan)

        room = _room(n_row, capacity)
        model, tokenizer = load_within(
            self.source.source, device, settings.dtype, limits, lambda *_: room, say, self._track
        )
        return Engine(model, tokenizer, n_row, capacity, READ_AT_ONCE)

    @contextmanager
    def _track(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Progress of what is read or quantised."""
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            self._hear(done / total)

        yield advance

    def _row_bytes(self, device: torch.device) -> int:
        """Of the cache, for one sequence, as it will be."""
        config, size = load_config(self.source.source), 4 if device.type == "cpu" else 2
        return capacity_of(config) * cache_bytes_per_token(config, size)

    def _hear(self, share: float) -> None:
        self.progress = share

    async def count(self, prompt: str) -> int:
        """Tokens of a prompt as it will be read, its beginning lost where the settings say so. Raises NotReady."""
        most = self.settings.max_input_token_length
        tokens = await asyncio.to_thread(self.tokenizer.encode, self.end_of(prompt, most))
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
        cut = [prompt if isinstance(prompt, list) else self.end_of(prompt, most, asked) for prompt in prompts]
        ready = await asyncio.to_thread(lambda: [worker.prepare(prompt, settings) for prompt in cut])
        jobs = worker.start_all(ready, settings, prompt_logprobs)
        record = current.get()
        if record is not None:
            record.asked(self.name, jobs)
        return jobs

    def end_of(self, text: str, n_token: int | None, asked: int = 0) -> str:
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
        """Raises UserError for a name that means nothing, a device that is not there, a budget that is too small."""
        device = pick_device(settings.device)
        if settings.gpu_memory_budget is not None and device.type != "cuda":
            raise UserError(
                f"GPU_MEMORY_BUDGET={settings.gpu_memory_budget} needs a GPU and the device is {device}: leave it out"
            )
        budget = budget_on(device, settings)
        sources = [resolve(name, settings.checkpoint if i == 0 else None) for i, name in enumerate(settings.sources)]
        self.served: dict[str, Served] = {}
        for source in sources:
            if source.name in self.served:
                raise UserError(f"two models are called {source.name}: {source.source} and another; rename one folder")
            if budget is not None and source.link is None:  # else it would be fetched to be looked at
                check_budget(source, settings.dtype, budget, device)
            self.served[source.name] = Served(source, settings)

    async def load(self) -> None:
        """One after another, in order."""
        for served in self.served.values():
            await served.load(sum(other.held for other in self.served.values()))

    @property
    def settled(self) -> bool:
        """Whether each model is ready or has failed."""
        return all(served.state in ("ready", "failed") for served in self.served.values())

    @property
    def hopeless(self) -> str | None:
        """Why no model will ever answer, or None while one may."""
        failures = [served.failure for served in self.served.values()]
        return None if None in failures else failures[0]

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


def budget_on(device: torch.device, settings: ServerSettings) -> int | None:
    """What all models may take of the memory that they are computed in, as set."""
    return settings.gpu_memory_budget if device.type == "cuda" else settings.memory_budget


def check_budget(source: Source, dtype: str | None, budget: float, device: torch.device = CPU) -> bool:
    """Whether weights take no more than `budget` bytes.

    Raises UserError, with what would fit, where they take more and cannot stay on disk in part either.
    """
    if needed_bytes(source, dtype) <= budget:
        return True
    if device.type in ("cpu", "cuda") and _least(source, dtype, device) <= budget:
        return False
    fits = [other for other in ("bf16", "int8", "int4") if needed_bytes(source, other) <= budget]
    remedy = f"DTYPE={fits[0]} takes {say_bytes(needed_bytes(source, fits[0]))}" if fits else "no DTYPE makes it fit"
    takes = f"{source.name} takes {say_bytes(needed_bytes(source, dtype))} in {_kind(source, dtype)}"
    raise UserError(f"{takes}, and there are {say_bytes(budget)} of {_budget_name(device)}: {remedy}")


def _budget_name(device: torch.device) -> str:
    return "GPU_MEMORY_BUDGET" if device.type == "cuda" else "MEMORY_BUDGET"


def needed_bytes(source: Source, dtype: str | None) -> float:
    """Of all weights."""
    return parameter_count(load_config(source.source)) * BYTES[_kind(source, dtype)]


def _kind(source: Source, dtype: str | None) -> str:
    kind = dtype or dtype_name(saved_dtype(source.source))
    return kind if kind in BYTES else "fp32"


def _least(source: Source, dtype: str | None, device: torch.device) -> float:
    """Bytes with which a model runs that stays on disk in part, a sequence at a time."""
    if device.type == "cpu" and dtype in ("bf16", "fp16"):
        return math.inf
    try:
        found = find_layers(source.source)
        alike(found.config)
    except UserError:
        return math.inf
    computed = torch.float32 if device.type == "cpu" else found.dtype
    return least_bytes(found, computed, _room(1, capacity_of(found.config)))


def _room(n_row: int, capacity: int) -> Room:
    """For rows of a cache, and what a round of the engine reads and scores."""
    return Room(n_row * capacity, READ_AT_ONCE, READ_AT_ONCE, capacity)


def held_bytes(model: GPT) -> int:
    """Of weights and buffers."""
    layers = layers_of(model)
    own = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return own if layers is None else own + layers.held


def rows_that_fit(model: GPT, capacity: int, left: float, wanted: int) -> int:
    """How many sequences there is memory for. Raises UserError where there is none for a single one."""
    row = _row_bytes(model, capacity)
    if row > left:
        raise UserError(
            f"weights leave {say_bytes(max(left, 0))}, and the cache of one sequence of {capacity} tokens takes "
            f"{say_bytes(row)}: raise {_budget_name(model.device)}, or set DTYPE=int8"
        )
    return max(1, min(wanted, int(left // row)))


def _row_bytes(model: GPT, capacity: int) -> float:
    """Of the cache, for one sequence."""
    return capacity * cache_bytes_per_token(model.config, torch.finfo(model.dtype).bits // 8)
