"""A study as tables of text: what report.md and report.html both print."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

from gptstar.lab.study import Interval, Study, Variant

UNKNOWN = "-"
FIGURE = re.compile(r"(< )?[+-]?\d[\d,.]*( \(.*\))?")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; detail: of interest to few, a page may fold it."""

    title: str
    note: str
    header: list[str]
    rows: list[list[str]]
    detail: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether figures stand in it, which a page puts on the right."""
        return [not self.detail and any(map(FIGURE.fullmatch, column)) for column in zip(*self.rows, strict=True)]


def tables(study: Study) -> list[Table]:
    """Every table that has something to say: verdicts first, configurations last."""
    made = [_verdicts(study), _to_reach(study), _equal(study), _speed(study), _parts(study), _runs(study)]
    made += [_difference(study, variant) for variant in study.variants if variant.name != study.baseline]
    return [table for table in made if table and table.rows]


def interval_text(interval: Interval | None, digits: int, sign: bool = False) -> str:
    """Value (low to high); "low or more" where it has no upper bound."""
    if interval is None or not math.isfinite(interval.value):
        return UNKNOWN
    bounds = (interval.low, interval.high)
    low, high = (None if b is None or not math.isfinite(b) else _number(b, digits, sign) for b in bounds)
    value = _number(interval.value, digits, sign)
    if low and high:
        return f"{value} ({low} to {high})"
    if low:
        return f"{value} ({low} or more)"
    return f"{value} ({high} or less)" if high else value


def _number(value: float, digits: int, sign: bool = False) -> str:
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text if float(text.replace(",", "")) else f"{0:.{digits}f}"  # neither -0.00 nor +0.00


def _verdicts(study: Study) -> Table:
    rows = []
    for variant in study.variants:
        baseline = variant.name == study.baseline
        rows.append(
            [
                variant.name,
                f"{len(variant.seeds)}",
                f"{variant.tokens:,}",
                interval_text(variant.final, 4),
                UNKNOWN if baseline else interval_text(variant.effect, 2, sign=True),
                UNKNOWN if baseline else _p(variant.p),
                UNKNOWN if baseline else _more_seeds(variant.more_seeds),
                variant.word,
            ]
        )
    header = ["variant", "seeds", "tokens", f"final loss ({study.unit})", "effect (%)", "p"]
    note = (
        f"Mean over seeds on all of the held-out text, and difference from {study.baseline} (below 0: better), with "
        f"95% confidence intervals. {study.test.rstrip('.')}. Seeds still needed: how many more of each variant would "
        "show a difference of 0.5%."
    )
    return Table("Final loss", note, [*header, "seeds still needed", "verdict"], rows)


def _p(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return UNKNOWN
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def _more_seeds(number: int | None) -> str:
    if number is None:
        return "cannot say"
    return "more than 1,000" if number > 1000 else f"{number:,}"


def _to_reach(study: Study) -> Table:
    rows = []
    for variant in study.variants:
        if variant.name != study.baseline and variant.to_reach:
            cells = [
                UNKNOWN if key not in variant.to_reach else _reached(variant.to_reach[key])
                for key in ("tokens", "time", "flops")
            ]
            rows.append([variant.name, *cells])
    note = (
        f"What a variant needs to come to {study.baseline}'s last validation during the run, as a share of what "
        f"{study.baseline} needed, with 95% confidence intervals: 0.5 is half. "
        '"Or more": not every seed reaches it.'
    )
    header = ["variant", "tokens (share)", "time (share)", "FLOPs (share)"]
    return Table("To reach the baseline's final loss", note, header, rows)


def _reached(interval: Interval | None) -> str:
    return "not reached" if interval is None else interval_text(interval, 3)


def _equal(study: Study) -> Table | None:
    if not any(variant.equal_time or variant.equal_flops for variant in study.variants):
        return None
    rows = [
        [variant.name, interval_text(variant.equal_time, 4), interval_text(variant.equal_flops, 4)]
        for variant in study.variants
    ]
    note = (
        "Validation loss when every variant has had the time, or the FLOPs, that the cheapest needed for its whole "
        "run; mean over seeds with 95% confidence intervals."
    )
    header = ["variant", f"at equal time ({study.unit})", f"at equal FLOPs ({study.unit})"]
    return Table("Loss at equal cost", note, header, rows)


def _speed(study: Study) -> Table | None:
    if not any(variant.speed or variant.parameters or variant.flops_per_token for variant in study.variants):
        return None
    rows = []
    for variant in study.variants:
        speed = variant.speed
        cells = [UNKNOWN] * 5
        if speed:
            cells = [
                interval_text(speed.tokens_per_second, 0),
                interval_text(speed.ratio, 3),
                UNKNOWN if speed.mfu is None else _number(100 * speed.mfu, 1),
                UNKNOWN if speed.memory_gib is None else _number(speed.memory_gib, 2),
                "in turns" if speed.interleaved else "as each run saw it",
            ]
        parameters = UNKNOWN if variant.parameters is None else f"{variant.parameters:,}"
        flops = UNKNOWN if variant.flops_per_token is None else _number(variant.flops_per_token / 1e6, 1)
        rows.append([variant.name, *cells[:4], parameters, flops, cells[4]])
    note = (
        "Tokens a second of training. In turns: variants measured one after the other, again and again, on a machine "
        "as it was, so that nothing else running there favours one."
    )
    header = ["variant", "tokens/s", "ratio to baseline", "MFU (%)", "memory (GiB)", "parameters", "MFLOPs a token"]
    return Table("Speed and size", note, [*header, "measured"], rows)


def _parts(study: Study) -> Table:
    rows = [
        [
            part.name,
            interval_text(part.throughput, 3),
            _share(part.throughput_share),
            interval_text(part.to_loss, 3),
            _share(part.to_loss_share),
            part.claimed or UNKNOWN,
        ]
        for part in study.parts
    ]
    note = (
        "Each step against the one before it: how many times more tokens a second, how many times sooner the first "
        "variant's final loss, and its share of the whole speed-up (in logarithms, so that shares add up)."
    )
    header = ["step", "throughput (times)", "share (%)", "time to loss (times sooner)", "share of that (%)"]
    return Table("Parts of the speed-up", note, [*header, "as claimed by its authors"], rows)


def _share(share: float | None) -> str:
    return UNKNOWN if share is None or not math.isfinite(share) else _number(100 * share, 0)


def _runs(study: Study) -> Table:
    rows = [[variant.name, variant.why or UNKNOWN, ", ".join(variant.seeds)] for variant in study.variants]
    return Table(
        "Runs", "What each variant tries, and its runs.", ["variant", "what it tries", "runs"], rows, detail=True
    )


def _difference(study: Study, variant: Variant) -> Table:
    rows = [[key, _value(theirs), _value(own)] for key, (theirs, own) in variant.difference.items()]
    return Table(
        f"Configuration of {variant.name}",
        f"Where it differs from that of {study.baseline}.",
        ["key", study.baseline, variant.name],
        rows,
        detail=True,
    )


def _value(value: object) -> str:
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
