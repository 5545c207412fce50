"""Plots hold every curve and every effect, in the colours of the page."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gptstar.lab.report.look import DARK, LIGHT, axes, styles
from gptstar.lab.report.plots import draw_plots
from gptstar.lab.study import Study
from lab.studies import drawn_from, five, one_seed


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: figures.append(self))
    return figures


def test_files_and_captions(tmp_path):
    made = draw_plots(five(), tmp_path)
    assert list(made) == ["loss_tokens.png", "loss_time.png", "loss_flops.png", "effects.png"]
    assert {path.name for path in tmp_path.iterdir()} == set(made)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in made)


def test_curves_have_bands_and_the_end_in_sight(drawn, tmp_path):
    study = five()
    draw_plots(study, tmp_path)
    panel = drawn[1].axes[0]
    assert panel.get_xlabel() == "training time (minutes)" and panel.get_ylabel() == "validation loss (nats/token)"
    assert [line.get_label() for line in panel.lines] == [variant.name for variant in study.variants]
    assert [to_hex(line.get_color()) for line in panel.lines] == list(LIGHT[:5])
    assert panel.lines[0].get_xdata()[-1] == pytest.approx(6e6 / 2000 / 60)
    assert len(panel.collections) == 5
    low, high = panel.get_ylim()
    ends = [variant.curves["seconds"].mean[-1] for variant in study.variants]
    first = study.variants[0].curves["seconds"].mean[0]
    assert low < min(ends) and max(ends) < high < first


def test_effects_are_drawn_with_their_intervals(drawn, tmp_path):
    draw_plots(five(), tmp_path)
    panel = drawn[3].axes[0]
    whiskers = [list(line.get_xdata()) for line in panel.lines if line.get_linewidth() == 2]
    assert whiskers[1] == pytest.approx([-3.8, -2.4]) and len(whiskers) == 4
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [v.name for v in five().variants[1:]]
    assert panel.texts[1].get_text() == "-3.10 (-3.80 to -2.40)  better"


@pytest.mark.parametrize("name", ["alone", "many", "one_seed"])
def test_any_study_can_be_drawn(name, tmp_path):
    made = draw_plots(drawn_from()[name], tmp_path)
    assert ("effects.png" in made) == (name != "alone")


def test_without_curves_there_is_nothing_to_draw(tmp_path):
    study = Study("x", "loss", "gpt2", "", [])
    assert draw_plots(study, tmp_path) == {} and not list(tmp_path.iterdir())


def test_a_variant_is_told_from_every_other():
    study = drawn_from()["many"]
    found = styles(study)
    assert len(set(found.values())) == len(study.variants) == 11
    assert len({style.light for style in list(found.values())[:9]}) == 9
    assert found["gpt2"].dash == () and found["gpt2"].light == LIGHT[0]


def test_units_suit_the_longest_run():
    assert [(axis.label, axis.unit) for axis in axes(one_seed())] == [
        ("tokens (millions)", "million tokens"),
        ("training time (minutes)", "minutes"),
        ("training compute (teraFLOPs)", "teraFLOPs"),
    ]


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, "#ffffff"), (DARK, "#15171a")])
def test_lines_stand_out_from_the_page(colours, paper):
    for colour in colours:
        dark, bright = sorted([luminance(colour), luminance(paper)])
        assert (bright + 0.05) / (dark + 0.05) >= 3, colour
    assert len(set(colours)) == len(colours) == 9
