"""Layers that see a window keep little more than it, and nobody sees the difference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.model.cache import KeyValueCache
from gptstar.model.transformer import GPT
from support import tiny_model


@pytest.fixture(autouse=True)
def little_slack(monkeypatch):
    monkeypatch.setattr(KeyValueCache, "slack", 5)


def model_of(position="alibi", **changes):
    torch.manual_seed(0)
    shape = dict(windows=[0, 4, 7], n_layer=4, context=80, init_std=0.3, n_head=4, position=position)
    return GPT(tiny_model(**{**shape, **changes})).double().eval()


MODELS = {position: model_of(position) for position in ("alibi", "rotary", "learned", "relative")}
MODELS["shared heads"] = model_of(n_kv_head=2, block="sequential")
MODELS["soft-cap"] = model_of(score_softcap=4.0)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 14), min_size=1, max_size=9), padding=st.lists(st.integers(0, 6), min_size=2))
@torch.no_grad()
def test_however_tokens_come_logits_are_those_of_a_whole_cache(name, sizes, padding):
    model, n = MODELS[name], sum(sizes)
    tokens = torch.randint(0, 300, (2, n), generator=torch.Generator().manual_seed(n))
    padding_B = torch.tensor(padding[:2]).clamp(max=n - 1)
    for pad in (None, padding_B):
        small, whole = model.new_cache(2, 80), model.new_cache(2, 80, whole=True)
        for piece in tokens.split(sizes, 1):
            expected, found = (model(piece, cache=cache, padding_B=pad) for cache in (whole, small))
            real = torch.ones_like(piece, dtype=torch.bool)
            if pad is not None:
                real = torch.arange(small.length - piece.shape[1], small.length) >= pad[:, None]
            torch.testing.assert_close(found[real], expected[real])
        assert small.length == whole.length == n


def test_how_much_is_kept():
    cache = MODELS["alibi"].new_cache(1, 80)
    assert [x.shape[2] for x in cache.kept["key"]] == [80, 9, 12, 80]
    assert [x.shape[2] for x in MODELS["alibi"].new_cache(1, 80, whole=True).kept["key"]] == [80] * 4
    assert [x.shape[2] for x in MODELS["alibi"].new_cache(1, 10).kept["key"]] == [10, 9, 10, 10]
    assert [x.shape[2] for x in model_of(windows=[], block="gmlp", position="none").new_cache(1, 80).kept["gate"]] == [
        80
    ] * 4


@settings(max_examples=25)
@given(read=st.integers(1, 60), back=st.integers(0, 59), more=st.integers(1, 5))
@torch.no_grad()
def test_one_may_go_back_where_it_says_so(read, back, more):
    model = MODELS["rotary"]
    tokens = torch.randint(0, 300, (1, read + more), generator=torch.Generator().manual_seed(read))
    cache, length = model.new_cache(1, 80), max(0, read - back)
    model(tokens[:, :read], cache=cache)
    assert cache.can_go_back(read)
    if not cache.can_go_back(length):
        assert read - length > 1
        return
    cache.length = length
    again = torch.randint(0, 300, (1, more))
    expected = model(torch.cat((tokens[:, :length], again), 1))[:, length:]
    torch.testing.assert_close(model(again, cache=cache), expected)


@torch.no_grad()
def test_rows_may_be_exchanged():
    model = MODELS["alibi"]
    tokens = torch.randint(0, 300, (2, 30))
    cache = model.new_cache(2, 80)
    model(tokens, cache=cache)
    rows = torch.tensor([1, 1, 0])
    cache.reorder(rows)
    again = torch.randint(0, 300, (3, 2))
    expected = model(torch.cat((tokens[rows], again), 1))[:, 30:]
    torch.testing.assert_close(model(again, cache=cache), expected)


def test_moving_tokens_up_is_seldom():
    cache = model_of(windows=[4]).new_cache(1, 80)
    moved = []
    for length in range(60):
        cache.length, before = length, cache.dropped[4]
        assert cache.make_room(1)
        moved.append(cache.dropped[4] > before)
    assert 60 / 6 < 2 + sum(moved) < 60 / 2 and cache.dropped[4] <= 59 - 3
