"""The battery: what every model must answer, whatever it is made of, and every optimizer and schedule.

A question is a function that raises AssertionError, with what is wrong, and returns nothing where all is well. Models
are small (`shrunk`), in fp64, with every parameter away from its start, biases too.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptstar.ideas import place_of
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.pretrained.empty import empty_model
from gptstar.training.optimizers import OptimizerConfig, build_optimizer, set_learning_rate
from gptstar.training.schedules import SCHEDULES, ScheduleConfig

N_TOKEN = 13


def shrunk(config: ModelConfig) -> ModelConfig:
    """Small enough for a test, with every choice as it was; key/value heads keep their ratio."""
    ratio = config.n_head // config.n_key_value
    return dataclasses.replace(
        config,
        vocab_size=97,
        n_layer=max(2, len(config.windows), len(config.layer_positions)),
        d_model=24,
        n_head=2 * ratio,
        n_kv_head=2 if ratio > 1 else 0,
        d_head=12,
        d_ff=40,
        context=32,
        windows=[min(window, 5) for window in config.windows],
        init_std=0.3,
    )


def build(config: ModelConfig) -> GPT:
    """A model in fp64, the same each time, as it is evaluated: dropout, where an idea has it, is off."""
    torch.manual_seed(0)
    model = GPT(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
    return model


class Asked:
    """A model, tokens for it, (2, N_TOKEN), and its logits."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.model = config, build(config)
        self.tokens = torch.randint(0, config.vocab_size, (2, N_TOKEN))
        self.logits = self.model(self.tokens)


def gives_finite_logits(asked: Asked) -> None:
    """(B, T, V), all of them numbers."""
    wanted = (2, N_TOKEN, asked.config.vocab_size)
    assert asked.logits.shape == wanted, f"logits are {tuple(asked.logits.shape)}, not {wanted}"
    assert asked.logits.isfinite().all(), "some logits are not finite"


def says_the_same_twice(asked: Asked) -> None:
    """Nothing is drawn while it is evaluated (`if self.training`)."""
    assert torch.equal(asked.model(asked.tokens), asked.logits), "the same tokens give other logits the second time"


def is_causal(asked: Asked) -> None:
    """A changed token leaves all earlier logits alone, to the last bit, and changes its own."""
    changed = asked.tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % asked.config.vocab_size
    logits = asked.model(changed)
    assert torch.equal(logits[:, :6], asked.logits[:, :6]), "a changed token changed an earlier logit"
    assert not torch.allclose(logits[:, 6], asked.logits[:, 6]), "a changed token did not change its own logits"


def decodes_with_a_cache(asked: Asked) -> None:
    """Read piece by piece, with what the cache keeps, the logits are those of the whole."""
    cache = asked.model.new_cache(2, N_TOKEN)
    pieces = [asked.model(piece, cache=cache) for piece in asked.tokens.split([5, 1, 1, 4, 2], 1)]
    _same(torch.cat(pieces, 1), asked.logits, "decoding with the cache differs from reading all at once")


def reads_rows_independently(asked: Asked) -> None:
    """A row alone gives what it gives in a batch; what follows it, or fills it up on the left, changes nothing."""
    model, tokens = asked.model, asked.tokens
    _same(model(tokens[1:, :9]), asked.logits[1:, :9], "a row alone differs from the row in a batch")
    padding = torch.tensor([0, 4])
    alone = model(tokens[1:, 4:])
    _same(model(tokens, padding_B=padding)[1:, 4:], alone, "a row with padding on its left sees the padding")
    cache = model.new_cache(2, N_TOKEN)
    pieces = [model(piece, cache=cache, padding_B=padding) for piece in tokens.split([2, 6, 1, 4], 1)]
    padded = torch.cat(pieces, 1)
    assert padded.isfinite().all(), "padding makes logits that are not finite"
    _same(padded[0], asked.logits[0], "a row beside a padded one differs, with the cache")
    _same(padded[1:, 4:], alone, "a row with padding on its left sees the padding, with the cache")


def continues_rows_of_unequal_length(asked: Asked) -> None:
    """As the batching engine has them: each row of one cache is continued at its own end, swapped and copied."""
    model, tokens, logits = asked.model, asked.tokens, asked.logits
    rows = model.new_rows_cache(3, N_TOKEN)
    for row, held in enumerate((3, 9)):
        view = rows.row(row)
        model(tokens[row : row + 1, :held], cache=view)
        rows.lengths[row] = view.length
    rows.swap(1, 2)
    rows.swap(1, 2)
    rows.n_active = 2
    for step in (0, 1):
        following = torch.stack((tokens[0, 3 + step], tokens[1, 9 + step]))[:, None]
        read = model(following, cache=rows)[:, 0]
        wanted = torch.stack((logits[0, 3 + step], logits[1, 9 + step]))
        _same(read, wanted, "rows of unequal length in one cache disturb each other")
    rows.copy(0, 1, 4)
    rows.lengths[0] = 4
    read = model(tokens[:1, 4:6].expand(2, 2), cache=rows)
    _same(read, logits[:1, 4:6].expand(2, -1, -1), "a copied row of the cache continues differently")


def is_saved_and_loaded(asked: Asked) -> None:
    """The state dict holds everything that is not made again; into a model of other numbers, as files are read."""
    torch.manual_seed(1)
    other = empty_model(asked.config, "cpu", torch.float64, torch.float64).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(asked.model.state_dict())
    assert torch.equal(other(asked.tokens), asked.logits), "save and load is not exact"


def computes_in_fp32_and_bf16(asked: Asked) -> None:
    """As it is trained: its loss, forward and backward."""
    torch.manual_seed(0)
    model = GPT(asked.config)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(asked.tokens, asked.tokens)
        loss.backward()
        assert loss.isfinite(), f"the loss in {'bf16' if bf16 else 'fp32'} is {loss.item()}"


def has_complete_gradients(asked: Asked) -> None:
    """The loss is cross-entropy of the logits, and every parameter has that one's gradient."""
    model, targets = asked.model, asked.tokens.roll(-1, 1)
    loss, reference = model(asked.tokens, targets), F.cross_entropy(asked.logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, reference, rtol=1e-10, atol=1e-10)
    names, parameters = zip(*model.named_parameters(), strict=True)
    both = (torch.autograd.grad(of, parameters, retain_graph=True, allow_unused=True) for of in (loss, reference))
    for name, a, b in zip(names, *both, strict=True):
        assert a is not None and b is not None, f"{name} has no gradient: nothing reads it"
        assert a.isfinite().all(), f"the gradient of {name} is not finite"
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10, msg=f"the gradient of {name} is wrong")


MODEL_QUESTIONS: tuple[Callable[[Asked], None], ...] = (
    gives_finite_logits,
    says_the_same_twice,
    is_causal,
    decodes_with_a_cache,
    reads_rows_independently,
    continues_rows_of_unequal_length,
    is_saved_and_loaded,
    has_complete_gradients,
    computes_in_fp32_and_bf16,
)
FIRST = (gives_finite_logits, says_the_same_twice)  # without which the other answers say nothing


def compiles_to_the_same(config: ModelConfig, backend: str = "aot_eager") -> None:
    """One graph, without breaks, that computes the same, forward and backward."""
    torch._dynamo.reset()
    model = build(config)
    tokens = torch.randint(0, config.vocab_size, (2, N_TOKEN))
    expected = model(tokens, tokens)
    actual = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(tokens, tokens)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    both = (torch.autograd.grad(of, parameters, allow_unused=True) for of in (actual, expected))
    for a, b in zip(*both, strict=True):  # None: `has_complete_gradients` says so
        assert (a is None) == (b is None), "compiled, a parameter has a gradient that it has not otherwise, or none"
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def lowers_the_loss(optimizer: OptimizerConfig, config: ModelConfig) -> None:
    """Sixty steps on one batch."""
    model, step = _training(optimizer, config)
    losses = [step() for _ in range(60)]
    told = f"the loss of one batch goes from {losses[0]:.3f} to {losses[-1]:.3f} in 60 steps at lr={optimizer.lr:g}"
    assert math.isfinite(losses[-1]) and losses[-1] < 0.9 * losses[0], told
    assert all(parameter.isfinite().all() for parameter in model.parameters()), "some weights are not finite"


def continues_from_its_state(optimizer: OptimizerConfig, config: ModelConfig) -> None:
    """Saved and loaded half-way, a run ends with the same weights."""
    model, step = _training(optimizer, config)
    for _ in range(3):
        step()
    saved = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
    other, other_step = _training(optimizer, config)
    other.load_state_dict(saved[0])
    other_step.optimizer.load_state_dict(saved[1])
    for _ in range(3):
        step(), other_step()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), f"after its state is loaded the optimizer goes on differently ({name})"


def follows_the_learning_rate(optimizer: OptimizerConfig, config: ModelConfig) -> None:
    """At a learning rate of 0 nothing moves; at the usual one every parameter that is trained does."""
    model, step = _training(optimizer, config)
    before = [parameter.clone() for parameter in model.parameters()]
    step()
    for (name, now), then in zip(model.named_parameters(), before, strict=True):
        assert not torch.equal(now, then), f"{name} is not moved: is it in no group?"
    set_learning_rate(step.optimizer, 0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    step()
    for (name, now), then in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(now, then), f"{name} is moved at a learning rate of 0: the schedule does not reach it"


OPTIMIZER_QUESTIONS: tuple[Callable[[OptimizerConfig, ModelConfig], None], ...] = (
    lowers_the_loss,
    continues_from_its_state,
    follows_the_learning_rate,
)


def gives_factors(name: str) -> None:
    """A share of the maximum at each step, for short and long runs."""
    for total in (1, 2, 1000):
        config = ScheduleConfig(name=name)
        for step in range(total):
            factor = SCHEDULES[name](config, step, total)
            assert 0 <= factor <= 1, f"at step {step} of {total} the factor is {factor}, not between 0 and 1"
            again = SCHEDULES[name](config, step, total)
            assert again == factor, f"step {step} of {total} has the factor {factor}, and then {again}"


def rounds(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Each question to a model, (its name, what is wrong or "")."""
    try:
        asked = Asked(config)
    except Exception as error:  # of a stranger's code: anything can be
        yield "reads_tokens", _told(error)
        return
    for question in MODEL_QUESTIONS:
        yield question.__name__, (found := wrong(partial(question, asked)))
        if found and question in FIRST:
            return
    yield compiles_to_the_same.__name__, wrong(partial(compiles_to_the_same, config))


def wrong(question: Callable[[], None]) -> str:
    """What is wrong, or ""."""
    try:
        with warnings.catch_warnings():  # of torch, on the way to what is said here
            warnings.simplefilter("ignore")
            question()
    except AssertionError as error:
        return str(error).strip() or "it failed without a word"
    except Exception as error:  # of a stranger's code: anything can be
        return _told(error)
    return ""


def _told(error: Exception) -> str:
    """With the line of the idea where there is one."""
    place, said = place_of(error), " ".join(str(error).partition("\n\n")[0].split())  # the rest is torch's advice
    return (f"{place}: " if place else "") + f"{type(error).__name__}: {said}"


class _Step:
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
        self.model, self.optimizer, self.tokens = model, optimizer, tokens

    def __call__(self) -> float:
        loss = self.model(self.tokens[:, :-1], self.tokens[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def _training(optimizer: OptimizerConfig, config: ModelConfig) -> tuple[GPT, _Step]:
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(config, init_std=0.02))
    tokens = torch.randint(0, config.vocab_size, (4, N_TOKEN))
    return model, _Step(model, build_optimizer(model, optimizer), tokens)


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    if not torch.allclose(found, wanted, rtol=1e-9, atol=1e-9):
        far = (found - wanted).abs().max().item()
        raise AssertionError(f"{what} (by up to {far:.3g})")
