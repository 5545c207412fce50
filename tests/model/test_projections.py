import pytest
import torch
from torch import nn

from gptstar.model.projections import FusedLinear, load_fused_parts


class Holder(nn.Module):
    def __init__(self, join: str) -> None:
        super().__init__()
        self.fused = FusedLinear({"a": 3, "group.b": 5}, 4, join=join)
        self.register_load_state_dict_pre_hook(load_fused_parts)


def filled(join: str) -> Holder:
    torch.manual_seed(0)
    holder = Holder(join).double()
    for parameter in holder.parameters():
        nn.init.normal_(parameter)
    return holder


def test_joined_outputs_are_separate_linear_layers():
    holder = filled("outputs")
    state, x = holder.state_dict(), torch.randn(2, 4, dtype=torch.float64)
    parts = [x @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name in ("a", "group.b")]
    torch.testing.assert_close(holder.fused(x), torch.cat(parts, -1))


def test_joined_inputs_are_summed_linear_layers():
    holder = filled("inputs")
    state, x = holder.state_dict(), torch.randn(2, 8, dtype=torch.float64)
    a, b = x.split([3, 5], -1)
    expected = a @ state["a.weight"].T + state["a.bias"] + b @ state["group.b.weight"].T + state["group.b.bias"]
    torch.testing.assert_close(holder.fused(x), expected)


@pytest.mark.parametrize("join", ["outputs", "inputs"])
def test_state_dict_round_trip(join):
    one, two = filled(join), Holder(join).double()
    assert set(one.state_dict()) == {"a.weight", "a.bias", "group.b.weight", "group.b.bias"}
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.fused.weight, two.fused.weight) and torch.equal(one.fused.bias, two.fused.bias)


def test_missing_and_misshapen_parts_are_named():
    state = filled("outputs").state_dict()
    del state["a.bias"]
    state["group.b.weight"] = torch.zeros(1, 1)
    with pytest.raises(RuntimeError) as error:
        Holder("outputs").load_state_dict(state)
    assert "a.bias" in str(error.value) and "group.b.weight: shape (1, 1), expected (5, 4)" in str(error.value)
