"""Log-likelihoods of token sequences: the one place where they are asked of the model.

    tokens   0 1 2 3 4 5 6          what the model reads: context, and continuation without its last token
                   \ \ \ \
    targets         4 5 6 7         what its last outputs are asked for
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gptstar.evaluation.budget import pass_cost
from gptstar.evaluation.forward import hidden_states, logits_of
from gptstar.evaluation.planning import Batch, Chunk, plan_batches
from gptstar.model.cache import KeyValueCache
from gptstar.model.loss import CHUNK_ELEMENTS
from gptstar.model.transformer import GPT


@dataclass(frozen=True)
class Query:
    """How likely are `targets` at the last len(targets) outputs of a model that reads `tokens`?"""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def continuation(cls, context: Sequence[int], continuation: Sequence[int], longest: int) -> Query:
        """Of a continuation after a context, which is cut from the left where both exceed `longest` + 1 tokens.

        Raises ValueError for an empty context or continuation, and for a continuation of more than `longest` tokens.
        """
        if not context or not 0 < len(continuation) <= longest:
            raise ValueError(
                f"a context of {len(context)} and a continuation of {len(continuation)} tokens cannot be scored: "
                f"each needs at least one, and the continuation at most max_length={longest}"
            )
        return cls((*context, *continuation)[-(longest + 1) :][:-1], tuple(continuation))


@dataclass(frozen=True)
class Answer:
    """Nats, summed in float64, and whether each target was the most likely token."""

    log_likelihood: float
    greedy: bool


class Scorer:
    """Answers queries in an order that reads few tokens, in forward passes of at most `budget` tokens (or one row)."""

    def __init__(self, model: GPT, budget: int) -> None:
        self.model, self.budget = model, budget
        self.pass_cost = pass_cost(model.device)

    @torch.inference_mode()
    def answers(self, queries: Sequence[Query], finished: Collection[int] = ()) -> Iterator[list[tuple[int, Answer]]]:
        """Yields [(number of a query, its answer)] after each forward pass, every unfinished query once.

        Finished ones take their places in the plan, so that the others are computed with the same neighbours, to the
        same bits, as if nothing had been finished. Where a GPU's memory does not suffice the budget is halved.
        """
        asked: dict[tuple[int, ...], list[int]] = {}  # equal inputs are read once
        for number, query in enumerate(queries):
            asked.setdefault(query.tokens, []).append(number)
        sequences, numbers = list(asked), list(asked.values())
        done = set(finished)
        while len(done) < len(queries):
            try:
                for batch in plan_batches(sequences, self.budget, self.pass_cost):
                    chunks = [c for c in batch.chunks if not all(done.issuperset(numbers[m]) for _, m in c.rows)]
                    for outputs in read_batch(self.model, sequences, replace(batch, chunks=chunks)):
                        answers = _score(self.model, outputs, numbers, queries)
                        yield [(number, answer) for number, answer in answers if number not in done]
                        done.update(number for number, _ in answers)
            except torch.OutOfMemoryError:
                if self.budget == 1:
                    raise
                self.budget //= 2


def _score(model: GPT, outputs: Outputs, asked: list[list[int]], queries: Sequence[Query]) -> list[tuple[int, Answer]]:
    """The answers that a chunk's outputs hold; asked: the queries of each sequence."""
    numbers: list[int] = []
    spans: list[tuple[int, int, int]] = []
    targets: list[int] = []
    for row, (_, member) in enumerate(outputs.chunk.rows):
        for number in asked[member]:
            query = queries[number]
            numbers.append(number)
            spans.append((row, len(query.tokens) - len(query.targets), len(query.tokens)))
            targets += query.targets
    scores, greedy = token_scores(model, outputs.select(spans), targets)
    starts = np.cumsum([0, *(end - start for _, start, end in spans[:-1])])
    sums, all_greedy = np.add.reduceat(scores, starts), np.logical_and.reduceat(greedy, starts)
    return [(n, Answer(float(total), bool(best))) for n, total, best in zip(numbers, sums, all_greedy, strict=True)]


@dataclass(frozen=True)
class Outputs:
    """Final hidden states of a chunk's rows: their first `prefix` positions by head, the others by row."""

    chunk: Chunk
    prefix: int
    heads_GPC: Tensor | None
    rows_RSC: Tensor | None

    def select(self, spans: list[tuple[int, int, int]]) -> Tensor:
        """(N, C), the positions start ... end - 1 of each (row, start, end), one span after the other."""
        parts: list[Tensor] = []
        for row, start, end in spans:
            head, middle = self.chunk.rows[row][0], min(max(start, self.prefix), end)
            if start < middle and self.heads_GPC is not None:
                parts.append(self.heads_GPC[head, start:middle])
            if middle < end and self.rows_RSC is not None:
                parts.append(self.rows_RSC[row, middle - self.prefix : end - self.prefix])
        return torch.cat(parts)


def read_batch(model: GPT, sequences: Sequence[tuple[int, ...]], batch: Batch) -> Iterator[Outputs]:
    """Reads a batch's shared beginnings, then its chunks; rows of unequal length are padded on the right.

    No token sees what stands to its right, so padding changes nothing.
    """
    device = model.device
    heads_GPC, cache = None, None
    if batch.prefix and batch.chunks:
        heads = torch.tensor([sequences[i][: batch.prefix] for i in batch.heads], device=device)
        cache = model.new_cache(len(heads), batch.prefix)
        heads_GPC = hidden_states(model, heads, cache)
    for chunk in batch.chunks:
        rows_RSC = None
        if chunk.width:
            rows = [sequences[member][batch.prefix :] for _, member in chunk.rows]
            padded = torch.tensor([row + (0,) * (chunk.width - len(row)) for row in rows], device=device)
            owners = torch.tensor([head for head, _ in chunk.rows], device=device)
            rows_RSC = hidden_states(model, padded, None if cache is None else SharedCache(cache, owners))
        yield Outputs(chunk, batch.prefix, heads_GPC, rows_RSC)


class SharedCache(KeyValueCache):
    """Continues other caches' rows, row `owners[r]` in row r; good for one forward pass.

    Each layer's keys are put together when the layer asks for them, so that the copies of all layers never exist at
    once.
    """

    def __init__(self, shared: KeyValueCache, owners_R: Tensor) -> None:
        self.shared, self.owners_R = shared, owners_R
        self.length, self.dropped = shared.length, shared.dropped

    def make_room(self, n_token: int) -> bool:
        """Nothing is stored here."""
        return True

    def append(self, layer: int, name: str, x_BKTD: Tensor) -> Tensor:
        held = self.length - (self.first(self.shared.windows[layer]) if self.shared.windows else 0)
        held_BKSD = self.shared.kept[name][layer][:, :, :held][self.owners_R]
        return torch.cat((held_BKSD, x_BKTD), 2)


def token_scores(model: GPT, hidden_NC: Tensor, targets: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each target's log-probability (float64) and whether it is the most likely token, from final hidden states.

    The softmax is in fp32 whatever the model's dtype is. Logits exist for a few hundred positions at a time.
    """
    target_N1 = torch.tensor(targets, device=hidden_NC.device)[:, None]
    n_chunk = max(1, -(-len(hidden_NC) * model.config.vocab_size // CHUNK_ELEMENTS))
    scores, greedy = [], []
    for h_NC, t_N1 in zip(hidden_NC.chunk(n_chunk), target_N1.chunk(n_chunk), strict=True):
        logits_NV = logits_of(model, h_NC)
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        own_N1, (most_N1, best_N1) = logits_NV.gather(1, t_N1), logits_NV.max(1, keepdim=True)
        # In place: what is written to memory is what this costs beside the matmul.
        scores.append(own_N1 - most_N1 - logits_NV.sub_(most_N1).exp_().sum(1, keepdim=True).log())
        greedy.append(best_N1 == t_N1)
    return torch.cat(scores)[:, 0].double().cpu().numpy(), torch.cat(greedy)[:, 0].cpu().numpy()
