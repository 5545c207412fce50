"""Which figures share a table, what it says, and that the plot holds every series."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from gptstar.evaluation.baselines import baseline_rows
from gptstar.evaluation.contexts import draw_sweep, sweep_table, sweeps


def row(checkpoint: str, context: int, value: float, **changes) -> dict:
    metrics = {name: {"value": value} for name in ("token_perplexity", "bits_per_byte", "bits_per_character")}
    usual = {"kind": "perplexity", "checkpoint": checkpoint, "max_length": context, "stride": context, "text": "t"}
    usual |= {"text_sha256": "1", "preset": None, "protocol": "exact", "tokenizer": "a", "vocabulary": 50257}
    return {**usual, "trained_length": 512, "longest": None, "position": "alibi", "metrics": metrics, **changes}


ROWS = [
    row("runs/alibi/checkpoints/step-9", 512, 30.0),
    row("runs/alibi/checkpoints/step-9", 1024, 28.5),
    row("runs/learned/checkpoints/step-9", 512, 29.0, longest=512, position="learned"),
    row("runs/rotary/checkpoints/step-9", 512, 29.5, position="rotary"),
    row("runs/rotary/checkpoints/step-9", 1024, 1234.5, position="rotary"),
]


def test_the_table_has_the_best_in_bold_and_says_where_a_model_ends():
    (sweep,) = sweeps([*ROWS, {"task": "piqa", "metrics": {}}])
    assert sweep_table(sweep).splitlines() == [
        "| model | positions | training context | ctx 512 | ctx 1024 |",
        "|---|---|---|---|---|",
        "| alibi | alibi | 512 | 30.000 | **28.500** |",
        "| learned | learned | 512 | **29.000** | reads 512 |",
        "| rotary | rotary | 512 | 29.500 | 1234 |",
    ]


def test_a_stride_is_a_line_of_its_own_and_what_was_not_measured_a_dash():
    (sweep,) = sweeps([*ROWS[:2], row("runs/alibi/checkpoints/step-9", 512, 27.0, stride=64)])
    assert sweep_table(sweep).splitlines()[2:] == [
        "| alibi | alibi | 512 | 30.000 | **28.500** |",
        "| alibi, stride 64 | alibi | 512 | **27.000** | - |",
    ]


def test_a_precision_is_a_line_of_its_own_where_there_are_several():
    rows = [row(name, 512, 30.0, dtype=dtype) for name, dtype in (("a", "fp32"), ("a", "bf16"), ("b", "fp32"))]
    (sweep,) = sweeps(rows)
    assert list(sweep.names().values()) == ["a, fp32", "a, bf16", "b"]


def test_only_the_same_text_by_the_same_protocol_is_compared():
    others = [row("a", 512, 1.0, text_sha256="2"), row("a", 512, 1.0, protocol="original"), row("b", 512, 1.0)]
    assert [len(sweep.rows) for sweep in sweeps([*others, row("a", 1024, 2.0)])] == [1, 1, 2]
    preset = row("a", 512, 1.0, preset="enwik8", protocol="original", text="enwik8", text_sha256="3")
    found = sweeps([preset, *baseline_rows(["gpt127"])])
    assert [(sweep.text, len(sweep.rows)) for sweep in found] == [("enwik8", 6), ("wikitext2", 5), ("text8", 5)]


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({}, "token_perplexity"),
        ({"tokenizer": "b"}, "bits_per_byte"),
        ({"vocabulary": 4096}, "bits_per_byte"),
    ],
)
def test_tokens_of_different_tokenizers_are_not_compared(changes, metric):
    (sweep,) = sweeps([ROWS[0], row("b", 512, 1.0, **changes)])
    assert sweep.metric == metric


@pytest.mark.parametrize(("text", "metric"), [("enwik8", "bits_per_byte"), ("text8", "bits_per_character")])
def test_the_published_metric_of_a_text_is_shown(text, metric):
    (sweep,) = sweeps([row("a", 512, 1.0, text=text, preset=text)])
    assert sweep.metric == metric


def test_the_plot_shows_every_series_the_trained_length_and_where_a_model_ends(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (drawn.append(self), save(self, *args, **more)))
    (sweep,) = sweeps(ROWS)
    draw_sweep(sweep, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "alibi (alibi)",
        "learned (learned, reads at most 512)",
        "rotary (rotary)",
    ]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["alibi (alibi)"] == [[512, 30.0], [1024, 28.5]]
    assert [text.get_text() for text in axes.texts] == ["trained on 512"]
    assert [512, 29.0] in [line.get_xydata()[-1].tolist() for line in axes.lines if line.get_marker() == "x"]
    assert axes.get_xscale() == axes.get_yscale() == "log" and list(axes.get_xticks()) == [512, 1024]
