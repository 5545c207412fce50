"""Planted optima are found, and what a study cannot say is not said."""

import math

import numpy as np
import pytest

from gptstar.errors import UserError
from gptstar.lab.reading.runs import Run
from gptstar.lab.transfer import MUP, STANDARD, transfer, transfer_markdown, write_transfer

RATES = [2.0**n for n in range(-10, -3)]


def run(width: int, base: int, rate: float, optimum: float, seed: int, **changes) -> Run:
    config = {"model": {"d_model": width, "mup_base_width": base}, "optimizer": {"lr": rate}}
    loss = 5 - math.log2(width) / 10 + 0.1 * math.log2(rate / optimum) ** 2 + 0.001 * (-1) ** seed
    name = f"{width}-{base}-{rate}-{seed}"
    return Run(**{**dict(source=name, name=name, config=config, seed=seed, final_loss=loss), **changes})


def study() -> list[Run]:
    """At the base width both are one; without muP the optimum falls by an octave a doubling of the width."""
    optima = {(64, 64): 2**-6.25, (128, 0): 2**-7.25, (256, 0): 2**-8.25, (128, 64): 2**-6.25, (256, 64): 2**-6.25}
    return [run(w, base, rate, best, seed) for (w, base), best in optima.items() for rate in RATES for seed in (0, 1)]


def test_planted_optima_are_found():
    found = transfer(study())
    assert [sweep.width for sweep in found.sweeps[STANDARD]] == [64, 128, 256]
    assert [sweep.width for sweep in found.sweeps[MUP]] == [64, 128, 256]
    assert found.octaves(STANDARD) == pytest.approx(-2) and found.octaves(MUP) == pytest.approx(0, abs=1e-9)
    assert found.cost(MUP) == 0
    assert found.cost(STANDARD) == pytest.approx(0.1 * (2.25**2 - 0.25**2))  # 2**-6 at width 256, where 2**-8 is best


def test_the_page_says_it_and_names_what_was_left_out(tmp_path):
    broken = run(256, 64, 2.0**-3, 1.0, 0, final_loss=None, problem="it was stopped at step 3")
    target = write_transfer([*study(), broken], tmp_path)
    text = target.read_text()
    assert "standard**: from width 64 to 256 the best learning rate moves by -2.00 octaves" in text
    assert f"Left out: {broken.source} (it was stopped at step 3)." in text
    assert (tmp_path / "transfer.png").stat().st_size > 1000 and "the last one tried" not in text


def test_an_optimum_at_the_edge_is_said_to_lie_beyond():
    runs = [run(w, 0, rate, 1.0, 0) for w in (64, 128) for rate in RATES]
    found = transfer(runs)
    assert found.sweeps.keys() == {STANDARD} and all(sweep.optimum == RATES[-1] for sweep in found.sweeps[STANDARD])
    assert "At width 64, 128 the best rate is the last one tried" in transfer_markdown(found)


def test_a_rate_that_diverged_is_no_edge_and_is_said():
    high = [2.0**-5, 2.0**-4]
    runs = [
        run(256, 0, r, 2**-8.25, s, final_loss=None, losses=np.array([9.0, np.nan]), problem="its loss became infinite")
        for r in high
        for s in (0, 1)
    ]
    others = [
        r for r in study() if not (r.config["model"]["d_model"] == 256 and not r.config["model"]["mup_base_width"])
    ]
    low = [run(256, 0, 2.0**n, 2**-5.5, seed) for n in (-8, -7, -6) for seed in (0, 1)]
    found = transfer([*others, *low, *runs])
    wide = found.sweeps[STANDARD][-1]
    assert wide.means[-2:] == [math.inf] * 2 and not wide.at_edge and wide.optimum == 2.0**-6
    assert not found.excluded
    text = transfer_markdown(found)
    assert "diverged | diverged" in text and "the last one tried" not in text
    one = [*low, *runs[:1], run(256, 0, high[0], 2**-5.5, 1)]  # one of two seeds diverged
    assert transfer([*others, *one]).sweeps[STANDARD][-1].means[-1] == math.inf


def test_a_run_that_does_not_say_its_rate_is_named():
    found = transfer([*study(), Run("export.csv: a", "a", {}, final_loss=3.0)])
    assert list(found.excluded) == ["export.csv: a"]


def test_too_little_is_refused():
    with pytest.raises(UserError, match="14 runs, 14 of them finished, are no study"):
        transfer([each for each in study() if each.config["model"]["d_model"] == 64])
