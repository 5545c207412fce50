"""Results as tables: `results.md` beside each results.json, and the comparison of any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from gptstar.environment import door_command
from gptstar.errors import UserError
from gptstar.evaluation.comparison import Cell, Column, Comparison, Entry
from gptstar.evaluation.contexts import TITLES, Sweep, draw_sweep, sweep_table, sweeps
from gptstar.evaluation.labels import markdown
from gptstar.evaluation.results import read_results

FRAME = 3  # characters around a cell of a table in a terminal
FILES = ("results.json", "perplexity.json")
LEGEND = """\
**Bold**: the best of its column. ▲ ▼: better or worse than {reference} by more than two standard errors of the
difference, 2 √(se² + se²), as of independent measurements; where both models saw the same documents this is a cautious
test. △ ▽: the same where one of the two is published without a standard error and is taken to have the other's."""
TWO_PERPLEXITIES = """\
WikiText (lm-eval) word ppl is lm-evaluation-harness's: over detokenised pages, a word. WikiText-2 token ppl is GPT*'s:
over the raw test split, a token, in windows of ctx tokens. They are different quantities."""

TOO_LOW = """\
As published, the sum of losses ends with the last whole window and the division counts all tokens: WikiText-2's
figures are 1% too low, and 2% at 3072. protocol=exact has no such gap."""


def find_results(source: str) -> list[Path]:
    """The result files that a path means: itself, or results.json and perplexity.json in it or its evaluation/.

    Raises UserError where there are none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    found = [file for folder in (path, path / "evaluation") for name in FILES if (file := folder / name).is_file()]
    if not found:
        raise UserError(f"results={source}: no {' or '.join(FILES)} there or in its evaluation/: run evaluate.py first")
    return found


def write_markdown(results: Path) -> Path:
    """results.md beside results.json (perplexity.md and .png beside perplexity.json), of all that is in it."""
    rows, path = read_results(results), results.with_suffix(".md")
    lines = [f"# {'Perplexity' if results.stem == 'perplexity' else 'Results'}"]
    for sweep, plot in draw_sweeps(rows, results.with_suffix("")):
        lines += _sweep_section(sweep, plot)
    by_checkpoint: dict[str, list[dict]] = {}
    for row in rows:
        by_checkpoint.setdefault(str(row.get("checkpoint")), []).append(row)
    for checkpoint, found in by_checkpoint.items():
        lines += [f"## {markdown(checkpoint)}", _origin(found), _figures(found)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def draw_sweeps(rows: Iterable[dict], stem: Path) -> list[tuple[Sweep, Path | None]]:
    """The sweeps that are in rows, and their plots: STEM.png, or STEM-TEXT.png of several; None for one context."""
    found = [sweep for sweep in sweeps(rows) if any(not row.get("published") for row in sweep.rows)]
    plots: list[tuple[Sweep, Path | None]] = []
    for sweep in found:
        same = [other.text for other in found].count(sweep.text) > 1
        name = "".join(c if c.isalnum() else "_" for c in sweep.text) + (f"-{sweep.protocol}" if same else "")
        path = stem.with_name(f"{stem.name}-{name}.png" if len(found) > 1 else f"{stem.name}.png")
        several = len(sweep.contexts) > 1
        if several:
            draw_sweep(sweep, path)
        plots.append((sweep, path if several else None))
    return plots


def comparison_markdown(comparison: Comparison, plots: list[tuple[Sweep, Path | None]], chart: Path | None) -> str:
    """The whole report."""
    header = ["model", "parameters", "tokens", *(column.title for column in comparison.columns)]
    lines = ["# Comparison"]
    if comparison.columns:
        table = [_line(header), _line(["---"] * len(header))]
        for entry in comparison.entries:
            if entry.shown:
                label, *cells = _cells(comparison, entry, _bold_markdown)
                table.append(_line([markdown(label), *cells]))
        lines += ["\n".join(table), LEGEND.format(reference=markdown(comparison.reference.label))]
        if any(column.task in ("wikitext", "wikitext2") for column in comparison.columns):
            lines.append(TWO_PERPLEXITIES)
        lines += [markdown(remark) for remark in remarks(comparison)]
    if chart is not None:
        lines.append(f"![accuracies]({chart.name})")
    for sweep, plot in plots:
        lines += _sweep_section(sweep, plot)
    lines.append("## How it was measured")
    for entry in comparison.entries:
        if entry.published:
            continue
        lines += [f"### {markdown(entry.label)}", _origin(entry.rows), _figures(entry.rows)]
    published = [
        f"- {markdown(entry.label)}: {markdown(_source(entry))}" for entry in comparison.entries if entry.published
    ]
    if published:
        lines += ["### Published", "\n".join(published)]
    return "\n\n".join(lines) + "\n"


def comparison_tables(comparison: Comparison, width: int) -> list[Table]:
    """The main table for a terminal of `width` characters: models side by side, a figure a line; more tables where they
    do not fit into one.
    """
    titles = ["parameters", "tokens", *(column.title for column in comparison.columns)]
    beside: list[list[Entry]] = []
    room = 0
    for entry in comparison.entries:
        if not entry.shown:
            continue
        label, *cells = _cells(comparison, entry, str)
        needed = max(map(len, [*label.split(), *cells])) + FRAME
        if not beside or room < needed:
            beside.append([])
            room = width - max(map(len, titles)) - FRAME - 1
        beside[-1].append(entry)
        room -= needed
    return [_table(comparison, titles, entries) for entries in beside]


def _table(comparison: Comparison, titles: list[str], entries: list[Entry]) -> Table:
    table = Table("")
    for entry in entries:
        table.add_column(escape(entry.label), justify="right")
    columns = [_cells(comparison, entry, _bold_terminal) for entry in entries]
    for place, title in enumerate(titles, 1):
        table.add_row(escape(title), *(cells[place] for cells in columns))
    return table


def remarks(comparison: Comparison) -> list[str]:
    """What a reader would look for in vain."""
    lone = [entry for entry in comparison.entries if not entry.cells and not entry.published]
    return [
        f"{entry.label}: nothing that others have was measured yet; "
        f"{door_command('evaluate')} checkpoint={entry.rows[0].get('checkpoint')} measures it"
        for entry in lone
    ]


def _cells(comparison: Comparison, entry: Entry, bold: Callable[[str], str]) -> list[str]:
    """Label, size, tokens and figures of an entry."""
    about = entry.rows[0]
    found = [entry.label, _count(about.get("parameters")), _count(about.get("training_tokens"))]
    for column in comparison.columns:
        cell = entry.cells.get(column)
        if cell is None:
            found.append("-")
            continue
        text = figure(cell, column)
        text = bold(text) if cell.value == comparison.best(column) else text
        found.append(" ".join(part for part in (text, comparison.mark(entry, column), cell.share) if part))
    return found


def figure(cell: Cell, column: Column) -> str:
    """Value ± standard error, with the digits that mean something: percent to a hundredth, others to three or more."""
    factor = 100 if column.percent else 1
    value = factor * cell.value
    digits = 2 if column.percent or 10 <= abs(value) < 1000 else 3 if abs(value) < 10 else 0
    text = f"{value:,.{digits}f}"
    return text if cell.stderr is None else f"{text} ± {factor * cell.stderr:,.{digits}f}"


def _bold_markdown(text: str) -> str:
    return f"**{text}**"


def _bold_terminal(text: str) -> str:
    return f"[bold]{text}[/]"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sweep_section(sweep: Sweep, plot: Path | None) -> list[str]:
    lines = [f"## {sweep.text}: {TITLES[sweep.metric]} by context ({sweep.protocol} protocol)", sweep_table(sweep)]
    if sweep.protocol == "original" and sweep.metric == "token_perplexity":
        lines.append(TOO_LOW)
    return lines if plot is None else [*lines, f"![{sweep.text}]({plot.name})"]


def _origin(rows: list[dict]) -> str:
    """Checkpoint, versions and machine; values that differ between rows one after the other."""
    lines = []
    for title, key in (
        ("checkpoint", "checkpoint"),
        ("model", "model"),
        ("parameters", "parameters"),
        ("trained on (tokens)", "training_tokens"),
        ("precision", "dtype"),
        ("hardware", "hardware"),
        ("lm-evaluation-harness", "harness"),
        ("gptstar", "gptstar"),
        ("torch", "torch"),
        ("commit", "commit"),
        ("date", "date"),
    ):
        values = dict.fromkeys(row[key] for row in rows if row.get(key) is not None)
        if values:
            shown = ", ".join(f"{value:,}" if isinstance(value, int) else str(value) for value in values)
            lines.append(f"- {title}: {shown}")
    return "\n".join(lines)


def _figures(rows: list[dict]) -> str:
    """Every figure of some rows, with what it was measured on."""
    header = ["task", "metric", "value", "documents", "few-shot", "context", "task version", "seconds"]
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        for name, metric in row.get("metrics", {}).items():
            if not isinstance(metric.get("value"), int | float):
                continue
            cell, column = Cell(metric["value"], metric.get("stderr"), row), Column(str(row.get("task")), name)
            shots, version = row.get("num_fewshot"), row.get("task_version")
            cells = [
                markdown(column.task),
                f"{name} %" if column.percent else name,
                figure(cell, column),
                _documents(row),
                "-" if shots is None else str(shots),
                _context(row),
                "-" if version is None else str(version),
                f"{row['seconds']:,.0f}" if "seconds" in row else "-",
            ]
            lines.append(_line(cells))
    return "\n".join(lines)


def _documents(row: dict) -> str:
    documents, of = row.get("documents"), row.get("of")
    if row.get("tokens"):
        return f"{row['tokens']:,} tokens"
    if documents is None:
        return "-"
    return f"{documents:,} of {of:,}" if of and documents != of else f"{documents:,}"


def _context(row: dict) -> str:
    context = str(row.get("max_length", "-"))
    if row.get("stride") not in (None, row.get("max_length")):
        context += f", stride {row['stride']}"
    return context + (f", {row['protocol']}" if "protocol" in row else "")


def _count(number: float | None) -> str:
    """1,234,567 as 1.2M."""
    if number is None:
        return "-"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(int(number))


def _source(entry: Entry) -> str:
    row = entry.rows[0]
    return row["source"] + (f". {row['note'][0].upper()}{row['note'][1:]}" if row.get("note") else "")
