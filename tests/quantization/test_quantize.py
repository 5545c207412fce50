"""Quantised models: every preset's shape, near the exact one, the same in any batch, filled as they are read."""

from __future__ import annotations

import pytest
import torch

import gptstar
from gptstar.errors import UserError
from gptstar.model.config import ModelConfig
from gptstar.quantization.layers import QuantizedFused, QuantizedLinear, QuantizedTable
from gptstar.quantization.quantize import prepare_quantized, quantization_of, quantize
from support import tiny_model, tiny_tokenizer

SHAPE = dict(vocab_size=400, n_layer=2, d_model=64, n_head=4, d_head=32, d_ff=128, context=48)
SHAPES = {
    "star": dict(block="parallel_shared", position="alibi"),
    "gpt2": dict(block="sequential", position="learned"),
    "neox": dict(block="parallel", position="rotary", tie_head=False),
    "llama": dict(
        block="sequential",
        norm="rmsnorm",
        activation="swiglu",
        position="rotary",
        query_key_value_bias=False,
        n_kv_head=2,
    ),
    "adapted": dict(block="parallel_shared", position="alibi", adapter_width=8),
    "shortcuts": dict(block="parallel_shared", position="alibi", value_residual=True, embedding_shortcut=True),
    "gmlp": dict(block="gmlp", position="none"),
}


def model(kind, **changes):
    torch.manual_seed(0)
    return gptstar.GPT(ModelConfig(name=kind, **{**SHAPE, **SHAPES[kind], **changes})).eval()


TOKENS = torch.arange(80).view(2, 40) * 7 % 400


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("dtype, most", [("int8", 0.02), ("int4", 0.2)])
@torch.no_grad()
def test_logits_are_near(kind, dtype, most):
    exact = model(kind)
    rounded = quantize(exact, dtype)
    expected, found = exact(TOKENS), rounded(TOKENS)
    assert 0 < (found - expected).norm() < most * expected.norm()
    assert quantization_of(rounded) == dtype and quantization_of(exact) is None


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_a_row_is_the_same_in_any_batch(kind):
    rounded = quantize(model(kind), "int8")
    torch.testing.assert_close(rounded(TOKENS)[1:], rounded(TOKENS[1:]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_large_matrix_is_quantised_and_nothing_else():
    rounded = quantize(model("gpt2"), "int8")
    kinds = [type(module) for module in rounded.modules()]
    assert kinds.count(QuantizedTable) == 1 and kinds.count(QuantizedFused) == 4 and kinds.count(QuantizedLinear) == 4
    assert all(p.ndim < 2 or p.shape == (48, 64) for p in rounded.parameters())  # norms, biases, positions
    assert all(p.requires_grad is False or p.ndim for p in rounded.parameters())


@torch.no_grad()
def test_the_cross_entropy_is_near_too():
    exact = model("star")
    assert quantize(exact, "int8")(TOKENS, TOKENS).item() == pytest.approx(exact(TOKENS, TOKENS).item(), rel=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_loading_quantises_as_a_copy_would(tmp_path, dtype):
    exact = gptstar.GPT(tiny_model(vocab_size=400, d_model=64, n_head=2, d_head=32, d_ff=128)).eval()
    tokenizer = tiny_tokenizer()
    gptstar.export(exact, tokenizer, tmp_path / "model")
    loaded, _ = gptstar.load(tmp_path / "model", dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS), quantize(exact, dtype)(TOKENS))
    with pytest.raises(UserError, match="cannot be saved or exported"):
        gptstar.export(loaded, tokenizer, tmp_path / "again")


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="int3"):
        prepare_quantized(model("star"), "int3")
    with pytest.raises(UserError, match=r"dtype='int3'.*int8, int4"):
        gptstar.load(tmp_path, dtype="int3")


def test_text_is_generated():
    rounded = quantize(model("star"), "int8")
    text = gptstar.generate(rounded, tiny_tokenizer(), "abc", max_new_tokens=20, temperature=0)
    assert len(text) > 3


@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.no_grad()
def test_a_model_may_be_cast_and_its_weights_keep_their_scales(kind):
    exact = model("star")
    rounded = quantize(exact, kind)
    expected = rounded(TOKENS)
    for cast in (rounded.double(), rounded.float()):
        torch.testing.assert_close(cast(TOKENS).float(), expected, rtol=1e-4, atol=1e-4)
    assert rounded.bfloat16()(TOKENS).dtype == torch.bfloat16
    with pytest.raises(UserError, match="quantised already"):
        quantize(rounded, kind)
