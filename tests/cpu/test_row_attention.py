"""Attention of one query a row equals the definition, whatever the rows have, and decoding goes through it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.configuration import preset
from gptstar.cpu.row_attention import RowAttention, available
from gptstar.generation.decoding import Decoder
from gptstar.model.kernels import Case, DenseAttention, View
from gptstar.model.positions import SCHEMES
from gptstar.model.transformer import GPT

pytestmark = pytest.mark.skipif(not available(), reason="no C++ compiler")


def look(slot, n_key, dtype=torch.float64, position="none", window=0, **model) -> View:
    config = preset("star_3m", position=position, n_head=6, d_head=16, context=64, vocab_size=32, **model)
    window = window if window < n_key else 0
    case = Case(config, SCHEMES[position](config), window, "cpu", n_key, whole=False, gradients=False, rows=True)
    return View(case, torch.tensor(slot)[:, None], dtype)


@settings(max_examples=150, deadline=None)
@given(
    slot=st.lists(st.integers(0, 200), min_size=1, max_size=5),
    room=st.integers(1, 60),
    d_head=st.sampled_from([1, 8, 16, 33, 64, 192]),
    n_key_value=st.sampled_from([1, 2, 6]),
    position=st.sampled_from(["none", "alibi"]),
    window=st.sampled_from([0, 1, 7, 150]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 9),
)
@torch.inference_mode()
def test_it_equals_the_definition(slot, room, d_head, n_key_value, position, window, softcap, seed):
    n_key = max(slot) + room
    torch.manual_seed(seed)
    q = torch.randn(len(slot), 1, 6, d_head).transpose(1, 2)
    k, v = (torch.randn(len(slot) + 1, n_key_value, n_key + 9, d_head)[: len(slot), :, :n_key] for _ in range(2))
    k[:, :, 0] += torch.linspace(-40, 40, d_head)  # large scores
    views = (look(slot, n_key, dtype, position, window, score_softcap=softcap) for dtype in (q.dtype, torch.float64))
    actual, expected = (
        RowAttention(next(views))(q, k, v),
        DenseAttention(next(views))(q.double(), k.double(), v.double()),
    )
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_what_is_no_number_stays_none_in_its_row_and_what_lies_beyond_a_row_does_not_matter():
    q, k, v = (torch.randn(3, 6, n, 16) for n in (1, 40, 40))
    attend = RowAttention(look([9, 20, 39], 40))
    clean = attend(q, k, v)
    k[0, :, 10:], v[0, :, 10:], k[1, :, 3] = torch.nan, torch.nan, torch.nan
    seen = attend(q, k, v)
    assert torch.equal(seen[0], clean[0]) and torch.equal(seen[2], clean[2]) and seen[1].isnan().all()


def test_where_it_cannot_be_used_the_reason_is_told():
    def case(position="none", **changes):
        view = look([3], 4, position=position)
        return Case(**{**vars(view.case), **changes})

    assert RowAttention.obstacle(case()) is None
    assert "one fp32 query in each row" in RowAttention.obstacle(case(rows=False))
    assert "on a CPU" in RowAttention.obstacle(case(device="cuda"))
    assert "gradients" in RowAttention.obstacle(case(gradients=True))
    assert "table" in RowAttention.obstacle(case("relative"))


@pytest.mark.parametrize(
    "model", [{}, {"position": "rotary"}, {"windows": [0, 5]}, {"n_kv_head": 1}, {"qk_norm": True}]
)
@torch.inference_mode()
def test_rows_are_decoded_through_it(model, monkeypatch):
    """With the logits that each row has by itself."""
    torch.manual_seed(0)
    gpt = GPT(preset("star_3m", n_layer=2, d_model=64, d_head=16, n_head=4, context=64, vocab_size=50, **model)).eval()
    chosen = []
    plain = RowAttention.__call__
    monkeypatch.setattr(RowAttention, "__call__", lambda self, *qkv: chosen.append(1) or plain(self, *qkv))
    prompts = [torch.randint(50, (1, n)) for n in (3, 30, 11)]
    cache = gpt.new_rows_cache(4, 40)
    for row, prompt in enumerate(prompts):
        gpt(prompt, cache=cache.row(row))
        cache.lengths[row] = prompt.shape[1]
    cache.n_active = 3
    token_B = torch.tensor([1, 2, 3])
    assert not chosen
    together = Decoder(gpt)(token_B, cache)
    assert len(chosen) == 2
    alone = [gpt(torch.cat((p, t.view(1, 1)), 1))[:, -1] for p, t in zip(prompts, token_B, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)
