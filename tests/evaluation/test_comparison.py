"""What shares a column, what is best, what is marked."""

from __future__ import annotations

import math

import pytest

from gptstar.errors import UserError
from gptstar.evaluation.baselines import baseline_rows
from gptstar.evaluation.comparison import Cell, Column, Comparison, Entry, compare

ACC = Column("piqa", "acc", higher_is_better=True)
PPL = Column("lambada_openai", "perplexity", higher_is_better=False)


def row(checkpoint: str, task: str = "piqa", **changes) -> dict:
    """As evaluate.py writes it; metrics={name: (value, stderr)}."""
    metrics = changes.pop("metrics", {"acc": (0.6, 0.01)})
    usual = {"task": task, "part_of": None, "checkpoint": checkpoint, "dtype": "fp32", "max_length": 1024}
    usual |= {"limit": None, "documents": 1838, "of": 1838, "num_fewshot": 0, "date": "2026-11-20T00:00:00Z"}
    made = {
        name: {"value": value, "stderr": stderr, "higher_is_better": name.startswith("acc")}
        for name, (value, stderr) in metrics.items()
    }
    return {**usual, "metrics": made, **changes}


def perplexity_row(checkpoint: str, context: int, value: float, **changes) -> dict:
    usual = {"kind": "perplexity", "text": "wikitext2", "preset": "wikitext2", "protocol": "original"}
    usual |= {"stride": context, "vocabulary": 50257, "max_length": context, "limit": None}
    return (
        row(checkpoint, "wikitext2", metrics={"token_perplexity": (value, 0.1), "loss": (3.0, 0.1)}, **usual) | changes
    )


def entry(label: str, column: Column, value: float, stderr: float | None, **about) -> Entry:
    return Entry(label, [about], {column: Cell(value, stderr, about)})


@pytest.mark.parametrize(
    ("column", "ours", "mark"),
    [
        (ACC, (0.6 + 2.01 * math.hypot(0.01, 0.02), 0.02), "▲"),
        (ACC, (0.6 - 2.01 * math.hypot(0.01, 0.02), 0.02), "▼"),
        (ACC, (0.6 + 1.99 * math.hypot(0.01, 0.02), 0.02), ""),
        (PPL, (0.5, 0.0), "▲"),
        (PPL, (0.7, 0.0), "▼"),
        (ACC, (0.6 + 2.01 * math.hypot(0.01, 0.01), None), "△"),
        (ACC, (0.6 - 2.01 * math.hypot(0.01, 0.01), None), "▽"),
        (ACC, (0.6 + 1.99 * math.hypot(0.01, 0.01), None), ""),
        (PPL, (0.5, None), "△"),
        (Column("x", "y"), (9.0, 0.0), ""),  # nobody knows what is better
    ],
)
def test_a_difference_is_marked_beyond_two_standard_errors(column, ours, mark):
    reference, other = entry("a", column, 0.6, 0.01), entry("b", column, *ours)
    comparison = Comparison([reference, other], [column], reference)
    assert comparison.mark(other, column) == mark and comparison.mark(reference, column) == ""


def test_a_reference_without_standard_error_takes_ours_and_two_of_them_mark_nothing():
    published, ours = entry("a", ACC, 0.6, None, published=True), entry("b", ACC, 0.65, 0.01)
    other = entry("c", ACC, 0.9, None, published=True)
    comparison = Comparison([published, ours, other], [ACC], published)
    assert comparison.mark(ours, ACC) == "△" and comparison.mark(other, ACC) == ""
    assert comparison.mark(ours, PPL) == ""


def test_the_best_of_a_column_depends_on_its_direction():
    entries = [entry("a", ACC, 0.6, None), entry("b", ACC, 0.7, None), entry("c", PPL, 9.0, None)]
    entries[0].cells[PPL] = Cell(10.0, None, {})
    comparison = Comparison(entries, [ACC, PPL], entries[0])
    assert comparison.best(ACC) == 0.7 and comparison.best(PPL) == 9.0
    assert Comparison(entries[:1], [ACC], entries[0]).best(ACC) is None
    unknown = Column("x", "y")
    entries[0].cells[unknown] = entries[1].cells[unknown] = Cell(1.0, None, {})
    assert comparison.best(unknown) is None


def test_the_two_wikitext_perplexities_never_share_a_column():
    rows = [
        row(
            "runs/a/checkpoints/step-1",
            "wikitext",
            metrics={"word_perplexity": (40.0, None), "bits_per_byte": (1.0, None)},
        ),
        perplexity_row("runs/a/checkpoints/step-1", 1024, 38.0),
        perplexity_row("runs/a/checkpoints/step-1", 2048, 36.0),
        *baseline_rows(["gpt127", "gpt_neo_125m"]),
    ]
    comparison = compare(rows)
    titles = {column.title: column for column in comparison.columns if "ikiText" in column.title}
    assert list(titles) == [
        "WikiText (lm-eval) word ppl ↓",
        "WikiText-2 token ppl (ctx 1024) ↓",
        "WikiText-2 token ppl (ctx 2048) ↓",
    ]
    found = {e.label: [e.cells[c].value if c in e.cells else None for c in titles.values()] for e in comparison.entries}
    assert found == {"a": [40.0, 38.0, 36.0], "GPT-127*": [None, 37.99, 36.29], "GPT-Neo 125M": [32.285, None, None]}


def test_token_perplexity_of_another_vocabulary_protocol_or_text_is_not_beside_it():
    rows = [
        perplexity_row("a", 1024, 38.0),
        perplexity_row("b", 1024, 12.0, vocabulary=4096),
        perplexity_row("c", 1024, 38.0, protocol="exact"),
        perplexity_row("d", 1024, 38.0, preset=None),
        perplexity_row("e", 512, 38.0),
    ]
    comparison = compare(rows)
    assert [column.setting for column in comparison.columns] == ["ctx 1024", "ctx 1024, vocabulary 4,096"]
    assert [len(entry.cells) for entry in comparison.entries] == [1, 1, 0, 0, 0]


def test_what_was_measured_differently_is_another_line():
    rows = [row("a"), row("a", "hellaswag"), row("a", max_length=2048), row("a", limit=200), row("b", dtype="bf16")]
    assert [entry.label for entry in compare(rows).entries] == [
        "a, ctx 1024, limit none",
        "a, ctx 2048, limit none",
        "a, ctx 1024, limit 200",
        "b",
    ]


def test_other_numbers_of_examples_are_another_column():
    (entry,) = compare([row("a"), row("a", num_fewshot=5)]).entries
    assert [column.title for column in entry.cells] == ["PIQA acc % ↑", "PIQA acc % (5-shot) ↑"]


def test_columns_are_in_a_fixed_order_and_tasks_nobody_knows_in_that_of_measuring():
    rows = [
        row("a", "zebra"),
        row("a", "apple"),
        row("a", "winogrande"),
        row("a", "lambada_openai", metrics={"perplexity": (9.0, 1.0), "acc": (0.3, 0.01)}),
    ]
    columns = [(column.task, column.metric) for column in compare(rows).columns]
    assert columns == [
        ("lambada_openai", "acc"),
        ("lambada_openai", "perplexity"),
        ("winogrande", "acc"),
        ("zebra", "acc"),
        ("apple", "acc"),
    ]


def test_the_later_measurement_counts():
    rows = [row("a", metrics={"acc": (0.7, 0.01)}, date="2026-11-21"), row("a", metrics={"acc": (0.5, 0.01)})]
    for given in (rows, rows[::-1]):
        (entry,) = compare(given).entries
        assert entry.cells[ACC].value == 0.7


def test_rows_may_lack_what_is_not_needed_and_have_more():
    comparison = compare([{"task": "new", "metrics": {"acc": {"value": 0.5}}, "later": 1}, row("a", "new")])
    (column,) = comparison.columns
    assert column.title == "new acc % ↑" and len(comparison.entries) == 2
    assert comparison.entries[0].cells[column].stderr is None


def test_subjects_of_a_group_own_held_out_text_and_missing_values_are_left_out():
    rows = [row("a", "mmlu_law", part_of="mmlu"), row("a", "held_out"), row("a", metrics={"acc": (None, None)})]
    comparison = compare([*rows, row("a", "mmlu")])
    assert [column.task for column in comparison.columns] == ["mmlu"]


def test_the_reference_is_the_first_measured_one_or_named():
    rows = [*baseline_rows(["gpt127"]), row("a"), row("b")]
    assert compare(rows).reference.label == "a"
    assert compare(rows, "b").reference.label == "b"
    assert compare(rows, "gpt127").reference.label == compare(rows[:1]).reference.label == "GPT-127*"
    with pytest.raises(UserError, match=r"reference='c' is not in the table: choose among gpt127, GPT-127\*, a, b"):
        compare(rows, "c")
    with pytest.raises(UserError, match="there are no results to compare"):
        compare([])
    with pytest.raises(UserError, match=r"with evaluate.py first; held-out loss, .* is compared by compare\.py"):
        compare([row("a", "held_out")])
