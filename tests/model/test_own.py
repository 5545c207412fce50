"""Ideas of one's own: their numbers, their settings, and what becomes of them beyond training."""

from __future__ import annotations

import pytest
import torch

import gptstar
from gptstar import ideas
from gptstar.errors import UserError
from gptstar.evaluation.held_out import loss_within_documents
from gptstar.model.causality import refuse_foresight
from gptstar.offload.load import alike
from gptstar.pretrained.native import save_weights
from gptstar.quantization.quantize import quantize
from support import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("no_ideas")
TOKENS = torch.arange(8)[None]
HEAD = """
import torch
from torch import nn
from gptstar.model.block import SequentialBlock
from gptstar.model.choices import BLOCKS
from gptstar.model.feedforward import ACTIVATIONS, gated
from gptstar.model.norms import NORMS
from gptstar.model.own import add
"""
NORM = """
@add(NORMS, "mine")
class Mine(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), 2.0))
        self.shift = nn.Parameter(torch.empty(width))

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt() * self.gain + self.shift
"""
PLAIN = """
@add(NORMS, "mine")
class Mine(nn.Module):
    def __init__(self, width, eps):
        super().__init__()

    def forward(self, x):
        return x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt()
"""
BLOCK = """
@add(BLOCKS, "mine")
class Mine(SequentialBlock):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.register_buffer("wave", 1 + torch.arange(config.d_model).sin() / 2, persistent=False)

    def forward(self, x_BTC, sight, cache):
        return {}
"""
RIGHT = "super().forward(x_BTC, sight, cache) * self.wave"


@pytest.fixture
def use(tmp_path):
    def use_text(text: str) -> None:
        (tmp_path / "mine.py").write_text(HEAD + text)
        ideas.use([tmp_path / "mine.py"])

    return use_text


def again(model: gptstar.GPT, folder, **how) -> gptstar.GPT:
    """Saved and loaded."""
    folder.mkdir()
    save_weights(folder, model, tiny_tokenizer(), {})
    return gptstar.load(folder, **how)[0]


def test_numbers_given_in_init_stay_and_empty_ones_are_drawn(use):
    use(NORM)
    torch.manual_seed(0)
    model = gptstar.GPT(tiny_model(norm="mine", init_std=0.3))
    assert (model.norm.gain == 2).all()
    assert model.norm.shift.isfinite().all() and 0.1 < model.norm.shift.std() < 0.6
    assert gptstar.GPT(tiny_model()).norm.weight.eq(1).all()


@pytest.mark.parametrize("text", [NORM, PLAIN])
def test_a_norm_may_call_its_weights_as_it_likes_or_have_none(use, tmp_path, text):
    use(text)
    model = gptstar.GPT(tiny_model(norm="mine", vocab_size=400)).eval()
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert gptstar.generate(model, tiny_tokenizer(), "ab", max_new_tokens=3, temperature=0)
    assert quantize(model, "int8").dtype == torch.float32
    assert again(model, tmp_path / "model", dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize("how", [{}, {"dtype": "int8"}, {"dtype": "bf16"}])
def test_a_table_that_is_not_saved_is_made_again(use, tmp_path, how):
    use(BLOCK.format(RIGHT))
    model = gptstar.GPT(tiny_model(block="mine", position="learned")).eval()
    other = again(model, tmp_path / "model", **how)
    wanted = model.blocks[1].wave.to(other.blocks[1].wave.dtype)
    assert torch.equal(other.blocks[1].wave, wanted)
    if not how:
        assert torch.equal(other(TOKENS), model(TOKENS))
        assert quantize(model, "int8").blocks[0].wave.equal(model.blocks[0].wave)


def test_what_no_file_holds_cannot_be_streamed_or_exported(use, tmp_path):
    use(BLOCK.format(RIGHT))
    model = gptstar.GPT(tiny_model(block="mine", position="learned"))
    for wanted in (lambda: alike(model.config), lambda: gptstar.export(model, tiny_tokenizer(), tmp_path / "out")):
        with pytest.raises(UserError, match=r"blocks\.0\.wave is .*register_buffer\(NAME, TENSOR\)"):
            wanted()


@pytest.mark.parametrize(
    ("body", "made"),
    [
        (f"({RIGHT}).mean(1, keepdim=True)", r"a tensor \(1, 1, 32\) of one \(1, 8, 32\)"),
        (f"({RIGHT}, None)", "a tuple of one"),
        ("None", "a NoneType of one"),
    ],
)
def test_a_block_that_returns_something_else_is_refused(use, body, made):
    use(BLOCK.format(body))
    model = gptstar.GPT(tiny_model(block="mine", position="learned"))
    with pytest.raises(ValueError, match=rf"model\.block=mine \(layer 0\) makes {made}"):
        loss_within_documents(model, None)(TOKENS, TOKENS, None)


@pytest.mark.parametrize(("body", "sees"), [(RIGHT, False), (f"{RIGHT} + x_BTC.roll(-1, 1)", True)])
def test_who_sees_what_he_is_to_predict_is_refused(use, body, sees):
    use(BLOCK.format(body))
    model = gptstar.GPT(tiny_model(block="mine", position="learned"))
    state = torch.get_rng_state()
    if sees:
        with pytest.raises(UserError, match=r"sees tokens that come later \(with Mine\)"):
            refuse_foresight(model)
    else:
        refuse_foresight(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_norms_and_activations_are_given_their_settings(use):
    use("""
@add(NORMS, "mine", power=1.0)
class Mine(nn.LayerNorm):
    def __init__(self, width, eps, own):
        super().__init__(width, eps)
        self.power = own["power"]

@add(ACTIVATIONS, "swish", a=1.0)
@gated
def swish(x, own):
    gate, up = x.chunk(2, -1)
    return gate * (own["a"] * gate).sigmoid() * up
""")
    made = []
    for a in (1.0, 3.0):
        torch.manual_seed(0)
        own = {"power": 2.0, "a": a}
        made.append(gptstar.GPT(tiny_model(block="sequential", norm="mine", activation="swish", own=own)))
    assert made[0].norm.power == 2 and list(made[0].blocks[0].feedforward.inputs.parts) == ["gate", "up"]
    assert not torch.equal(made[0](TOKENS), made[1](TOKENS))
    torch.manual_seed(0)
    silu = gptstar.GPT(tiny_model(block="sequential", activation="swiglu"))
    torch.testing.assert_close(made[0](TOKENS), silu(TOKENS))


@pytest.mark.parametrize("kind", [None, [1, 2]])
def test_the_usual_value_of_a_setting_is_a_number_or_a_word(use, kind):
    with pytest.raises(UserError, match=r"the usual value of sizes is .*: settings are numbers, words, true and false"):
        use(f'@add(BLOCKS, "mine", sizes={kind})\nclass Mine(SequentialBlock): pass')


def test_a_block_is_a_block(use):
    use('@add(BLOCKS, "mine")\nclass Mine(nn.Module): pass')
    with pytest.raises(ValueError, match=r"model\.block=mine is no subclass of gptstar\.model\.block\.Block"):
        gptstar.GPT(tiny_model(block="mine"))
