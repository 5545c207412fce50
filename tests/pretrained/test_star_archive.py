"""The published archives' names and shapes, filled with random values, against GPT* written out by its definition."""

from __future__ import annotations

import pytest
import torch

import gptstar
from gptstar.data.tokenizer import TokenizerConfig, train_tokenizer
from gptstar.errors import UserError
from gptstar.model.positions import alibi_slopes

TOKENIZER = train_tokenizer(["a b c"], TokenizerConfig(vocab_size=260))
LINEARS = ("attn.key", "attn.query", "attn.value", "attn.fc_resid", "mlp.fc1", "mlp.fc_resid")


def archive(n_layer=3, d=24, n_head=3, d_head=8, f=40, vocab=101, learned=False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    a = n_head * d_head
    shapes = dict(zip(LINEARS, [(a, d), (a, d), (a, d), (d, a), (f, d), (d, f)], strict=True))
    state = {"wte.weight": torch.randn(vocab, d)}
    if learned:
        state["wpe.weight"] = torch.randn(32, d)
    for n in range(n_layer):
        for norm in ("ln1", "ln2") if learned else ("ln1",):
            state |= {f"blocks.{n}.{norm}.{kind}": torch.randn(d) for kind in ("weight", "bias")}
        for name, shape in shapes.items():
            state[f"blocks.{n}.{name}.weight"] = 0.3 * torch.randn(shape)
            state[f"blocks.{n}.{name}.bias"] = 0.3 * torch.randn(shape[0])
        if not learned:
            state[f"blocks.{n}.attn.slopes"] = torch.tensor(alibi_slopes(n_head)).view(1, n_head, 1, 1)
        state[f"blocks.{n}.attn.mask"] = torch.ones(32, 32).tril()
    state |= {"norm.weight": torch.randn(d), "norm.bias": torch.randn(d)}
    return state | {"lm_head.weight": state["wte.weight"]}


def by_definition(state, tokens, n_layer=3, n_head=3):
    """x + mlp(ln1(x)) + attn(ln1(x)); scores get -slope * (i - j) after the scaling; exact GELU."""
    state = {name: value.double() for name, value in state.items()}

    def linear(x, name):
        return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    x, T = state["wte.weight"][tokens], tokens.shape[1]
    back = torch.arange(T)[:, None] - torch.arange(T)[None, :]
    for n in range(n_layer):
        h, heads = norm(x, f"blocks.{n}.ln1"), []
        parts = [linear(h, f"blocks.{n}.attn.{p}").chunk(n_head, -1) for p in ("query", "key", "value")]
        for head, (q, k, v) in enumerate(zip(*parts, strict=True)):
            scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 - alibi_slopes(n_head)[head] * back
            heads.append(scores.masked_fill(back < 0, -torch.inf).softmax(-1) @ v)
        up = linear(h, f"blocks.{n}.mlp.fc1")
        up = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        x = x + linear(up, f"blocks.{n}.mlp.fc_resid") + linear(torch.cat(heads, -1), f"blocks.{n}.attn.fc_resid")
    return norm(x, "norm") @ state["wte.weight"].T


@pytest.mark.parametrize("complete", [False, True])
def test_both_kinds_load_and_are_gpt_star_by_definition(tmp_path, complete):
    state = archive()
    content = (
        {"state_dict": state, "optimizer": {}, "step": 51_000, "scaler": {}, "best_val": 3.1} if complete else state
    )
    torch.save(content, tmp_path / "127_weights.pth.tar")
    TOKENIZER.save(tmp_path / "tokenizer.json")
    model, tokenizer = gptstar.load(tmp_path / "127_weights.pth.tar")
    assert (model.config.block, model.config.position, model.config.n_head) == ("parallel_shared", "alibi", 3)
    tokens = torch.randint(0, 101, (2, 11))
    torch.testing.assert_close(model.double()(tokens), by_definition(state, tokens), rtol=1e-10, atol=1e-10)
    assert tokenizer.vocab_size == TOKENIZER.vocab_size


def test_the_reference_in_gpt2s_shape_is_sequential_with_learned_positions(tmp_path):
    torch.save(archive(d=128, n_head=2, d_head=64, learned=True), tmp_path / "354_weights.pth.tar")
    TOKENIZER.save(tmp_path / "tokenizer.json")
    config = gptstar.load(tmp_path / "354_weights.pth.tar")[0].config
    assert (config.block, config.position, config.n_head, config.context) == ("sequential", "learned", 2, 32)


def test_damage_and_strangers_are_named(tmp_path):
    path = tmp_path / "x.pth.tar"
    for change, words in (
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), "missing tensors: blocks.1.mlp.fc1.bias"),
        (lambda s: s.update({"extra": torch.ones(1)}), "unknown tensors: extra"),
        (lambda s: s["norm.bias"].fill_(float("nan")), "not finite tensors: norm.bias"),
        (lambda s: s.pop("wte.weight"), "is no GPT. checkpoint: it has no 'wte.weight'"),
        (
            lambda s: s.update({"wte.weight": torch.ones(3)}),
            "its tensors have impossible names or shapes",
        ),
        (
            lambda s: s.update({"blocks.x.y": torch.ones(3)}),
            "its tensors have impossible names or shapes",
        ),
        (lambda s: s["blocks.0.attn.slopes"].mul_(2), "slopes are not the ALiBi slopes of 3 heads"),
    ):
        state = archive()
        change(state)
        torch.save(state, path)
        with pytest.raises(UserError, match=words):
            gptstar.load(path)
    torch.save({name: value.half() for name, value in archive().items()}, path)
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert gptstar.load(path)[0].dtype == torch.float16
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        gptstar.load(path)
