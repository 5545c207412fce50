"""A plan in words: tables for a terminal and the same in Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from gptstar.lab.planning.plan import Plan


@dataclass(frozen=True)
class Sheet:
    """A table: title, column heads, rows; all columns but the first are numbers."""

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sheets(plan: Plan) -> list[Sheet]:
    """What is planned, memory, time."""
    found = [Sheet(headline(plan), ("", ""), _summary(plan)), Sheet("memory of a device", ("", "GiB"), _memory(plan))]
    if plan.parts:
        heads = ("", "ms", "share", "hidden, ms", "GFLOP", "GB")
        found.append(Sheet("a step of a device", heads, _time(plan)))
    return found


def headline(plan: Plan) -> str:
    """One line: what, on what, how long."""
    devices = "1 device" if plan.devices == 1 else f"{plan.devices} devices"
    return (
        f"{plan.model} on {plan.hardware} ({devices}): {duration(plan.hours)}, {plan.tokens_per_second:,.0f} tokens/s"
    )


def verdict(plan: Plan) -> str:
    """Whether it fits, and what would."""
    said = f"{gib(plan.needed)} of {gib(plan.available)} GiB"
    return f"fits: {said}" if plan.fits else f"does not fit: {said}; {plan.remedy}"


def markdown(plan: Plan, more: list[Sheet] | None = None) -> str:
    """A page."""
    lines = [f"# {headline(plan)}", "", f"It {verdict(plan)}.", ""]
    for sheet in [*sheets(plan), *(more or [])]:
        if sheet.title != headline(plan):
            lines += [f"## {sheet.title[0].upper()}{sheet.title[1:]}", ""]
        lines += [f"| {' | '.join(sheet.heads)} |", "|---" + "|---:" * (len(sheet.heads) - 1) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in sheet.rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in plan.notes)]) + "\n"


def show(plan: Plan, console: Console, more: list[Sheet] | None = None) -> None:
    """On a terminal."""
    for sheet in [*sheets(plan), *(more or [])]:
        table = Table(title=sheet.title, title_justify="left", show_header=any(sheet.heads))
        for i, head in enumerate(sheet.heads):
            table.add_column(head, justify="right" if i and any(sheet.heads) else "left")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
        if sheet.title == "memory of a device":
            console.print(verdict(plan), style="" if plan.fits else "bold red", highlight=False, markup=False)
    for note in plan.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def _summary(plan: Plan) -> list[tuple[str, ...]]:
    ranks = plan.parallel if plan.tensor_parallel == 1 else f"{plan.parallel}, {plan.tensor_parallel} to a layer"
    trained = "" if plan.trained == plan.parameters else f" ({plan.trained:,} of them trained)"
    kept = f", {plan.recompute} layers made again" if plan.recompute else ""
    micro = f"{plan.n_microbatch} x {plan.microbatch} a device" if plan.n_microbatch > 1 else "at once"
    rows: list[tuple[str, ...]] = [
        ("parameters", f"{plan.parameters:,}{trained}"),
        ("training FLOPs a token", f"{plan.flops_per_token:,}"),
        ("trained in", f"{plan.precision}, {'compiled' if plan.compiled else 'uncompiled'}, {ranks}{kept}"),
        ("attention", plan.kernel),
        ("batch", f"{plan.batch_size} sequences of {plan.sequence_length} tokens, {micro}"),
        ("steps", f"{plan.steps:,}, {plan.tokens:,} tokens"),
        ("a step", f"{plan.step_seconds:,.3g} s"),
        ("tokens/s", f"{plan.tokens_per_second:,.0f}"),
        ("MFU", f"{plan.mfu:.1%} of {plan.peak_flops / 1e9:,.0f} GFLOP/s"),
        ("hours", f"{plan.hours:,.3g}, {plan.device_hours:,.3g} of devices; begun now it ends {plan.ends}"),
    ]
    if plan.money is not None:
        rows.append(("money", f"{plan.money:,.2f} {plan.currency}"))
    if plan.kwh is not None:
        rows.append(("energy", f"{plan.kwh:,.3g} kWh, of the devices alone"))
    return rows


def _memory(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(part, gib(n_byte)) for part, n_byte in plan.memory.items()]
    return [*rows, ("all", gib(plan.needed)), ("available", gib(plan.available))]


def _time(plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{part.seconds * 1e3:,.1f}",
            f"{part.seconds / plan.step_seconds:.1%}",
            f"{part.hidden * 1e3:,.1f}" if part.hidden else "",
            f"{part.flops / 1e9:,.0f}" if part.flops else "",
            f"{part.bytes / 1e9:,.3g}",
        )
        for name, part in plan.parts.items()
    ]
    return [*rows, ("all", f"{plan.step_seconds * 1e3:,.1f}", "100.0%", "", "", "")]


def gib(n_byte: float) -> str:
    """Of bytes, without the unit."""
    n = n_byte / 2**30
    return f"{n:,.0f}" if n >= 100 else f"{n:,.1f}" if n >= 1 else f"{n:.3f}"


def duration(hours: float) -> str:
    """In the unit that suits it."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
