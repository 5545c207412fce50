"""Many prompts continued at once: the one place where evaluation calls the model to write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from gptstar.evaluation.budget import tokens_that_fit
from gptstar.evaluation.forward import hidden_states, logits_of
from gptstar.model.transformer import GPT

MAX_ROWS = {"cpu": 32, "cuda": 256}  # beyond it a step takes longer with every row

# Logits (R, V) and [(number of the prompt, place among its new tokens)] -> a token a row. A place below 0 is still in
# the prompt: its token does not count.
Choice = Callable[[Tensor, list[tuple[int, int]]], list[int]]


@torch.inference_mode()
def complete(
    model: GPT,
    prompts: Sequence[list[int]],
    n_new: int,
    choose: Choice,
    ends: Callable[[list[int]], bool],
    finished: Collection[int] = (),
) -> Iterator[dict[int, list[int]]]:
    """Yields {number of a prompt: its new tokens} for one batch of prompts after the other, the longest first.

    A row ends after n_new tokens, or once `ends(new tokens)` holds. Prompts are not empty. Batches of which all
    prompts are finished are left out.
    """
    device = model.device
    memory = tokens_that_fit(model)
    todo = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while todo:
        longest = len(prompts[todo[0]])
        rows = max(1, min(MAX_ROWS.get(device.type, MAX_ROWS["cpu"]), memory // (longest + n_new)))
        # Steps in which only the longer prompts are still being read are few.
        batch = [i for i in todo[:rows] if longest - len(prompts[i]) <= max(8, n_new // 4)]
        todo = todo[len(batch) :]
        if not all(i in finished for i in batch):
            yield _complete_batch(model, {i: prompts[i] for i in batch}, n_new, choose, ends)


def _complete_batch(
    model: GPT, prompts: dict[int, list[int]], n_new: int, choose: Choice, ends: Callable[[list[int]], bool]
) -> dict[int, list[int]]:
    """All rows stand at the same position: a longer prompt is still read where a shorter one is already continued.

    So no row is padded, and none sees anything but its own tokens.
    """
    device = model.device
    rows = list(prompts)
    position = min(len(prompt) for prompt in prompts.values())
    capacity = max(len(prompt) for prompt in prompts.values()) + n_new
    cache = model.new_cache(len(rows), capacity)
    new: dict[int, list[int]] = {row: [] for row in rows}
    done: set[int] = set()
    current = [prompts[row][:position] for row in rows]
    while True:
        logits_RV = logits_of(model, hidden_states(model, torch.tensor(current, device=device), cache)[:, -1])
        places = [(row, position - len(prompts[row])) for row in rows]
        current = [[token] for token in choose(logits_RV, places)]
        for place, row in enumerate(rows):
            if position < len(prompts[row]):
                current[place] = [prompts[row][position]]
            elif row not in done:
                new[row] += current[place]
                if len(new[row]) == n_new or ends(new[row]):
                    done.add(row)
        position += 1
        left = [place for place, row in enumerate(rows) if row not in done]
        if not left:
            return new
        if 2 * len(left) <= len(rows):  # finished rows are worth carrying along only while they are few
            rows, current = [rows[place] for place in left], [current[place] for place in left]
            cache.reorder(torch.tensor(left, device=device))
