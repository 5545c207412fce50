import dataclasses

import pytest
import torch

from gptstar.model.transformer import GPT
from support import tiny_model


@pytest.mark.parametrize(("block", "additions"), [("sequential", 2), ("parallel", 1), ("parallel_shared", 1)])
def test_standard_deviations_are_those_of_the_table(block, additions):
    torch.manual_seed(0)
    config = tiny_model(
        block=block, n_layer=8, d_model=128, n_head=8, d_head=32, d_ff=256, position="learned", head_bias=True
    )
    state = GPT(config).state_dict()
    residual = 0.02 / (8 * additions) ** 0.5
    for name, value in state.items():
        if name.endswith("bias"):  # head_bias too
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            expected = residual if name.endswith(("output.weight", "down.weight")) else 0.02
            assert value.std().item() == pytest.approx(expected, rel=0.05), name


@pytest.mark.parametrize("block", ["sequential", "parallel", "parallel_shared", "amlp"])
def test_what_writes_into_the_stream_may_start_at_zero(block):
    """Then the model is embedding, final norm and head, and all other weights are those of the usual start."""
    config = tiny_model(block=block, position="none", adapter_width=3)
    states = []
    for zero in (False, True):
        torch.manual_seed(0)
        model = GPT(dataclasses.replace(config, zero_init_residual=zero))
        states.append(model.state_dict())
    usual, zeroed = states
    writes = ("feedforward.down.weight", *(["attention.output.weight"] if block != "amlp" else []))
    for name in usual:
        if name.endswith(writes):
            assert not zeroed[name].any() and usual[name].any(), name
        else:
            assert torch.equal(zeroed[name], usual[name]), name
    tokens = torch.randint(0, 300, (1, 5))
    assert torch.equal(model(tokens), model.logits(model.norm(model.embedding(tokens))))
    model(tokens, tokens).backward()
    assert all(weight.grad.any() for block in model.blocks for weight in block.residual_outputs())


def test_the_same_seed_gives_the_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(GPT(tiny_model()).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
