"""The coordinate check tells muP from the standard parametrisation, in models of seconds."""

import pytest

from gptstar.errors import UserError
from gptstar.lab.coordinates import (
    ADVANTAGE,
    MUP,
    STANDARD,
    CoordinateConfig,
    check_coordinates,
    mup,
    widened,
    write_check,
)
from gptstar.training.optimizers import OptimizerConfig
from support import tiny_model


def tiny_check(**changes) -> CoordinateConfig:
    model = tiny_model(vocab_size=64, d_model=32, n_head=4, d_head=8, d_ff=64, init_std=0.177)
    values = dict(model=model, optimizer=OptimizerConfig(lr=3e-4), widths=[32, 64, 128], d_head=8, steps=2, seeds=2)
    return CoordinateConfig(**{**values, **changes})


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_learned_is_flat_under_muP_and_grows_without(optimizer):
    lr = 3e-4 if optimizer == "adamw" else 1e-3
    found = check_coordinates(tiny_check(optimizer=OptimizerConfig(name=optimizer, lr=lr)))
    for quantity in ("block 0", "block 1", ADVANTAGE):
        assert abs(found.slope(MUP, quantity, 2)) < 0.15, quantity
        assert found.slope(STANDARD, quantity, 2) > 0.3, quantity
    assert found.slope(MUP, "logits", 0) == pytest.approx(-0.5, abs=0.1)


def test_heads_may_grow_with_the_width():
    config = tiny_check(d_head=0)
    assert [widened(config, w).head_size for w in (32, 128)] == [8, 32]
    assert mup(config, 128).attention_scale == pytest.approx(8**0.5 / 32)
    assert abs(check_coordinates(config).slope(MUP, ADVANTAGE, 2)) < 0.15


def test_a_width_that_makes_no_whole_heads_is_named():
    with pytest.raises(UserError, match=r"widths: 36 channels make model.n_head=4.5"):
        check_coordinates(tiny_check(widths=[32, 36]))


def test_the_files_hold_what_was_found(tmp_path):
    said: list[str] = []
    target = write_check(tiny_check(widths=[32, 64], steps=1, seeds=1, output_dir=str(tmp_path / "new")), said.append)
    text = target.read_text()
    assert "| right logits |" in text and (target.parent / "coordinates.png").stat().st_size > 1000
    assert "standard 64" in text and any("muP: what logits learn" in line for line in said)


@pytest.mark.parametrize(("changes", "words"), [({"widths": [32]}, "at least two"), ({"n_token": 33}, "n_token=33")])
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_check(**changes)
