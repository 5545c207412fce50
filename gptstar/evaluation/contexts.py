"""Perplexity against context: one table and one plot for each text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptstar.evaluation.labels import labels, markdown
from gptstar.figure import COLOURS, new_figure, save_figure

TITLES = {
    "token_perplexity": "token perplexity",
    "bits_per_byte": "bits/byte",
    "bits_per_character": "bits/character",
}
MARKERS = "osD^v<>P"
Series = tuple[str, str | None, int | None]  # checkpoint, dtype, stride (None where it is the context)


@dataclass(frozen=True)
class Sweep:
    """Rows of one text, read by one protocol: figures that may stand beside each other.

    metric: what is compared, the published one of the text; bits/byte where tokenizers differ.
    """

    text: str
    protocol: str
    metric: str
    rows: list[dict]

    @property
    def contexts(self) -> list[int]:
        """In ascending order."""
        return sorted({row["max_length"] for row in self.rows})

    @property
    def series(self) -> dict[Series, dict[int, dict]]:
        """{series: {context: row}}."""
        found: dict[Series, dict[int, dict]] = {}
        for row in self.rows:
            stride = None if row["stride"] == row["max_length"] else row["stride"]
            found.setdefault((row["checkpoint"], row.get("dtype"), stride), {})[row["max_length"]] = row
        return found

    def names(self) -> dict[Series, str]:
        """What each series is called."""
        short = labels(row["checkpoint"] for row in self.rows)
        precisions = Counter(name for name, _ in {(name, dtype) for name, dtype, _ in self.series})
        return {
            (name, dtype, stride): short[name]
            + (f", {dtype}" if precisions[name] > 1 else "")
            + (f", stride {stride}" if stride else "")
            for name, dtype, stride in self.series
        }

    def value(self, row: dict) -> float | None:
        """Of the metric that is compared."""
        return row["metrics"].get(self.metric, {}).get("value")


def sweeps(rows: Iterable[dict]) -> list[Sweep]:
    """The sweeps that are in rows of perplexity.json, other rows left out."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row.get("kind") == "perplexity":
            groups.setdefault((row.get("preset") or row["text_sha256"], row["protocol"]), []).append(row)
    return [_sweep(found) for found in groups.values()]


def _sweep(rows: list[dict]) -> Sweep:
    text = rows[0]["text"]
    # Published rows know the size of their vocabulary alone.
    tokenizers = {row["tokenizer"] for row in rows if "tokenizer" in row}
    same_tokens = len(tokenizers) < 2 and len({row.get("vocabulary") for row in rows}) == 1
    usual = {"enwik8": "bits_per_byte", "text8": "bits_per_character"}
    metric = usual.get(text, "token_perplexity" if same_tokens else "bits_per_byte")
    return Sweep(text, rows[0]["protocol"], metric, rows)


def sweep_table(sweep: Sweep) -> str:
    """Markdown: a line for each model, a column for each context, the best of a column in bold."""
    contexts, names = sweep.contexts, sweep.names()
    best = {
        context: min(
            (v for r in sweep.rows if r["max_length"] == context and (v := sweep.value(r)) is not None), default=None
        )
        for context in contexts
    }
    lines = [
        f"| model | positions | training context | {' | '.join(f'ctx {context}' for context in contexts)} |",
        "|---|---|---|" + "---|" * len(contexts),
    ]
    for key, found in sweep.series.items():
        any_row = next(iter(found.values()))
        cells = []
        for context in contexts:
            value = sweep.value(found[context]) if context in found else None
            if value is None:
                limit = any_row.get("longest")
                cells.append(f"reads {limit}" if limit and context > limit else "-")
            else:
                text = f"{value:.4g}" if value >= 1000 else f"{value:.3f}"
                cells.append(f"**{text}**" if value == best[context] and len(sweep.series) > 1 else text)
        trained = any_row.get("trained_length", "-")
        lines.append(f"| {markdown(names[key])} | {any_row.get('position', '-')} | {trained} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_sweep(sweep: Sweep, path: Path) -> None:
    """PNG: the metric against the context. Dotted: the training length; a cross: the most a model can read."""
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    names = sweep.names()
    values = [value for row in sweep.rows if (value := sweep.value(row)) is not None]
    for number, (key, found) in enumerate(sweep.series.items()):
        points = [(c, v) for c in sorted(found) if (v := sweep.value(found[c])) is not None]
        if not points:  # published in another unit
            continue
        first = found[min(found)]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        dashes = "-" if key[2] is None else "--"
        limit = first.get("longest")
        ends = limit is not None and max(sweep.contexts) > limit
        about = [first.get("position", "?")]
        about += [f"reads at most {limit}"] if ends else []
        about += ["published"] if first.get("published") else []
        axes.plot(
            *zip(*points, strict=True),
            dashes,
            marker=marker,
            color=colour,
            markersize=5,
            markerfacecolor="white" if first.get("published") else colour,
            label=f"{names[key]} ({', '.join(about)})",
        )
        if ends:
            axes.plot(*points[-1], "x", color=colour, markersize=12, markeredgewidth=2.5)
    for number, length in enumerate(sorted({row["trained_length"] for row in sweep.rows if "trained_length" in row})):
        axes.axvline(length, color="#888888", linestyle=":", linewidth=1.2, zorder=0)
        axes.annotate(
            f"trained on {length}",
            (length, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -12 - 12 * number),
            textcoords="offset points",
            color="#555555",
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    if max(values) > 4 * min(values):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sweep.contexts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set(
        xlabel="context (tokens)",
        ylabel=f"{TITLES[sweep.metric]} (lower is better)",
        title=f"{sweep.text}, {sweep.protocol} protocol",
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)
