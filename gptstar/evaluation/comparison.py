"""Measured and published results beside each other: what shares a column, what is best, what differs for sure.

A difference is marked where it exceeds two standard errors of the difference of two independent measurements,
|a - b| > 2 sqrt(se_a^2 + se_b^2). Models are mostly compared on the same documents, where their errors are correlated
and the true error of a difference is smaller: an unmarked difference may still be one. A published figure has no
standard error; it is taken to have that of the figure it is compared with. Where neither has one nothing is marked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from gptstar.errors import UserError
from gptstar.evaluation.baselines import GPT2_VOCABULARY
from gptstar.evaluation.labels import labels

BETTER, WORSE, BETTER_THAN_PUBLISHED, WORSE_THAN_PUBLISHED = "▲", "▼", "△", "▽"
IN_MAIN_TABLE = (1024, 2048)  # contexts of the token-level WikiText-2 perplexity; all are in the tables by context
LEFT_OUT = ("byte_perplexity", "bits_per_byte")  # say the same as word_perplexity
NOT_COMPARABLE = ("held_out",)  # each run has its own held-out text
TASK_TITLES = {
    "lambada_openai": "LAMBADA",
    "wikitext": "WikiText (lm-eval)",
    "wikitext2": "WikiText-2",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "Winogrande",
}
SHARES = ("acc", "exact_match", "f1")
METRIC_TITLES = {"perplexity": "ppl", "word_perplexity": "word ppl", "token_perplexity": "token ppl"}


@dataclass(frozen=True)
class Column:
    """One quantity: figures in it can be compared. setting: what else decides it."""

    task: str
    metric: str
    setting: str = ""
    higher_is_better: bool | None = field(default=None, compare=False)

    @property
    def percent(self) -> bool:
        """Whether it is a share of the documents."""
        return self.metric.startswith(SHARES)

    @property
    def title(self) -> str:
        """With an arrow to where better is."""
        arrow = {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]
        unit = " %" if self.percent else ""
        setting = f" ({self.setting})" if self.setting else ""
        metric = METRIC_TITLES.get(self.metric, self.metric)
        return f"{TASK_TITLES.get(self.task, self.task)} {metric}{unit}{setting}{arrow}"


@dataclass(frozen=True)
class Cell:
    """One figure, and the row of results that it is in."""

    value: float
    stderr: float | None
    row: dict

    @property
    def share(self) -> str:
        """How many documents it is of, where that is not all of them."""
        documents, of = self.row.get("documents"), self.row.get("of")
        return f"n={documents:,}" if documents and of and documents < of else ""


@dataclass
class Entry:
    """One line: a model, as it was measured or published."""

    label: str
    rows: list[dict]
    cells: dict[Column, Cell] = field(default_factory=dict)

    @property
    def published(self) -> bool:
        """Whether it is a baseline that was not measured here."""
        return bool(self.rows[0].get("published"))

    @property
    def shown(self) -> bool:
        """Whether the main table has it: what was measured here, even if nothing of it can be compared."""
        return bool(self.cells) or not self.published


@dataclass(frozen=True)
class Comparison:
    """Entries in their order, the columns they have figures in, and the entry that differences are told from."""

    entries: list[Entry]
    columns: list[Column]
    reference: Entry

    def best(self, column: Column) -> float | None:
        """The best figure of a column; None where only one entry has one, or no direction is better."""
        values = [entry.cells[column].value for entry in self.entries if column in entry.cells]
        if len(values) < 2 or column.higher_is_better is None:
            return None
        return max(values) if column.higher_is_better else min(values)

    def mark(self, entry: Entry, column: Column) -> str:
        """Whether a figure differs from the reference's by more than two standard errors; see the module."""
        ours, theirs = entry.cells.get(column), self.reference.cells.get(column)
        if entry is self.reference or ours is None or theirs is None or column.higher_is_better is None:
            return ""
        errors = [cell.stderr for cell in (ours, theirs) if cell.stderr is not None]
        if not errors:
            return ""
        difference = ours.value - theirs.value
        if abs(difference) <= 2 * math.sqrt(errors[0] ** 2 + errors[-1] ** 2):
            return ""
        better = (difference > 0) == column.higher_is_better
        if len(errors) == 2:
            return BETTER if better else WORSE
        return BETTER_THAN_PUBLISHED if better else WORSE_THAN_PUBLISHED


def compare(rows: Iterable[dict], reference: str | None = None) -> Comparison:
    """Entries of all rows. reference: an entry's label or a baseline's name; None: the first one that was measured.

    A checkpoint measured with several dtypes, contexts or numbers of documents is an entry for each. Where a figure is
    there twice the later one counts. UserError for an unknown reference.
    """
    rows = list(rows)
    if all(row.get("task") in NOT_COMPARABLE for row in rows):
        own = "; held-out loss, of each run's own text, is compared by compare.py" if rows else ""
        raise UserError(f"there are no results to compare: measure tasks with evaluate.py first{own}")
    entries = _entries(rows)
    measured = sorted((entry for entry in entries if not entry.published), key=lambda entry: not entry.cells)
    known = {str(entry.rows[0].get("baseline")): entry for entry in entries if entry.published}
    known |= {entry.label: entry for entry in entries}
    if reference is not None and reference not in known:
        raise UserError(f"reference={reference!r} is not in the table: choose among {', '.join(known)}")
    first = known[reference] if reference is not None else (measured or entries)[0]
    return Comparison(entries, _columns(entries), first)


def _entries(rows: list[dict]) -> list[Entry]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if not _has_own_context(row):
            key = (row.get("checkpoint"), row.get("dtype"), row.get("max_length"), row.get("limit"))
            groups.setdefault(key, []).append(row)
    for row in rows:
        if _has_own_context(row):  # joins what else was measured of the model
            same = [key for key in groups if key[:2] == (row.get("checkpoint"), row.get("dtype"))]
            groups.setdefault(same[0] if same else (row.get("checkpoint"), row.get("dtype"), None, None), []).append(
                row
            )
    position = {id(row): number for number, row in enumerate(rows)}
    groups = dict(sorted(groups.items(), key=lambda group: min(position[id(row)] for row in group[1])))
    names = labels(str(checkpoint) for checkpoint, *_ in groups)
    entries = []
    for key, found in groups.items():
        twins = [other for other in groups if other[0] == key[0]]
        told = [
            text
            for place, text in ((1, "{}"), (2, "ctx {}"), (3, "limit {}"))
            if len({other[place] for other in twins}) > 1
            for text in [text.format(key[place] if key[place] is not None else "none")]
        ]
        entry = Entry(", ".join([names[str(key[0])], *told]), found)
        for row in sorted(found, key=lambda row: str(row.get("date", ""))):
            entry.cells |= _cells(row)
        entries.append(entry)
    return entries


def _has_own_context(row: dict) -> bool:
    return row.get("kind") == "perplexity" or row.get("task") in NOT_COMPARABLE


def _cells(row: dict) -> dict[Column, Cell]:
    found: dict[Column, Cell] = {}
    if row.get("task") in NOT_COMPARABLE:
        return found
    for name, metric in row.get("metrics", {}).items():
        value, higher = metric.get("value"), _higher_is_better(name, metric.get("higher_is_better"))
        if isinstance(value, int | float) and (setting := _setting(row, name)) is not None:
            found[Column(str(row.get("task")), name, setting, higher)] = Cell(value, metric.get("stderr"), row)
    return found


def _higher_is_better(metric: str, told: bool | None) -> bool | None:
    if told is None and metric.startswith(SHARES):
        return True
    if told is None and ("perplexity" in metric or metric.startswith(("bits_per", "loss"))):
        return False
    return told


def _setting(row: dict, metric: str) -> str | None:
    """What else decides a figure; None for what is not in the main table."""
    if row.get("kind") != "perplexity":
        if metric in LEFT_OUT or row.get("part_of"):
            return None
        shots = row.get("num_fewshot")
        return f"{shots}-shot" if shots else ""
    context, shown = row.get("max_length"), row.get("preset") == "wikitext2" and row.get("protocol") == "original"
    if not shown or metric != "token_perplexity" or context not in IN_MAIN_TABLE:
        return None
    vocabulary = row.get("vocabulary", GPT2_VOCABULARY)
    return f"ctx {context}" + (f", vocabulary {vocabulary:,}" if vocabulary != GPT2_VOCABULARY else "")


def _columns(entries: list[Entry]) -> list[Column]:
    """The well-known tasks first, the others in the order in which they were measured; accuracies first of each."""
    columns = list(dict.fromkeys(column for entry in entries for column in entry.cells))
    known = list(TASK_TITLES)
    tasks = known + [column.task for column in columns if column.task not in known]
    return sorted(columns, key=lambda column: (tasks.index(column.task), column.setting, not column.percent))
