import pytest
import torch
import torch.nn.functional as F

from gptstar.configuration import preset
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.model.transformer import GPT
from support import tiny_model

GMLP = dict(block="gmlp", position="none")
AMLP = dict(block="amlp", position="none", n_head=1, d_head=8)


def build(changes) -> GPT:
    torch.manual_seed(0)
    model = GPT(tiny_model(n_layer=1, init_std=0.3, **changes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("changes", [GMLP, AMLP], ids=["gmlp", "amlp"])
def test_logits_equal_a_plain_loop_over_tokens(changes):
    model = build(changes)
    w = model.state_dict()
    tokens = torch.randint(0, 300, (9,))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    x = [w["embedding.weight"][token] for token in tokens]
    read = [norm(row, "blocks.0.norm") for row in x]
    up = [F.gelu(linear(row, "blocks.0.feedforward.up")) for row in read]
    gated = [norm(row, "blocks.0.spatial_gate.norm") for row in up]
    written = []
    for t in range(len(tokens)):
        gate = w["blocks.0.spatial_gate.bias"][t].expand(48).clone()
        for s in range(t + 1):
            gate += w["blocks.0.spatial_gate.weight"][t, s] * gated[s]
        if changes is AMLP:
            query = linear(read[t], "blocks.0.attention.query")
            scores = [query @ linear(read[s], "blocks.0.attention.key") / 8**0.5 for s in range(t + 1)]
            shares = torch.stack(scores).softmax(0)
            seen = sum(share * linear(read[s], "blocks.0.attention.value") for s, share in enumerate(shares))
            gate = gate + linear(seen, "blocks.0.attention.output")
        written.append(norm(x[t] + linear(up[t] * gate, "blocks.0.feedforward.down"), "norm"))
    expected = torch.stack(written) @ w["embedding.weight"].T
    torch.testing.assert_close(model(tokens[None])[0], expected, rtol=1e-11, atol=1e-11)


def test_the_mixing_matrix_stays_triangular_under_training():
    torch.manual_seed(0)
    model = GPT(tiny_model(**GMLP))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    weight = model.blocks[0].spatial_gate.weight
    before = weight.detach().clone()
    for _ in range(5):
        tokens = torch.randint(0, 300, (4, 32))
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not weight.triu(1).any()
    assert (weight != before).tril().sum() == 32 * 33 // 2  # every entry at or below the diagonal learns


def test_it_starts_as_a_plain_feed_forward():
    model = GPT(tiny_model(**GMLP))
    x = torch.randn(1, 8, 48)
    sight = model._sights(torch.zeros(1, 8, 32), torch.arange(8), 8, None)[0]
    torch.testing.assert_close(model.blocks[0].spatial_gate(x, sight, None), torch.ones(1, 8, 48), rtol=0, atol=1e-4)


def test_more_tokens_than_the_matrix_has_rows_are_refused():
    model = GPT(tiny_model(**GMLP, context=6))
    assert model.longest == 6
    with pytest.raises(ValueError, match=r"7 tokens is longer than the 6 this model can read"):
        model(torch.zeros(1, 7, dtype=torch.int64))


def test_positions_that_nothing_would_read_are_refused():
    with pytest.raises(ValueError, match=r"model.position='alibi' has no effect with model.block='gmlp'"):
        GPT(tiny_model(block="gmlp", position="alibi"))


def test_flops_count_the_mixing_by_channels_not_by_parameters():
    config = preset("gmlp_3m")
    applied = parameter_count(config) - config.n_layer * config.context**2
    assert flops_per_token(config, 256) == 6 * applied + 3 * config.n_layer * 2 * config.d_ff * 256
