"""An inspection as one picture: how long documents are, what the mixture is made of, which tokens come most."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptstar.data.inspection import piece
from gptstar.figure import COLOURS, GREY, new_figure, save_figure
from gptstar.training.inspection import Inspection

LONGEST_NAME = 24  # characters


def draw_inspection(found: Inspection, path: Path) -> None:
    """PNG."""
    figure = new_figure(11, 8.5)
    title = f"{_name(found.name, 50)}: sequences of {found.sequence_length:,} tokens, packing: {found.packed}"
    figure.suptitle(title, fontsize=13, parse_math=False)
    heights = [2.2, 0.5 + 0.5 * len(found.mixture)]
    axes = figure.subplot_mosaic("LT;MT", width_ratios=[1.6, 1], height_ratios=heights)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(found.usage)}
    _lengths(found, axes["L"], colours)
    _mixture(found, axes["M"], colours)
    _tokens(found, axes["T"], colours)
    save_figure(figure, path)


def _lengths(found: Inspection, axes, colours: dict[str, str]) -> None:
    """A line for each corpus, whose fullest bin is 1: a corpus of one document would dwarf all others."""
    for name, lengths in found.lengths.items():
        height = lengths.counts / max(1, lengths.counts.max())
        label = f"{_name(name)}: median {lengths.median:,}, {lengths.longer[0]:.0%} longer than a sequence"
        if len(found.lengths) < 3:  # more would hide each other
            axes.stairs(height, lengths.edges, color=colours[name], fill=True, alpha=0.15)
        axes.stairs(height, lengths.edges, color=colours[name], linewidth=1.5, label=label)
    label = f"a sequence: {found.sequence_length:,} tokens"
    axes.plot([found.sequence_length] * 2, [0, 1.06], color="#222222", linestyle="--", linewidth=1, label=label)
    ends = [x.edges[[np.flatnonzero(x.counts)[0], -1]] for x in found.lengths.values() if x.counts.any()]
    least, most = min(int(a) for a, _ in ends), max(int(b) for _, b in ends)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(least, found.sequence_length / 2), max(most, 2 * found.sequence_length))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x < 1024 else f"{x / 1024:,.0f}k")
    axes.set_ylim(0, 1.12 + 0.08 * (1 + len(found.lengths)))  # room for the legend
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set(xlabel="tokens in a document (k: 1,024)", ylabel="documents, of the fullest bin")
    axes.set_title("Length of documents")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _mixture(found: Inspection, axes, colours: dict[str, str]) -> None:
    """What each corpus has of all tokens, and what of a pass is its."""
    rows = list(found.mixture.items())
    total = max(1, sum(row.tokens for _, row in rows))
    for y, (name, row) in enumerate(rows):
        there, used = 100 * row.tokens / total, 100 * row.share
        axes.barh(y - 0.2, used, height=0.38, color=colours.get(name, GREY))
        axes.barh(y + 0.2, there, height=0.38, color=GREY)
        said = f"{used:.1f}% of a pass (epochs: {row.epochs:.3g})"
        for offset, end, text in (
            (-0.2, used, said),
            (0.2, there, f"{there:.1f}% of all tokens ({_count(row.tokens)})"),
        ):
            axes.annotate(text, (end, y + offset), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [_name(name) for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 165)  # room for what is written behind the bars
    axes.set_xticks(range(0, 101, 20))
    axes.set(xlabel="%", title=f"Mixture at step {found.step:,}")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _tokens(found: Inspection, axes, colours: dict[str, str]) -> None:
    """Bars of the most frequent tokens, each made of what the corpora add to it."""
    top = found.top()
    shares = {name: row.share for name, row in found.mixture.items() if name in found.usage}
    left = [0.0] * len(top)
    for name, share in shares.items():
        part = [100 * share / sum(shares.values()) * found.usage[name].share[token] for token in top]
        axes.barh(range(len(top)), part, left=left, color=colours[name], height=0.75)
        left = [a + b for a, b in zip(left, part, strict=True)]
    for y, end in enumerate(left):
        axes.annotate(f"{end:.2f}", (end, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    labels = axes.set_yticks(range(len(top)), [_drawable(piece(found.tokenizer, token)) for token in top])
    for label in labels:
        label.label1.set(fontfamily="monospace", fontsize=8, parse_math=False)
    axes.set_ylim(len(top) - 0.4, -0.6)
    axes.margins(x=0.14)
    counted = sum(usage.counted for usage in found.usage.values())
    unused = f"{found.unused():.1%} of {found.tokenizer.vocab_size:,} tokens do not occur"
    axes.set(xlabel=f"% of what is read ({_count(counted)} counted)\n{unused}", title="Most frequent tokens")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _drawable(text: str) -> str:
    """What the font has no sign for, escaped."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    return _name("".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in text))


def _name(text: str, most: int = LONGEST_NAME) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _count(n: int) -> str:
    """12,345,678 as 12.3M."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g}{letter}"
    return str(n)
