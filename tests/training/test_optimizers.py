import copy
import importlib.util

import pytest
import torch

from gptstar.errors import UserError
from gptstar.model.choices import BLOCKS
from gptstar.model.transformer import GPT
from gptstar.training import optimizers as module
from gptstar.training.optimizers import (
    OPTIMIZERS,
    OptimizerConfig,
    build_optimizer,
    check_optimizer,
    parameter_groups,
    set_learning_rate,
)
from support import tiny_model

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
ALL = [pytest.param(name, marks=needs_torchao) if name == "adamw_8bit" else name for name in OPTIMIZERS]


def train(model, optimizer, steps, seed=0):
    """Losses of a few steps on random tokens, the same ones for a seed."""
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        tokens = torch.randint(0, 50, (4, 17), generator=generator) // 7  # few tokens, so that there is much to learn
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("block", BLOCKS)
def test_only_matrices_decay_and_every_parameter_is_in_one_group(block):
    model = GPT(tiny_model(block=block, position="learned"))
    decayed, plain = (group["params"] for group in parameter_groups(model, 0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed) + len(plain) == len(names)
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in decayed)
    assert all(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in plain)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("block", ["sequential", "parallel_shared"])
def test_each_has_every_parameter_once_learns_and_goes_on_exactly(name, block):
    torch.manual_seed(0)
    model = GPT(tiny_model(block=block, position="learned"))
    lr = 0.1 if name == "adafactor" else 3e-3  # whose steps are relative to small weights
    config = OptimizerConfig(name=name, lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = build_optimizer(model, config)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()} and len(held) == len(set(map(id, held)))
    set_learning_rate(optimizer, lr)
    losses = train(model, optimizer, 30)
    assert losses[-1] < losses[0] - 0.5

    twin = copy.deepcopy(model)
    again = build_optimizer(twin, config)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    set_learning_rate(again, lr)
    assert train(model, optimizer, 5, seed=1) == train(twin, again, 5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", ALL)
def test_a_learning_rate_of_nothing_moves_nothing(name):
    model = GPT(tiny_model())
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=1.0))
    before = copy.deepcopy(model.state_dict())
    set_learning_rate(optimizer, 0.0)
    train(model, optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


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


def test_lion_is_its_definition():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    optimizer = build_optimizer(model, OptimizerConfig(name="lion", lr=0.01, betas=(0.9, 0.99), weight_decay=0.1))
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    moment = {n: torch.zeros_like(p) for n, p in expected.items()}
    for t in range(1, 6):
        set_learning_rate(optimizer, 0.01 / t)
        optimizer.zero_grad()
        model(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            g, lr, decay = parameter.grad, 0.01 / t, 0.1 if name == "weight" else 0.0
            expected[name] -= lr * ((0.9 * moment[name] + 0.1 * g).sign() + decay * expected[name])
            moment[name] = 0.99 * moment[name] + 0.01 * g
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


def test_muon_moves_every_part_of_a_fused_matrix_by_an_orthogonal_one():
    torch.manual_seed(0)
    model = GPT(tiny_model(block="parallel_shared"))
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", lr=0.01, weight_decay=0.0))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    moved = 0
    for name, weight in model.state_dict().items():
        if not name.startswith("blocks") or weight.ndim < 2 or "norm" in name or name.endswith("bias"):
            continue
        update = (weight - before[name]) / (0.01 * 0.2 * max(weight.shape) ** 0.5)
        singular = torch.linalg.svdvals(update)
        assert singular.median() > 0.6 and singular.max() < 1.3, name  # what five steps of Newton-Schulz leave
        moved += 1
    assert moved == 6 * model.config.n_layer
    rest = [group["params"] for group in optimizer.param_groups[1:]]
    assert any(model.embedding.weight is p for p in rest[0])


def test_muon_resumes_with_the_settings_of_now():
    def build(**settings):
        return build_optimizer(GPT(tiny_model()), OptimizerConfig(name="muon", **settings))

    old, new = build(), build(momentum=0.5, betas=(0.1, 0.2), eps=1e-3)
    new.load_state_dict(old.state_dict())
    assert new._muon.param_groups[0]["momentum"] == 0.5
    assert all(g["betas"] == (0.1, 0.2) and g["eps"] == 1e-3 for g in new._adamw.param_groups)


def test_muon_leaves_the_mixing_matrix_of_a_gmlp_triangular():
    torch.manual_seed(0)
    model = GPT(tiny_model(block="gmlp", position="none"))
    optimizer = build_optimizer(model, OptimizerConfig(name="muon", lr=0.01, weight_decay=0.5))
    train(model, optimizer, 3)
    square = [p for p in model.parameters() if p.ndim == 2 and p.shape[0] == p.shape[1] == model.config.context]
    assert square and all(torch.equal(p, p.tril()) for p in square)


def test_frozen_parameters_are_left_out():
    model = GPT(tiny_model())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    for name in ("adamw", "muon", "lion", "adafactor"):
        before = copy.deepcopy(model.state_dict())
        optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.01))
        train(model, optimizer, 1)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed and all("norm" in key for key in changed)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torchao"):
        check_optimizer(OptimizerConfig(name="adamw_8bit"), tiny_model())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "adam"}, "'adam' is unknown"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\]"),
        ({"betas": (0.9,)}, "two numbers"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"eps": -1.0}, r"eps=-1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        OptimizerConfig(**changes)


def test_what_is_no_optimizer_is_refused(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "mine", lambda model, config: None)
    with pytest.raises(UserError, match=r"optimizer\.name=mine makes a NoneType: return a torch\.optim\.Optimizer"):
        build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(name="mine"))
