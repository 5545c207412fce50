"""An inspection as tables and text."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from gptstar.data.inspection import piece, visible
from gptstar.training.inspection import Inspection

BAR = 40  # characters of the longest ones of all corpora


def show_inspection(found: Inspection, console: Console, tokens: bool) -> None:
    """Prints it. tokens: whether those of the sequence are listed."""
    _window(found, console, tokens)
    _mixture(found, console)
    _packing(found, console)
    _lengths(found, console)
    _tokens(found, console)


def _window(found: Inspection, console: Console, tokens: bool) -> None:
    window, tokenizer = found.window, found.tokenizer
    beyond = f", beyond the last of the budget, {found.last_step:,}" if found.step > found.last_step else ""
    head = f"step {found.step:,} (from 0{beyond}), sequence {found.window_number} of {found.rows}"
    _say(console, f"{head}: {window.length} tokens of {window.corpus}")
    for segment in window.segments:
        last = segment.first + len(segment.tokens) - 1
        end = ", its end" if segment.ends else ", cut"
        after = piece(tokenizer, segment.after)
        console.rule(
            f"document {segment.document:,}: tokens {segment.first:,} to {last:,}{end} (read after {_literal(after)})",
            align="left",
        )
        _say(console, visible(segment.text))
        if tokens:
            _say(console, "\n" + "  ".join(f"{t}:{piece(tokenizer, t)}" for t in segment.tokens))
    if window.padding:
        console.rule(f"padding: {window.padding} positions", align="left")
    else:
        console.rule()


def _mixture(found: Inspection, console: Console) -> None:
    columns = (
        "documents",
        "tokens",
        "bytes a token",
        "sequences",
        "epochs a pass",
        "share of a pass",
        "taken",
        "epochs",
    )
    table = _table(f"mixture at step {found.step:,}, {found.passes:.4g} passes done", "corpus", *columns)
    for name, row in found.mixture.items():
        table.add_row(
            _literal(name),
            f"{row.documents:,}" if row.documents else "left out since",
            f"{row.tokens:,}",
            f"{row.bytes / row.tokens:.2f}" if row.tokens else "-",
            f"{row.windows:,}",
            f"{row.epochs:.4g}",
            f"{row.share:.1%}",
            f"{row.taken:,}",
            f"{row.epochs_taken:.4g}",
        )
    _print(console, table)


def _packing(found: Inspection, console: Console) -> None:
    columns = ("documents cut", "pieces a document", "attention across", "padding", "tokens never predicted")
    title = f"what packing into {found.sequence_length} tokens costs (* is configured; mask: data.document_mask=true)"
    table = _table(title, "corpus", "packing", *columns)
    table.columns[1].justify = "left"
    for name, wastes in found.wastes.items():
        for number, (kind, waste) in enumerate(wastes.items()):
            table.add_row(
                "" if number else _literal(name),
                f"{'*' if kind == found.packed else ' '} {kind}",
                f"{waste.cut:.1%}",
                f"{waste.pieces:.2f}",
                f"{waste.crossing:.1%}",
                f"{waste.padding:.2%}",
                f"{waste.unseen:,}",
            )
        table.add_section()
    _print(console, table)
    _say(console, "shards looked at: " + ", ".join(f"{name} {n}" for name, n in found.planned.items()))


def _lengths(found: Inspection, console: Console) -> None:
    title = f"documents by their length in tokens, the end-of-text included; a sequence has {found.sequence_length}"
    table = _table(title, "corpus", "median", "mean", "longest", "longer than a sequence", "tokens in these", "shards")
    for name, lengths in found.lengths.items():
        documents, tokens = lengths.longer
        table.add_row(
            _literal(name),
            f"{lengths.median:,}",
            f"{lengths.mean:,.0f}",
            f"{lengths.longest:,}",
            f"{documents:.1%}",
            f"{tokens:.1%}",
            f"{lengths.n_shard}",
        )
    _print(console, table)
    edges = max((lengths.edges for lengths in found.lengths.values()), key=len)
    counts = {name: np.pad(x.counts, (0, len(edges) - 1 - len(x.counts))) for name, x in found.lengths.items()}
    there = np.flatnonzero(sum(counts.values()))
    table = _table("share of the documents that are so long", "tokens")
    for name in counts:
        table.add_column(_literal(name))
    for i in range(there[0], there[-1] + 1) if len(there) else ():
        bars = (
            f"{of[i] / max(1, of.sum()):6.1%} {'█' * round(BAR / len(counts) * of[i] / max(1, of.max()))}"
            for of in counts.values()
        )
        table.add_row(f"{edges[i]:,} to {edges[i + 1] - 1:,}", *bars)
    _print(console, table)


def _tokens(found: Inspection, console: Console) -> None:
    mixed = found.mixed()
    title = f"the most frequent of {found.tokenizer.vocab_size:,} tokens, {found.unused():.1%} of which do not occur"
    several = found.usage if len(found.usage) > 1 else {}
    table = _table(title, "token", "", "share", *map(_literal, several))
    table.columns[1].justify = "left"
    for token in found.top():
        shares = (f"{usage.share[token]:.2%}" for usage in several.values())
        table.add_row(f"{token}", _literal(piece(found.tokenizer, token)), f"{mixed[token]:.2%}", *shares)
    _print(console, table)
    for name, usage in found.usage.items():
        all_of = "all" if usage.counted == usage.n_token else f"{usage.counted:,} of"
        _say(
            console,
            f"{name}: {all_of} {usage.n_token:,} training tokens counted, {usage.unused:.1%} of the vocabulary unused",
        )


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(first, title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(console: Console, table: Table) -> None:
    _say(console, f"\n{table.title}")  # a title of the table's own would be broken to its width
    table.title = None
    console.print(table, highlight=False)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _literal(text: str) -> str:
    """Brackets in a text mean themselves."""
    return text.replace("[", "\\[")
