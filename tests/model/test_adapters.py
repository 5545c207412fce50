import pytest
import torch

from gptstar.model.adapters import freeze_all_but_adapters
from gptstar.model.choices import BLOCKS
from gptstar.model.transformer import GPT
from support import tiny_model


@pytest.mark.parametrize("block", BLOCKS)
def test_fresh_adapters_change_nothing_and_have_two_matrices_a_sublayer(block):
    torch.manual_seed(0)
    plain = GPT(tiny_model(block=block, position="none"))
    adapted = GPT(tiny_model(block=block, position="none", adapter_width=5))
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected and all("adapter" in name for name in missing)
    assert len(missing) == 2 * 4 * (1 if block.endswith("mlp") else 2)
    tokens = torch.randint(0, 300, (2, 9))
    torch.testing.assert_close(adapted(tokens), plain(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_only_adapters_norms_embeddings_and_positions_are_left_trainable(tied):
    model = GPT(tiny_model(adapter_width=5, position="learned", tie_head=tied, head_bias=True))
    freeze_all_but_adapters(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    kinds = {name.partition(".")[2].partition(".")[2] if name.startswith("blocks") else name for name in frozen}
    assert kinds == {"inputs.weight", "inputs.bias", "outputs.weight", "outputs.bias", "head_bias"} | (
        set() if tied else {"head.weight"}
    )
    tokens = torch.randint(0, 300, (2, 9))
    model(tokens, tokens).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
