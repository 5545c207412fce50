"""The tables themselves: bold, marks, errors, documents, the two perplexities, provenance."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gptstar.errors import UserError
from gptstar.evaluation.baselines import baseline_rows
from gptstar.evaluation.comparison import Cell, Column, compare
from gptstar.evaluation.report import (
    comparison_markdown,
    comparison_tables,
    draw_sweeps,
    figure,
    find_results,
    remarks,
    write_markdown,
)
from gptstar.evaluation.results import FORMAT


def task_row(name: str, acc: float, stderr: float = 0.01, **changes) -> dict:
    return {
        "task": "piqa",
        "part_of": None,
        "metrics": {"acc": {"value": acc, "stderr": stderr, "higher_is_better": True}},
        "documents": 1838,
        "of": 1838,
        "task_version": 1.0,
        "num_fewshot": 0,
        "limit": None,
        "checkpoint": f"runs/{name}/checkpoints/step-00000600",
        "model": "star_3m",
        "parameters": 2_578_336,
        "training_tokens": 1_228_800,
        "max_length": 512,
        "dtype": "fp32",
        "device": "cpu",
        "harness": "0.4.13",
        "gptstar": "0.1.0",
        "torch": "2.13.0",
        "commit": "0123456789ab",
        "hardware": "a CPU, 2 threads",
        "seconds": 65.4,
        "date": "2026-11-20T00:00:00Z",
        **changes,
    }


def text_row(name: str, context: int, value: float, **changes) -> dict:
    metrics = {"token_perplexity": {"value": value, "stderr": 0.2, "higher_is_better": False}}
    about = {"kind": "perplexity", "task": "wikitext2", "text": "wikitext2", "preset": "wikitext2", "position": "alibi"}
    about |= {"protocol": "original", "stride": context, "max_length": context, "text_sha256": "1", "tokens": 287644}
    about |= {"vocabulary": 50257, "trained_length": 512, "longest": None, "num_fewshot": None, "task_version": None}
    return {**task_row(name, 0.5), "metrics": metrics, **about, **changes}


def wikitext_row(name: str, value: float) -> dict:
    metrics = {"word_perplexity": {"value": value, "stderr": None, "higher_is_better": False}}
    return {**task_row(name, 0.5), "task": "wikitext", "metrics": metrics, "documents": 62, "of": 62}


def table_of(text: str) -> list[list[str]]:
    """The cells of the first table."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    end = next((n for n in range(start, len(lines)) if not lines[n].startswith("|")), len(lines))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]


@pytest.mark.parametrize(
    ("column", "value", "stderr", "text"),
    [
        (Column("piqa", "acc"), 0.63166, 0.01124, "63.17 ± 1.12"),
        (Column("x", "exact_match,strict"), 0.05, None, "5.00"),
        (Column("x", "perplexity"), 28.6049, 0.9, "28.60 ± 0.90"),
        (Column("x", "perplexity"), 12345.6, 100.4, "12,346 ± 100"),
        (Column("x", "bits_per_byte"), 1.34149, None, "1.341"),
        (Column("x", "score"), -2.5, 0.25, "-2.500 ± 0.250"),
    ],
)
def test_figures_show_the_digits_that_mean_something(column, value, stderr, text):
    assert figure(Cell(value, stderr, {}), column) == text


def test_the_comparison_has_values_errors_bold_marks_and_shares_of_documents():
    rows = [
        task_row("a", 0.60),
        task_row("b", 0.65, documents=200, limit=200),
        task_row("c", 0.61),
        *baseline_rows(["gpt3_125m"]),
    ]
    table = table_of(comparison_markdown(compare(rows), [], None))
    place = table[0].index("PIQA acc % ↑")
    assert [row[0] for row in table[2:]] == ["a", "b", "c", "GPT-3 125M"]
    assert [row[place] for row in table[2:]] == ["60.00 ± 1.00", "65.00 ± 1.00 ▲ n=200", "61.00 ± 1.00", "**65.07** △"]
    assert [row[1:3] for row in table[2:]] == [["2.58M", "1.23M"]] * 3 + [["125M", "300B"]]
    assert table[2][table[0].index("LAMBADA acc % ↑")] == "-"


def test_the_two_wikitext_perplexities_stand_in_two_labelled_columns():
    rows = [wikitext_row("a", 45.1), text_row("a", 1024, 38.2), *baseline_rows(["gpt127", "gpt_neo_125m"])]
    text = comparison_markdown(compare(rows), [], None)
    table = table_of(text)
    words = table[0].index("WikiText (lm-eval) word ppl ↓")
    tokens = table[0].index("WikiText-2 token ppl (ctx 1024) ↓")
    assert [(row[words], row[tokens]) for row in table[2:]] == [
        ("45.10", "38.20 ± 0.20"),
        ("-", "**37.99**"),
        ("**32.28**", "-"),
    ]
    assert "They are different quantities." in text
    assert "different quantities" not in comparison_markdown(compare([task_row("a", 0.6)]), [], None)


def test_everything_a_reader_needs_to_cite_a_number_is_there():
    rows = [task_row("a", 0.6, documents=200, limit=200), text_row("a", 1024, 38.2), *baseline_rows(["gpt2_small_21b"])]
    text = comparison_markdown(compare(rows), [], Path("out/accuracies.png"))
    for words in (
        "| piqa | acc % | 60.00 ± 1.00 | 200 of 1,838 | 0 | 512 | 1.0 | 65 |",
        "| wikitext2 | token_perplexity | 38.20 ± 0.20 | 287,644 tokens | - | 1024, original | - | 65 |",
        "- checkpoint: runs/a/checkpoints/step-00000600",
        "- hardware: a CPU, 2 threads",
        "- lm-evaluation-harness: 0.4.13",
        "- precision: fp32",
        "- commit: 0123456789ab",
        "better or worse than a by more than two standard errors",
        "- GPT-125M (GPT-2 Small): GPT\\* readme and training log",
        "The source says neither which WikiText perplexity it is",
        "![accuracies](accuracies.png)",
    ):
        assert words in text, words


def test_a_terminal_gets_the_same_figures():
    console = Console(file=io.StringIO(), width=120)
    rows = [task_row("a", 0.6), task_row("b [x]", 0.65), *baseline_rows(["gpt127"])]
    (table,) = comparison_tables(compare(rows), console.width)
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert all(label in lines[1] for label in ("a", "b [x]", "GPT-127*"))
    assert any("PIQA acc %" in line and "60.00 ± 1.00" in line and "65.00 ± 1.00 ▲" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_narrow_terminal_gets_more_tables_and_no_word_is_cut(width):
    console = Console(file=io.StringIO(), width=width)
    comparison = compare([task_row("a", 0.6), *baseline_rows(["all"])])
    tables = comparison_tables(comparison, width)
    for table in tables:
        console.print(table)
    said = console.file.getvalue()
    assert len(tables) == {60: 5, 80: 3, 120: 2, 400: 1}[width] and "…" not in said
    assert said.count("LAMBADA ppl ↓ ") == len(tables) and "60.00 ± 1.00" in said and "70.20" in said


def test_what_was_measured_has_its_row_even_where_nothing_can_be_compared():
    held_out = task_row("a", 0, task="held_out", metrics={"loss": {"value": 3.2}}, max_length=256)
    comparison = compare([held_out, task_row("b", 0.6), *baseline_rows(["gpt127"])])
    text = comparison_markdown(comparison, [], None)
    assert [entry.label for entry in comparison.entries] == ["a", "b", "GPT-127*"]
    assert "| a | 2.58M | 1.23M | - |" in text and "better or worse than b by" in text
    assert "| held_out | loss | 3.200 | 1,838 | 0 | 256 |" in text
    (said,) = remarks(comparison)
    assert said.endswith("evaluate.py checkpoint=runs/a/checkpoints/step-00000600 measures it") and said in text
    together = compare([held_out, task_row("a", 0.6)])  # another context, but the same model
    assert [entry.label for entry in together.entries] == ["a"] and not remarks(together)


def test_sweeps_are_shown_with_published_ones_but_not_for_their_own_sake(tmp_path):
    rows = [text_row("a", 512, 40.0), text_row("a", 1024, 38.0), *baseline_rows(["gpt127"])]
    plots = draw_sweeps(rows, tmp_path / "contexts")
    assert [(sweep.text, path) for sweep, path in plots] == [("wikitext2", tmp_path / "contexts.png")]
    text = comparison_markdown(compare(rows), plots, None)
    assert "## wikitext2: token perplexity by context (original protocol)" in text and "1% too low" in text
    assert "| GPT-127\\* | alibi | 512 | - | **37.990** | **36.290** |" in text and "![wikitext2](contexts.png)" in text
    assert draw_sweeps(baseline_rows(["gpt127"]), tmp_path / "x") == []
    ((_, path),) = draw_sweeps(rows[:1], tmp_path / "y")
    assert path is None and not (tmp_path / "y.png").exists()


def test_plots_of_several_texts_and_protocols_have_names_of_their_own(tmp_path):
    rows = [text_row("a", context, 40.0, **changes) for context in (512, 1024) for changes in CHANGES]
    names = [path.name for _, path in draw_sweeps(rows, tmp_path / "p")]
    assert names == ["p-wikitext2-original.png", "p-wikitext2-exact.png", "p-a_book__2_files_.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in names)


CHANGES = ({}, {"protocol": "exact"}, {"preset": None, "text": "a book (2 files)", "text_sha256": "2"})


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": FORMAT, "results": rows}))
    return path


def test_each_results_file_gets_its_markdown(tmp_path):
    path = write_markdown(write(tmp_path / "results.json", [task_row("a", 0.6), wikitext_row("a", 45.0)]))
    text = path.read_text()
    assert path == tmp_path / "results.md" and text.startswith("# Results\n")
    assert "| piqa | acc % | 60.00 ± 1.00 | 1,838 | 0 | 512 | 1.0 | 65 |" in text and "| wikitext | word" in text
    rows = [text_row("a", 512, 40.0), text_row("a", 1024, 38.0)]
    text = write_markdown(write(tmp_path / "perplexity.json", rows)).read_text()
    assert "![wikitext2](perplexity.png)" in text and (tmp_path / "perplexity.png").is_file()


def test_results_are_found_in_a_run_its_evaluation_folder_or_by_name(tmp_path):
    inside = write(tmp_path / "run" / "evaluation" / "results.json", [])
    beside = write(tmp_path / "run" / "evaluation" / "perplexity.json", [])
    for source in ("run", "run/evaluation"):
        assert find_results(str(tmp_path / source)) == [inside, beside]
    assert find_results(str(beside)) == [beside]
    with pytest.raises(UserError, match=r"no results.json or perplexity.json there or in its evaluation/"):
        find_results(str(tmp_path))
