"""One more token of every row: the step that decoding repeats, as fast as the device allows.

A step reads every weight once and does little with it, so the limit is the memory's speed. What stands between is the
time to launch some hundred small operations. `compiled=True` lets torch.compile join them; on a CPU a matrix times one
vector becomes a loop of its own there, which reads faster than the libraries' matrix products do. On a GPU the launches
are recorded once in a CUDA graph and played back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.overrides import TorchFunctionMode

from gptstar.cpu import matvec
from gptstar.cpu.fast_linear import fast_linear
from gptstar.cpu.row_attention import RowAttention
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import UserError
from gptstar.generation.draft import Draft
from gptstar.model.cache import KeyValueCache
from gptstar.model.transformer import GPT
from gptstar.offload.stream import READ_AT_ONCE, layers_of

PIECE, GPU_PIECE = 128, 512  # tokens of a prompt in a pass; in an `Engine`, where others wait, PIECE everywhere
PAGE = 64  # keys are shown to a compiled step in multiples of it, so that shapes seldom change
GPU_PAGE = 256  # each is a recording of its own there

OPTIONS: dict[str, Any] = {
    "guard_filter_fn": torch.compiler.keep_tensor_guards_unsafe,  # a model's weights do not change while it is read
    # What a matrix is multiplied with is computed once, not again with each of the matrix's rows.
    "realize_opcount_threshold": 0,
    "realize_reads_threshold": 0,
}


class Decoder:
    """Logits after one more token of each row, over a cache that `GPT.new_cache` or `new_rows_cache` made.

    draft: what guesses tokens ahead where one sequence is decoded (`speculation.py`); None: nothing.
    compiled: takes a while the first time (torch keeps what it made on disk), and then less time a token. The numbers
    are the same but for rounding.
    piece: tokens of a prompt that are read at a time. What a layer makes of them takes memory, and more are hardly
    faster, but where a pass is expensive in itself (a model read from disk, `offload`).
    shared: whether a pass is, so that several sequences should go through it together (`read_many`).
    """

    def __init__(self, model: GPT, compiled: bool = False, draft: Draft | None = None) -> None:
        self.model, self.compiled, self.draft = model, compiled, draft
        self.shared = layers_of(model) is not None
        if compiled and self.shared:
            raise UserError("a model under a memory budget cannot be compiled: leave compile out")
        self.piece = READ_AT_ONCE if self.shared else GPU_PIECE if model.device.type == "cuda" else PIECE
        model.row_attention = RowAttention
        self._step = _compiled(model) if compiled else _step_of(model)
        self.recorded = model.device.type == "cuda" and not self.shared
        self._pool: Any = None
        self._recordings: WeakKeyDictionary[KeyValueCache, dict[tuple[int, int], Recording]] = WeakKeyDictionary()

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """For so many rows and tokens; a step of fixed shapes needs a place for every token in every layer."""
        return self.model.new_cache(batch, capacity, whole=self.compiled or self.recorded)

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises UserError for a tokenizer with more tokens than the model has: it belongs to another one."""
        if tokenizer.vocab_size > self.model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model {self.model.config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )

    @torch.inference_mode()
    def __call__(self, token_B: Tensor, cache: KeyValueCache) -> Tensor:
        """(B, V) scores of what follows token_B, int64 (B,), which the cache has then seen."""
        if not (self.compiled or self.recorded) or cache.dropped:
            with fast_linear(self.model.device, self.model.dtype):
                return self.model.logits(self.model.hidden(token_B[:, None], cache)[:, -1])
        if cache.n_key(1) > cache.capacity:
            raise ValueError(f"the cache holds {cache.capacity} tokens, {cache.n_key(1)} are needed: make it larger")
        slot_B1 = cache.slots(1, token_B.device).reshape(-1, 1).expand(len(token_B), 1)
        page = GPU_PAGE if self.recorded else PAGE
        n_key = min(-(-cache.n_key(1) // page) * page, cache.capacity)
        step = self._recorded(len(token_B), n_key, cache) if self.recorded else partial(self._run, kept=cache.kept)
        logits_BV = step(token_B, slot_B1, n_key=n_key)
        cache.advance(1)
        return logits_BV

    def _recorded(self, n_row: int, n_key: int, cache: KeyValueCache) -> Recording:
        """The step in a CUDA graph, which holds for a number of rows, of keys, and the tensors of one cache."""
        made = self._recordings.setdefault(cache, {})
        if (n_row, n_key) not in made:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()  # one memory for all of them: they never run together
            made[n_row, n_key] = Recording(self._run, n_row, n_key, cache.kept, self.model.device, self._pool)
        return made[n_row, n_key]

    @torch.inference_mode()
    def read(self, tokens_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """(B, V) scores of what follows the last of tokens (B, T), which continue what the cache has seen."""
        with fast_linear(self.model.device, self.model.dtype):
            for piece_BT in tokens_BT.split(self.piece, 1):
                hidden_BTC = self.model.hidden(piece_BT, cache)
            return self.model.logits(hidden_BTC[:, -1])

    @torch.inference_mode()
    def extend(self, tokens: list[int], cache: KeyValueCache) -> Tensor:
        """(T, V) scores of what follows each of T tokens of one row, which continue what the cache has seen."""
        with fast_linear(self.model.device, self.model.dtype):
            return self.model.logits(self.model.hidden(torch.tensor([tokens], device=self.model.device), cache)[0])

    @torch.inference_mode()
    def read_many(self, parts: list[tuple[Tensor, KeyValueCache]]) -> list[Tensor]:
        """(B, T, C) hidden states of each of several (tokens (B, T), cache), in one pass over the weights."""
        with fast_linear(self.model.device, self.model.dtype):
            return self.model.hidden_of_many(parts)

    def _run(self, token_B: Tensor, slot_B1: Tensor, kept: dict[str, list[Tensor]], n_key: int) -> Tensor:
        keys_S = torch.arange(n_key, device=token_B.device)
        if not self.compiled:
            return self._step(token_B, slot_B1, keys_S, kept)
        _may_vary(keys_S, 0)
        _may_vary(token_B, 0)
        _may_vary(slot_B1, 0)
        if not hasattr(next(iter(kept.values()))[-1], "_dynamo_dynamic_indices"):  # a cache that is new
            for whole in chain(*kept.values()):
                _may_vary(whole, 0, 2)
                torch._dynamo.mark_static(whole, 1)
                torch._dynamo.mark_static(whole, 3)
        return self._step(token_B, slot_B1, keys_S, kept)


Step = Callable[[Tensor, Tensor, Tensor, dict[str, list[Tensor]]], Tensor]


def _step_of(model: GPT) -> Step:
    """(token_B, slot_B1, keys_S, the cache's tensors) -> logits: shapes say what changes, and no state is left."""

    def step(token_B: Tensor, slot_B1: Tensor, keys_S: Tensor, kept: dict[str, list[Tensor]]) -> Tensor:
        with _Products():
            cache = StepCache(kept, slot_B1, keys_S.shape[0])
            return model.logits(model.hidden(token_B[:, None], cache)[:, -1])

    return step


def _compiled(model: GPT) -> Step:
    """Apart from the sizes of what it is given, nothing is checked when it is called."""
    step = cast(FunctionType, _step_of(model))
    # What is compiled is kept with a function's code, so two models must not share the code.
    own = FunctionType(step.__code__.replace(), step.__globals__, "step", closure=step.__closure__)
    return torch.compile(own, fullgraph=True, options=OPTIONS)


class Recording:
    """A step as a CUDA graph: recorded once, then played back with other numbers in the same places."""

    def __init__(
        self,
        run: Callable[..., Tensor],
        n_row: int,
        n_key: int,
        kept: dict[str, list[Tensor]],
        device: torch.device,
        pool: Any,
    ) -> None:
        self.token_B = torch.zeros(n_row, dtype=torch.int64, device=device)
        # What is read for practice is written to the last place, which no row has reached yet.
        self.slot_B1 = torch.full((n_row, 1), n_key - 1, device=device)
        self.graph = torch.cuda.CUDAGraph()
        apart = torch.cuda.Stream()
        apart.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(apart):
            for _ in range(3):  # libraries choose their ways and reserve memory
                run(self.token_B, self.slot_B1, kept, n_key)
        torch.cuda.current_stream().wait_stream(apart)
        with torch.cuda.graph(self.graph, pool=pool):
            self.logits_BV = run(self.token_B, self.slot_B1, kept, n_key)

    def __call__(self, token_B: Tensor, slot_B1: Tensor, n_key: int) -> Tensor:
        self.token_B.copy_(token_B)
        self.slot_B1.copy_(slot_B1)
        self.graph.replay()
        return self.logits_BV.clone()


class StepCache(KeyValueCache):
    """Another cache's tensors for one token a row, whose places are in a tensor and whose keys are a fixed number.

    What stands beyond a row's place is not seen, so it may be anything finite.
    """

    def __init__(self, kept: dict[str, list[Tensor]], slot_B1: Tensor, n_key: int) -> None:
        self.kept, self.slot_B1, self.shown = kept, slot_B1, n_key
        self.row_B1 = torch.arange(len(slot_B1), device=slot_B1.device)[:, None]

    def n_key(self, n_token: int) -> int:
        return self.shown

    def slots(self, n_token: int, device: torch.device) -> Tensor:
        return self.slot_B1

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        whole = self.kept[name][layer]
        whole[self.row_B1, :, self.slot_B1] = x_BKTD.transpose(1, 2)
        return whole[: len(self.slot_B1), :, : self.shown]

    def advance(self, n_token: int) -> None:
        """The cache whose tensors these are counts for itself."""


class _Products(TorchFunctionMode):
    """F.linear of few rows, in a form that torch.compile makes fast code of."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (_product if func is F.linear else func)(*args, **(kwargs or {}))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if matvec.takes(x, weight, bias):
        return torch.ops.gptstar.matvec(x, weight, bias)
    if x.numel() == x.shape[-1]:  # a loop over the rows of the matrix, each read once
        wide = torch.promote_types(x.dtype, torch.float32)
        y = (x.flatten().to(wide) * weight.to(wide)).sum(-1).to(x.dtype).view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return _fast_linear(x, weight, bias)


@library.custom_op("gptstar::fast_linear", mutates_args=())
def _fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.compile calls it as it is: its own ways to oneDNN take no batch of changing size."""
    with fast_linear(x.device, x.dtype):
        return F.linear(x, weight, bias)


_fast_linear.register_fake(matvec.empty_product)


def _may_vary(tensor: Tensor, *dims: int) -> None:
    for dim in dims:
        if tensor.shape[dim] > 1:  # torch.compile makes code of its own for 1
            torch._dynamo.mark_dynamic(tensor, dim)
