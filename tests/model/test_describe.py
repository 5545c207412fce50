import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptstar.configuration import preset
from gptstar.model.attention import KERNELS
from gptstar.model.describe import flops_per_token, parameter_count
from gptstar.model.transformer import GPT
from support import tiny_model


def test_flops_agree_with_torchs_counter():
    """Counted over dense matmuls, less what the formula adds (embeddings have no matmul here: the head is tied)."""
    config = tiny_model(n_layer=3, d_model=64, n_head=4, d_head=16, d_ff=256, context=32, vocab_size=300)
    model = GPT(config)
    for block in model.blocks:
        block.attention.kernel = KERNELS["dense"]
    tokens = torch.randint(0, 300, (2, 32))
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()  # the counter misses mm(out=)
    formula = flops_per_token(config, 32) * tokens.numel()
    vectors = 6 * sum(p.numel() for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias"))
    counted = counter.get_total_flops()
    assert abs(formula - vectors * tokens.numel() - counted) / counted < 0.01


def test_gpt2_small_figures():
    config = preset("gpt2_small")
    assert parameter_count(config) == 124_439_808
    assert flops_per_token(config, 1024) == 6 * 124_439_808 + 12 * 12 * 768 * 1024
