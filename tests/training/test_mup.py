"""Learning rates and decays under muP, what a first step does, and that runs go on exactly."""

import copy
import dataclasses

import pytest
import torch

from gptstar.errors import UserError
from gptstar.model.mup import channel_readers
from gptstar.model.transformer import GPT
from gptstar.training.loop import train
from gptstar.training.optimizers import OptimizerConfig, build_optimizer, check_optimizer, set_learning_rate
from support import tiny_model


def model_of(growth: int, **changes) -> GPT:
    """4 times, 16 times as wide as the base."""
    torch.manual_seed(0)
    values = dict(d_model=16 * growth, n_head=growth, d_head=16, d_ff=32 * growth, mup_base_width=16, init_std=0.25)
    return GPT(tiny_model(**{**values, **changes}))


def settings(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (float(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize(("name", "share"), [("adamw", 1 / 4), ("lion", 1 / 4), ("muon", 1 / 2)])
def test_each_tensor_has_the_rate_and_decay_of_the_table(name, share):
    model = model_of(4, position="learned", tie_head=False)
    optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=1.0, weight_decay=0.1))
    set_learning_rate(optimizer, 0.5)
    found = settings(model, optimizer)
    assert found.keys() == dict(model.named_parameters()).keys()
    readers = {id(weight) for weight in channel_readers(model)}
    for key, parameter in model.named_parameters():
        lr, decay = found[key]
        assert lr == pytest.approx(0.5 * share if id(parameter) in readers else 0.5), key
        is_matrix = parameter.ndim == 2 and not key.endswith("bias")
        assert lr * decay == pytest.approx(0.5 * 0.1 if is_matrix else 0.0), key  # no width changes their product


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_update_of_a_hidden_matrix_has_its_size(name):
    """Adam: every number moves by lr / m. Muon: every singular value by lr * 0.2 * sqrt(wider side / m)."""
    sizes = {}
    for growth in (1, 4):
        model = model_of(growth, block="sequential")
        optimizer = build_optimizer(model, OptimizerConfig(name=name, lr=0.01, weight_decay=0.0))
        before = copy.deepcopy(model.state_dict())
        tokens = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(0))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        update = model.state_dict()["blocks.1.feedforward.up.weight"] - before["blocks.1.feedforward.up.weight"]
        singular = torch.linalg.svdvals(update)
        sizes[growth] = update.abs().mean().item() if name == "adamw" else singular.median().item()
    assert sizes[1] / sizes[4] == pytest.approx(4 if name == "adamw" else 1, rel=0.15)


def test_the_base_width_trains_bit_identically():
    models = [model_of(4, mup_base_width=base) for base in (0, 64)]
    for model in models:
        optimizer = build_optimizer(model, OptimizerConfig(lr=0.01))
        assert len(optimizer.param_groups) == 2  # checkpoints of a model without muP fit
        for seed in range(3):
            tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(seed))
            model(tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_goes_on_exactly(train_config, tmp_path, name):
    config = dataclasses.replace(
        train_config,
        model=dataclasses.replace(train_config.model, mup_base_width=8),
        optimizer=OptimizerConfig(name=name, lr=3e-3),
    )
    whole = train(config)
    part = dataclasses.replace(config, run_dir=str(tmp_path / "part"))
    resumed = dataclasses.replace(part, resume=f"{config.run_dir}/checkpoints/step-00000004")
    again = train(resumed)
    assert again.step == whole.step and again.final.loss == whole.final.loss


@pytest.mark.parametrize(("name", "changes"), [("adafactor", {}), ("muon", {"adapter_width": 4})])
def test_what_has_no_rule_is_refused(name, changes):
    shape = tiny_model(**changes)
    check_optimizer(OptimizerConfig(name=name), shape)
    for base in (8, shape.d_model):  # at the base width too: what is found there could not be used in a wider model
        with pytest.raises(UserError, match=f"optimizer={name}.*mup_base_width={base}"):
            check_optimizer(OptimizerConfig(name=name), dataclasses.replace(shape, mup_base_width=base))
