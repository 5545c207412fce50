"""The chart holds every accuracy, its error where it has one, and nothing else."""

from __future__ import annotations

from matplotlib.figure import Figure

from gptstar.evaluation.bar_chart import draw_accuracies
from gptstar.evaluation.baselines import baseline_rows
from gptstar.evaluation.comparison import compare


def row(name: str, task: str, metrics: dict) -> dict:
    return {
        "task": task,
        "checkpoint": name,
        "metrics": {k: {"value": v, "stderr": e} for k, (v, e) in metrics.items()},
    }


def test_bars_are_percent_with_errors_where_they_are_known(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: drawn.append(self))
    rows = [
        row("a", "piqa", {"acc": (0.6, 0.01), "acc_norm": (0.61, 0.01)}),
        row("a", "lambada_openai", {"acc": (0.3, None), "perplexity": (30.0, 1.0)}),
        *baseline_rows(["gpt127"]),
    ]
    assert draw_accuracies(compare(rows), tmp_path / "x.png") == tmp_path / "x.png"
    axes = drawn[0].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        "LAMBADA acc",
        "PIQA acc",
        "PIQA acc_norm",
        "HellaSwag acc",
        "Winogrande acc",
    ]
    bars = [(round(bar.get_y() + bar.get_height() / 2, 6), round(bar.get_width(), 6)) for bar in axes.patches]
    assert sorted(bars) == [(0, 30), (1, 36.23), (3, 60), (4, 63.17), (6, 61), (8, 28.07), (10, 51.46)]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "GPT-127* (published)"]
    ends = sorted(line.get_segments()[0][1][0] for line in axes.collections)
    assert [round(end, 6) for end in ends] == [61, 62]


def test_without_accuracies_there_is_no_chart(tmp_path):
    rows = [row("a", "wikitext", {"word_perplexity": (30.0, None)})]
    assert draw_accuracies(compare(rows), tmp_path / "x.png") is None and not list(tmp_path.iterdir())
