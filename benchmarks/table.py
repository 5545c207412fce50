"""What the benchmarks found, as rows of one table: ours, the peer, the limit, the ratio and its spread, the target."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HEAD = ("what", "ours", "peer", "limit", "ratio (spread)", "target", "met", "commit")


@dataclass(frozen=True)
class Row:
    """A figure of a benchmark, with all its repeats.

    what, unit    of `ours`, `peer` and `limit`
    peer_is, limit_is   what they are
    ratio         repeat by repeat, as the target wants it; without one the target is one of `ours`
    at_least, at_most   the target
    """

    what: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] = ()
    limit: Sequence[float] = ()
    ratio: Sequence[float] = ()
    peer_is: str = ""
    limit_is: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def decided_by(self) -> Sequence[float]:
        """What the target is compared with."""
        return self.ratio or self.ours

    @property
    def target(self) -> str:
        """In words."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}" if self.at_most is not None else ""

    @property
    def met(self) -> str:
        """Whether the median is as the target wants it, or how far it is from it."""
        if not self.target or not self.decided_by:
            return ""
        value = statistics.median(self.decided_by)
        if self.at_least is not None:
            return "yes" if value >= self.at_least else f"NO: {value / self.at_least:.0%} of it"
        assert self.at_most is not None
        return "yes" if value <= self.at_most else f"NO: {value / self.at_most:.0%} of it"

    def cells(self, commit: str) -> tuple[str, ...]:
        """Of a line of the table."""
        peer, limit = _with(self.peer, self.peer_is), _with(self.limit, self.limit_is)
        ours = f"{said(self.ours)} {self.unit}".rstrip()
        return (self.what, ours, peer, limit, said(self.ratio), self.target, self.met, commit)


def _with(values: Sequence[float], name: str) -> str:
    return f"{name} {said(values)}".strip() if values else ""


def said(values: Sequence[float]) -> str:
    """The median, and in brackets the range where there are several."""
    if not values:
        return ""
    text = number(statistics.median(values))
    low, high = number(min(values)), number(max(values))
    return text if low == high else f"{text} ({low} - {high})"


def number(value: float) -> str:
    """Three digits that count."""
    if value != value or abs(value) >= 1e15:
        return str(value)
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Repeat by repeat."""
    return [a / b for a, b in zip(above, below, strict=True)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table."""
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal, without the commits."""
    lines = [HEAD[:-1], *(row[:-1] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD) - 1)]
    return "\n".join("  ".join(c.ljust(n) for c, n in zip(line, widths, strict=True)).rstrip() for line in lines)


def rows_of(name: str, found: Mapping[str, Any]) -> list[Row]:
    """The rows of a benchmark, from the JSON its script wrote. Peers that are not installed are left out."""
    return ROWS[name](found)


def _startup(found: Mapping[str, Any]) -> list[Row]:
    seconds = found["seconds"]
    return [
        Row("`import gptstar; gptstar.GPT`", "s", seconds["python -c 'import gptstar; gptstar.GPT'"], at_most=2.5),
        Row("`train.py` to its first step", "s", seconds["train.py to its first step, corpus not cached"], at_most=10),
    ]


def _walk(found: Mapping[str, Any]) -> list[Row]:
    return [Row(f"walk: {what}", "s", [seconds]) for what, seconds in found["seconds"].items()]


def _train_step(found: Mapping[str, Any]) -> list[Row]:
    rows, tokens = [], found["batch"] * found["length"]
    rate = {name: [tokens / s for s in seconds] for name, seconds in found["seconds"].items()}
    peer = rate["transformers"]
    for name, model in (("gpt2_small", "GPT-2 Small"), ("gpt127", "GPT-127*")):
        title, ours, mfu = f"training step, {model}", rate[name], found["mfu"][name]
        peak = [r / share for r, share in zip(ours, mfu, strict=True)]
        rows += [
            Row(title, "tokens/s", ours, (), peak, mfu, "", "matmul peak", at_least=0.8),
            Row(title, "tokens/s", ours, peer, (), ratios(ours, peer), "transformers", at_least=1.25),
        ]
    return rows


def _loss(found: Mapping[str, Any]) -> list[Row]:
    times = {name: [1e3 * s for s in one["seconds"]] for name, one in found["contestants"].items()}
    ours, peer, limit = times["ours"], times["plain"], times["matmuls"]
    mine, theirs = ([found["contestants"][name]["bytes"] / 2**20] for name in ("ours", "plain"))
    name = "whole logits"
    return [
        Row("head and loss", "ms", ours, peer, limit, ratios(peer, ours), name, "its matmuls"),
        Row("head and loss, memory", "MiB", mine, theirs, ratio=ratios(theirs, mine), peer_is=name),
    ]


def _evaluation(found: Mapping[str, Any]) -> list[Row]:
    titles = {"lambada_openai": ("LAMBADA", 1.5), "wikitext": ("WikiText", 1.5), "hellaswag": ("HellaSwag", 2.5)}
    rows = []
    for task, (title, target) in titles.items():
        ours, peer = (found["tasks"][task]["seconds"][who] for who in ("ours", "hf"))
        rows.append(Row(f"evaluating {title}", "s", ours, peer, (), ratios(peer, ours), "HFLM", at_least=target))
    return rows


def _hflm_equality(found: Mapping[str, Any]) -> list[Row]:
    tasks = [row for model in found["models"].values() for row in model["tasks"].values()]
    same = sum(row["same"] for row in tasks) / len(tasks)
    return [Row(f"metrics equal to HFLM's, of {len(tasks)} tasks and models", "", [same], at_least=1)]


def _prepare(found: Mapping[str, Any]) -> list[Row]:
    rounds = found["rounds"]
    rate = {name: [one[name]["tokens"] / one[name]["seconds"] for one in rounds] for name in rounds[0]}
    ours, rows = rate["ours"], []
    for key, name in (("map", "`datasets.map` alone"), ("load_map", "loading and `map`"), ("tokenizer", "tokenizer")):
        target = 1.5 if key == "map" else None
        rows.append(
            Row("preparing a corpus", "tokens/s", ours, rate[key], (), ratios(ours, rate[key]), name, at_least=target)
        )
    return rows


def _loader(found: Mapping[str, Any]) -> list[Row]:
    slowest: list[float] = min(found["tokens_per_second"].values(), key=statistics.median)
    fastest = [float(found["fastest_model"])] * len(slowest)
    name = "the fastest model reads"
    return [Row("reading batches, slowest way", "tokens/s", slowest, fastest, (), ratios(slowest, fastest), name)]


def _duplicates(found: Mapping[str, Any]) -> list[Row]:
    exact = [found["recall by kind"][kind] for kind in ("exact", "case and punctuation")]
    near = [found["recall by truth"]["true Jaccard 0.90 .. 1.01"]]
    right = [found["precision"]["true similarity at least 0.8"]]
    rows = [
        Row("exact copies found", "of 1", [min(exact)]),
        Row("near copies (0.9 and more) found", "of 1", near),
        Row("what was found and is alike to 0.8", "of 1", right),
    ]
    if passages := found.get("recall of passages"):
        rows.append(Row("passages of evaluation sets found", "of 1", [min(passages.values())]))
    return rows


def _stream_memory(found: Mapping[str, Any]) -> list[Row]:
    peak = max(found["memory_mb_by_tenth"]) / 1000
    size = f"{found['bytes'] / 1e9:.1f} GB"
    again = [found["removed"].get("duplicate", 0) / found["written_twice"]]
    return [
        Row(f"preparing {size}, all processes' memory", "GB", [peak]),
        Row(f"preparing {size}, copies found", "of 1", again),
    ]


def _load(found: Mapping[str, Any]) -> list[Row]:
    ours = found["results"]["GPT-127*, our own folder"]
    return [
        Row("loading GPT-127*", "s", [one["seconds"] for one in ours]),
        Row("loading GPT-127*, peak memory / weights", "", [one["peak"] for one in ours]),
    ]


def _decode(found: Mapping[str, Any]) -> list[Row]:
    one = found["models"]["gpt2_small"]
    rate = {name: values["1"] for name, values in one["tokens_per_second"].items()}
    limit = [b / (4 * one["parameters"]) for b in one["bytes_per_second"]["product"]]
    fp32, int8, slow = rate["ours-fp32"], rate["ours-int8"], rate["transformers"]
    title = "one sequence, GPT-2 Small"
    rows = [
        Row(f"{title}, fp32", "tokens/s", fp32, (), limit, ratios(fp32, limit), "", "memory", at_least=0.9),
        Row(f"{title}, fp32", "tokens/s", fp32, slow, ratio=ratios(fp32, slow), peer_is="transformers"),
        Row(f"{title}, int4", "tokens/s", rate["ours-int4"]),
    ]
    if peer := rate.get("ctranslate2-int8"):
        more: dict[str, Any] = {"peer_is": "CTranslate2", "at_least": 1.1}
        rows.insert(2, Row(f"{title}, int8", "tokens/s", int8, peer, ratio=ratios(int8, peer), **more))
    return rows


def _quantization(found: Mapping[str, Any]) -> list[Row]:
    memory, rows = found["memory"], []
    whole = [(memory["fp32"]["weights"] + memory["fp32"]["cache"]) / 2**20]
    for kind in ("int8", "int4"):
        peak = [memory[kind]["peak"] / 2**20]
        title = f"peak memory of {found['model']} in {kind}"
        rows.append(Row(title, "MiB", peak, whole, (), ratios(peak, whole), "weights and cache in fp32"))
    return rows


def _batching(found: Mapping[str, Any]) -> list[Row]:
    ours, peer = ([found["new_tokens"] / s for s in found["seconds"][name]] for name in ("ours", "transformers"))
    name = "transformers, one by one"
    return [Row("32 requests together", "tokens/s", ours, peer, ratio=ratios(ours, peer), peer_is=name, at_least=8)]


def _serving(found: Mapping[str, Any]) -> list[Row]:
    ours, peer = ([found["new_tokens"] / s for s in found["seconds"][name]] for name in ("ours", "transformers"))
    first = [one["first_p95"] for one in found["waits"]["alone"]]
    name = "transformers, one by one"
    return [
        Row("32 clients at the server", "tokens/s", ours, peer, ratio=ratios(ours, peer), peer_is=name, at_least=8),
        Row("32 clients, first token, 95th percentile", "s", first),
    ]


def _neox20b(found: Mapping[str, Any]) -> list[Row]:
    seconds, size = found["seconds"], f"{found['bytes'] / 1e9:.3g} GB of NeoX-20B's kind"
    ours, disk, peer = seconds["ours"], seconds["disk"], seconds["peer"]
    n = min(len(ours), len(peer))
    within = f"{size} within {found['budget']}"
    scale = found["of_layers"] / found["layers"]
    return [
        Row(f"{within}, fp16", "s/token", ours, (), disk, ratios(ours, disk), "", "disk", at_most=1.2),
        Row(f"{within}, fp16", "s/token", ours, peer, (), ratios(peer[:n], ours[:n]), "accelerate", at_least=5),
        Row(f"{size}, int4", "tokens/s", [1 / (s * scale) for s in seconds["int4"]], at_least=1),
    ]


def _context_memory(found: Mapping[str, Any]) -> list[Row]:
    (last,) = [one["peak_gib"] for one in found["results"] if one["context"] == 8192 and one["how"] == "pieces"]
    return [Row(f"a window of 8192 tokens, {found['model']}", "GiB", [last], at_most=8)]


def _kill_resume(found: Mapping[str, Any]) -> list[Row]:
    return [
        Row(
            f"runs killed {found['kills']} times, identical in the end", "of 1", [float(found["identical"])], at_least=1
        )
    ]


def _scaling(found: Mapping[str, Any]) -> list[Row]:
    off = [row["memory"] / row["memory_formula"] for row in found["rows"]]
    sent = [row["sent"] / row["sent_formula"] for row in found["rows"] if row["sent_formula"]]
    return [
        Row(f"memory of a rank, {found['model']}, measured / formula", "", off),
        Row(f"bytes sent, {found['model']}, measured / formula", "", sent),
    ]


def _plan(found: Mapping[str, Any]) -> list[Row]:
    pairs = zip(found["planned_seconds"].values(), found["measured_seconds"].values(), strict=True)
    off = [statistics.median(ratios(planned, measured)) for planned, measured in pairs]
    return [Row("seconds of a step, planned / measured, four presets", "", off)]


ROWS = {
    "startup": _startup,
    "walk": _walk,
    "train_step": _train_step,
    "loss": _loss,
    "evaluation": _evaluation,
    "hflm_equality": _hflm_equality,
    "prepare": _prepare,
    "loader": _loader,
    "duplicates": _duplicates,
    "stream_memory": _stream_memory,
    "load": _load,
    "decode": _decode,
    "quantization": _quantization,
    "batching": _batching,
    "serving": _serving,
    "neox20b": _neox20b,
    "context_memory": _context_memory,
    "kill_resume": _kill_resume,
    "scaling": _scaling,
    "plan": _plan,
}
