"""Rows of unequal prompts, written together: each as if it were alone."""

import pytest
import torch

import gptstar
from gptstar.evaluation import budget
from gptstar.evaluation.completion import complete
from support import tiny_model

torch.manual_seed(0)
MODEL = gptstar.GPT(tiny_model(context=96, position="learned", init_std=0.3)).double().eval()
PROMPTS = [[7] * 3, list(range(20)), list(range(22)), [9, 8, 7, 6], list(range(5, 31)), [1]]


def greedy(logits, places):
    return logits.argmax(-1).tolist()


def alone(prompt, n_new, ends):
    tokens = list(prompt)
    with torch.no_grad():
        while len(tokens) < len(prompt) + n_new and not (tokens[len(prompt) :] and ends(tokens[len(prompt) :])):
            tokens.append(int(MODEL(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("n_new", [1, 12, 60])
def test_each_row_is_what_it_would_be_alone(n_new):
    def ends(new):
        return new[-1] % 7 == 3

    batches = list(complete(MODEL, PROMPTS, n_new, greedy, ends))
    found = {n: new for batch in batches for n, new in batch.items()}
    assert found == {n: alone(prompt, n_new, ends) for n, prompt in enumerate(PROMPTS)}
    assert len({len(new) for new in found.values()}) > 1 or n_new == 1  # some rows ended early


def test_memory_decides_how_many_rows_are_written_together(monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda device: 0)
    assert [len(batch) for batch in complete(MODEL, PROMPTS, 5, greedy, lambda new: False)] == [1] * 6


def test_finished_batches_are_left_out():
    everything = list(complete(MODEL, PROMPTS, 4, greedy, lambda new: False))
    first = set(everything[0])
    assert list(complete(MODEL, PROMPTS, 4, greedy, lambda new: False, first)) == everything[1:]


def test_choices_are_told_prompt_and_place():
    seen = []

    def note(logits, places):
        seen.append(places)
        return greedy(logits, places)

    list(complete(MODEL, [[1, 2, 3], [4, 5]], 2, note, lambda new: False))
    assert seen == [[(0, -1), (1, 0)], [(0, 0), (1, 1)], [(0, 1)]]
