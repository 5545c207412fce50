import pytest
import torch

from gptstar.model.choices import BLOCKS
from gptstar.model.transformer import GPT
from gptstar.training.optimizers import OptimizerConfig, build_optimizer, parameter_groups, set_learning_rate
from support import tiny_model


@pytest.mark.parametrize("block", BLOCKS)
def test_only_matrices_decay_and_every_parameter_is_in_one_group(block):
    model = GPT(tiny_model(block=block, position="learned"))
    decayed, plain = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed) + len(plain) == len(names)
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in decayed)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in plain)


def test_adamw_is_its_definition():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    config = OptimizerConfig(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    first = {n: torch.zeros_like(p) for n, p in expected.items()}
    second = {n: torch.zeros_like(p) for n, p in expected.items()}
    for t in range(1, 6):
        set_learning_rate(optimizer, 0.01 / t)
        optimizer.zero_grad()
        model(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            g, lr = parameter.grad, 0.01 / t
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g * g
            decay = 0.1 if name == "weight" else 0.0
            step = (first[name] / (1 - 0.9**t)) / ((second[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - lr * decay) - lr * step
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "adam"}, "'adam' is unknown"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\]"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"eps": -1.0}, r"eps=-1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**changes)
