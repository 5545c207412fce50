"""Value residual and the embedding's shortcut, against the definitions written out. The battery asks the rest."""

import pytest
import torch
import torch.nn.functional as F

from gptstar.model.mix import Mix
from gptstar.model.positions import alibi_slopes
from gptstar.model.transformer import GPT
from gptstar.training.optimizers import parameter_groups
from support import tiny_model

BOTH = dict(value_residual=True, embedding_shortcut=True)


def build(**changes) -> GPT:
    """With perturbed weights; those of the mixes are far from their start, and no two alike."""
    torch.manual_seed(0)
    model = GPT(tiny_model(**{"n_layer": 3, "init_std": 0.3, "n_head": 4, "n_kv_head": 2, **BOTH, **changes})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.1 if parameter.numel() > 2 else 1.0) * torch.randn_like(parameter))
    return model


def written_out(model: GPT, tokens_T: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of one sequence from the state dict, a head and a matrix at a time, with ALiBi and exact GELU."""
    config, w = model.config, model.state_dict(keep_vars=True)  # with gradients
    T, slopes = len(tokens_T), alibi_slopes(config.n_head)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def attention(x, layer, first):
        name = f"blocks.{layer}.attention"
        q, k, v = (linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        if config.value_residual and layer:
            a, b = w[f"{name}.value_mix.weight"].unbind()
            v = a * v + b * first
        heads = []
        for head in range(config.n_head):
            shared = head // (config.n_head // config.n_kv_head)
            own = slice(head * config.d_head, (head + 1) * config.d_head)
            of_pair = slice(shared * config.d_head, (shared + 1) * config.d_head)
            rows = []
            for i in range(T):
                scores = [q[i, own] @ k[j, of_pair] / config.d_head**0.5 - slopes[head] * (i - j) for j in range(i + 1)]
                rows.append(torch.stack(scores).softmax(0) @ v[: i + 1, of_pair])
            heads.append(torch.stack(rows))
        return linear(torch.cat(heads, -1), f"{name}.output"), v

    def feedforward(x, layer):
        return linear(F.gelu(linear(x, f"blocks.{layer}.feedforward.up")), f"blocks.{layer}.feedforward.down")

    x = embedding = w["embedding.weight"][tokens_T]
    first = None
    for layer in range(config.n_layer):
        if config.embedding_shortcut and layer:
            a, b = w[f"shortcut.{layer}.weight"].unbind()
            x = a * x + b * embedding
        names = ("norm", "norm") if config.block == "parallel_shared" else ("norm1", "norm2")
        attended, v = attention(norm(x, f"blocks.{layer}.{names[0]}"), layer, first)
        first = v if first is None else first  # the first layer's, not the layer's below
        read = x + attended if config.block == "sequential" else x
        x = x + attended + feedforward(norm(read, f"blocks.{layer}.{names[1]}"), layer)
    return norm(x, "norm") @ w["embedding.weight"].T


@pytest.mark.parametrize("block", ["sequential", "parallel", "parallel_shared"])
@pytest.mark.parametrize(
    "ideas", [BOTH, {**BOTH, "embedding_shortcut": False}, {**BOTH, "value_residual": False}], ids=str
)
def test_logits_and_all_gradients_are_those_of_the_definition(block, ideas):
    model = build(block=block, **ideas)
    tokens = torch.randint(0, 300, (2, 7))
    expected, found = torch.stack([written_out(model, row) for row in tokens]), model(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((weights * logits).sum(), [*model.parameters()]) for logits in (found, expected)]
    for (name, _), a, b in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=name)


@pytest.mark.parametrize("block", ["sequential", "parallel", "parallel_shared", "amlp"])
def test_the_gradient_of_each_weight_is_the_slope_of_the_loss(block):
    model = build(block=block, **({"position": "none"} if block == "amlp" else {}))
    tokens, step = torch.randint(0, 300, (2, 9)), 1e-5
    targets = tokens.roll(-1, 1)
    mixes = [module for module in model.modules() if isinstance(module, Mix)]
    assert len(mixes) == 4  # two layers of three, two kinds
    model(tokens, targets).backward()
    with torch.no_grad():
        for weight in (module.weight for module in mixes):
            for i in range(2):
                weight[i] += step
                above = model(tokens, targets)
                weight[i] -= 2 * step
                below = model(tokens, targets)
                weight[i] += step
                assert weight.grad[i] != 0
                torch.testing.assert_close(weight.grad[i], (above - below) / (2 * step), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("block", ["sequential", "parallel", "parallel_shared", "amlp"])
def test_layers_that_are_recomputed_get_the_first_layers_own_values(block):
    """All gradients, so also the share of the first layer's value matrix that comes through the others."""
    model = build(block=block, position="none")
    tokens = torch.randint(0, 300, (2, 9))
    gradients = []
    for model.recomputed in (0, 1, 2, 3):
        model.zero_grad()
        model(tokens, tokens.roll(-1, 1)).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("recomputed", [0, 2])
def test_it_is_one_graph_recomputed_or_not(recomputed):
    torch._dynamo.reset()
    model = build()
    model.recomputed = recomputed
    tokens = torch.randint(0, 300, (2, 9))
    expected = model(tokens, tokens)
    actual = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)(tokens, tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@torch.no_grad()
def test_the_cache_keeps_the_values_that_were_attended_to():
    model = build()
    tokens = torch.randint(0, 300, (1, 6))
    plain, cache = model.new_cache(1, 6), model.new_cache(1, 6)
    for piece in tokens.split([4, 1, 1], 1):
        model(piece, cache=cache)
    for mix in (block.attention.value_mix for block in model.blocks[1:]):
        mix.weight.copy_(torch.tensor([1.0, 0.0]))
    model(tokens, cache=plain)
    kept, own = cache.kept["value"], plain.kept["value"]
    assert torch.allclose(kept[0], own[0])
    assert not torch.allclose(kept[1], own[1])


@torch.no_grad()
def test_documents_in_a_row_do_not_see_each_other_past_the_layers_either():
    model = build(position="none")
    first, second = torch.randint(0, 300, (1, 5)), torch.randint(0, 300, (1, 7))
    numbers = torch.tensor([[0] * 5 + [1] * 7])
    together = model(torch.cat((first, second), 1), document_BT=numbers)
    torch.testing.assert_close(together, torch.cat((model(first), model(second)), 1), rtol=1e-10, atol=1e-10)


def test_at_the_start_values_are_half_and_half_the_shortcut_is_closed_and_all_else_as_without():
    torch.manual_seed(0)
    model = GPT(tiny_model(n_layer=3, **BOTH))
    named = model.state_dict()
    values, shortcuts = (
        [named.pop(name).tolist() for name in list(named) if part in name] for part in ("value_mix", "shortcut")
    )
    assert values == [[0.5, 0.5]] * 2 and shortcuts == [[1.0, 0.0]] * 2
    torch.manual_seed(0)
    without = GPT(tiny_model(n_layer=3)).state_dict()
    assert named.keys() == without.keys()
    assert all(torch.equal(named[name], value) for name, value in without.items())  # a seed's, so runs can be paired


def test_the_two_numbers_are_not_decayed():
    model = GPT(tiny_model(n_layer=3, **BOTH))
    decayed, plain = (group["params"] for group in parameter_groups(model, 0.1))
    mixes = {id(module.weight) for module in model.modules() if isinstance(module, Mix)}
    assert len(mixes) == 4 and mixes <= {id(p) for p in plain} and not mixes & {id(p) for p in decayed}


def test_half_precision_stays_half_precision():
    model = GPT(tiny_model(n_layer=2, **BOTH))
    seen = []
    model.blocks[1].attention.value_mix.register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    model.shortcut["1"].register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 4, dtype=torch.long))
    assert seen == [torch.float32, torch.bfloat16]  # the stream, then values
