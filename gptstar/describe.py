"""Explains an architecture: python -m gptstar.describe model=gpt127 diff=gpt2_small"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields

from rich import box
from rich.console import Console
from rich.table import Table

from gptstar.configuration import preset, run_door, with_list
from gptstar.errors import UserError
from gptstar.model.choices import check_choices, longest
from gptstar.model.config import ModelConfig
from gptstar.model.describe import (
    cache_bytes_per_token,
    components,
    differences,
    drawing,
    flops_per_token,
    parameter_count,
    receptive_fields,
    slopes,
)
from gptstar.sizes import say_bytes


@dataclass
class DescribeConfig:
    """What to explain.

    ideas    files of your own whose blocks and positions can be named
    diff     the name of another model of configs/model: what differs is shown too
    n_token  how long the sequences are that FLOPs are counted for; null: model.context
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    ideas: list[str] = field(default_factory=list)
    diff: str | None = None
    n_token: int | None = None


def describe(config: DescribeConfig, console: Console | None = None) -> None:
    """Prints it. Raises UserError for an architecture that cannot be built."""
    console = console or Console()
    model = config.model
    try:
        other = preset(config.diff) if config.diff else None
    except UserError as error:
        raise UserError(str(error).replace("model=", "diff=", 1)) from error
    try:
        check_choices(model)
    except ValueError as error:
        raise UserError(str(error)) from error
    n_token, limit = model.context if config.n_token is None else config.n_token, longest(model)
    if n_token < 1 or (limit is not None and n_token > limit):
        raise UserError(f"n_token={n_token} must be at least 1" + (f" and at most {limit}" if limit else ""))
    _summary(console, model, n_token)
    _components(console, model, n_token)
    if other is not None:
        _difference(console, model, other)


def _summary(console: Console, model: ModelConfig, n_token: int) -> None:
    n, usual = parameter_count(model), ModelConfig()
    chosen = [
        f"{f.name}={getattr(model, f.name)}" for f in fields(model) if getattr(model, f.name) != getattr(usual, f.name)
    ]
    limit = longest(model)
    console.print(f"[bold]{model.name}[/]: {n:,} parameters", highlight=False)
    console.print(f"  {', '.join(chosen)}\n", highlight=False, markup=False)
    console.print(drawing(model) + "\n", highlight=False, markup=False)
    cache = cache_bytes_per_token(model, 2)
    per_token, held = flops_per_token(model, n_token), say_bytes(cache * model.context)
    exact, half, trained = (say_bytes(each * n) for each in (4, 2, 16))
    for what, text in (
        ("FLOPs", f"{per_token:,} a token to train on {n_token} tokens (forward and backward)"),
        ("weights", f"{exact} in fp32, {half} in bf16; {trained} with gradients and moments"),
        ("cache", f"{cache:,} bytes a token in bf16 ({held} for {model.context} tokens), twice that in fp32"),
        ("reads", f"at most {limit} tokens" if limit else f"sequences of any length (trained on {model.context})"),
        ("sees", _sight(model)),
        ("muP", _transfer(model)),
        ("slopes", ", ".join(f"{slope:.4g}" for slope in slopes(model))),
    ):
        if text:
            console.print(f"{what:8} {text}", highlight=False, markup=False)


def _transfer(model: ModelConfig) -> str:
    """What muP does at this width."""
    if not model.mup_base_width:
        return ""
    text = f"{model.width_ratio:.4g} times as wide as the model that learning rates are for"
    if model.width_ratio != 1:
        text += (
            f": logits / {model.width_ratio:.4g}, matrices of layers learn at 1 / {model.width_ratio:.4g} of the rate"
        )
        text += f" (Muon: 1 / {model.width_ratio**0.5:.4g})"
    return f"{text}; scores * {model.attention_scale:.4g}"


def _sight(model: ModelConfig) -> str:
    """Each layer's window and how far back what it writes can depend on tokens."""
    layers = receptive_fields(model)
    if all(window == 0 for window, _ in layers):
        return "everything before, in every layer"
    said = [f"{layer}: {window or 'all'} ({reach or 'all'})" for layer, (window, reach) in enumerate(layers)]
    return f"layer: positions of the past (reach through the layers below) - {', '.join(said)}"


def _components(console: Console, model: ModelConfig, n_token: int) -> None:
    rows = components(model, n_token)
    n, flops = sum(row.parameters for row in rows), sum(row.flops for row in rows)
    table = _table(f"{model.n_layer} layers (*) over {n_token} tokens")
    table.add_column("component", overflow="fold")
    for column in ("parameters", "share", "fp32", "forward FLOPs\na token", "share", "init std"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name.replace("blocks.*", "*"),
            f"{row.parameters:,}" if row.parameters else "",
            f"{row.parameters / n:.1%}" if row.parameters else "",
            say_bytes(4 * row.parameters) if row.parameters else "",
            f"{row.flops:,}" if row.flops else "",
            f"{row.flops / flops:.1%}" if row.flops else "",
            row.init,
        )
    table.add_section()
    table.add_row("all", f"{n:,}", "", say_bytes(4 * n), f"{flops:,}", "", "")
    console.print()
    console.print(table)


def _table(title: str) -> Table:
    """Without lines between its columns, to fit 80 of a terminal."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)


def _difference(console: Console, model: ModelConfig, other: ModelConfig) -> None:
    table = _table("what differs")
    for column in ("", model.name, other.name):
        table.add_column(column, overflow="fold")
    figures = {
        "parameters": parameter_count,
        "training FLOPs a token, each at its context": lambda c: flops_per_token(c, c.context),
        "cache bytes a token, bf16": lambda c: cache_bytes_per_token(c, 2),
    }
    for key, (a, b) in differences(model, other).items():
        if key != "name":
            table.add_row(key, str(a), str(b))
    table.add_section()
    for name, figure in figures.items():
        table.add_row(name, f"{figure(model):,}", f"{figure(other):,}")
    console.print()
    console.print(table)


if __name__ == "__main__":
    sys.argv[1:] = with_list(sys.argv[1:], "model", options=("diff",))  # as other commands have it
    run_door("describe", DescribeConfig, describe)
