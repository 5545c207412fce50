"""The coordinate check of muP (Yang et al., arXiv:2203.03466, appendix D.1), by itself:

python -m gptstar.lab.coordinates widths=[64,128,256,512] model=star_3m output_dir=coordinates

A few optimizer steps on one batch, at several widths: how far do activations and logits move? Where muP is as it should
be, every layer's coordinates move as far in a wide model as in a narrow one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptstar.configuration import run_door
from gptstar.errors import UserError
from gptstar.figure import new_figure, save_figure
from gptstar.files import make_folder
from gptstar.model.choices import check_choices
from gptstar.model.config import ModelConfig
from gptstar.model.transformer import GPT
from gptstar.training.optimizers import OptimizerConfig, build_optimizer, check_optimizer

STANDARD, MUP = "standard", "muP"
ADVANTAGE = "right logits"
COLOURS = ("#bbbbbb", "#66ccee", "#4477aa", "#228833", "#ccbb44", "#ee6677", "#aa3377")


@dataclass
class CoordinateConfig:
    """What is checked.

    model       the shape; at its d_model, or its mup_base_width if it has one, both parametrisations are the same
    ideas       files of your own whose blocks, positions and optimizers can be named
    optimizer   at its own learning rate, from the first step on
    widths      of d_model; d_attention and d_ff keep their ratio to it
    d_head      channels a head, so that there are more heads in a wider model; 0: the number of heads stays
    steps       optimizer steps; seeds: initialisations that are averaged over
    batch_size, n_token   sequences of the batch and their length: made-up tokens, some more frequent than others
    output_dir  gets coordinates.md and coordinates.png
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ideas: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=lambda: [64, 128, 256, 512])
    d_head: int = 32
    steps: int = 4
    seeds: int = 2
    batch_size: int = 8
    n_token: int = 32
    output_dir: str = "coordinates"

    def __post_init__(self) -> None:
        if len(set(self.widths)) < 2:
            raise ValueError(f"widths={list(self.widths)} must be at least two, e.g. [64,128,256]")
        for key in ("steps", "seeds", "batch_size"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)} must be at least 1")
        if not 2 <= self.n_token <= self.model.context:
            raise ValueError(f"n_token={self.n_token} must be from 2 to model.context={self.model.context}")
        if self.d_head < 0:
            raise ValueError(f"d_head={self.d_head} must be above 0, or 0 for heads that grow with the width")


@dataclass(frozen=True)
class Coordinates:
    """What was found.

    sizes: {parametrisation: {quantity: array (widths, steps + 1)}}. Of step 0 it is the mean |coordinate| at the start,
    of every later one the mean |change| since then. Of the right logits, those of the tokens that come next above the
    mean of all, it is |mean change|: what is learned. The change of all logits is mostly noise: a head that does not
    start at zero, as a tied one cannot, hands on every change of its input, under muP with a factor of 1/sqrt(width).
    """

    widths: list[int]
    sizes: dict[str, dict[str, np.ndarray]]

    def slope(self, parametrisation: str, quantity: str, step: int) -> float:
        """Of log(size) against log(width): 0 where size does not depend on width, 1 where it grows as fast."""
        sizes = self.sizes[parametrisation][quantity][:, step]
        return float(np.polyfit(np.log(self.widths), np.log(sizes), 1)[0])


def check_coordinates(config: CoordinateConfig, tell: Callable[[str], None] = lambda text: None) -> Coordinates:
    """Trains every width in both parametrisations. Raises UserError for what cannot be built."""
    widths = sorted(set(config.widths))
    shapes = {name: [shape(config, width) for width in widths] for name, shape in SHAPES.items()}
    for model in (each for models in shapes.values() for each in models):
        try:
            check_choices(model)
        except ValueError as error:
            raise UserError(str(error)) from error
        check_optimizer(config.optimizer, model)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, models in shapes.items():
        measured = []
        for model in models:
            tell(f"{name}, width {model.d_model}")
            runs = [measure(model, config, seed) for seed in range(config.seeds)]
            measured.append({quantity: np.mean([run[quantity] for run in runs], 0) for quantity in runs[0]})
        found[name] = {quantity: np.stack([each[quantity] for each in measured]) for quantity in measured[0]}
    return Coordinates(widths, found)


def widened(config: CoordinateConfig, width: int) -> ModelConfig:
    """The model at another d_model, all else in proportion. Raises UserError where heads do not come out even."""
    model = config.model
    ratio = width / model.d_model
    grown = {
        "n_head": model.d_attention * ratio / config.d_head if config.d_head else model.n_head,
        "d_head": config.d_head or model.head_size * ratio,
        "d_ff": model.d_feedforward * ratio,
    }
    n_kv_head = grown["n_head"] * model.n_key_value / model.n_head
    for key, value in {**grown, "n_kv_head": n_kv_head}.items():
        if key != "d_ff" and (value < 1 or value % 1):
            raise UserError(
                f"widths: {width} channels make model.{key}={value:g}: choose other widths or another d_head"
            )
    sizes: dict[str, Any] = {key: round(value) for key, value in grown.items()}
    return replace(model, d_model=width, **sizes, n_kv_head=round(n_kv_head), mup_base_width=0, mup_base_head=0)


def standard(config: CoordinateConfig, width: int) -> ModelConfig:
    """What one would do without muP: as much smaller weights as the presets have, 1/sqrt(d_model), and no more."""
    base = config.model.mup_base_width or config.model.d_model
    return replace(widened(config, width), init_std=config.model.init_std * (base / width) ** 0.5)


def mup(config: CoordinateConfig, width: int) -> ModelConfig:
    """With muP; heads of 1/d_head where they grow."""
    base = config.model.mup_base_width or config.model.d_model
    head = 0 if config.d_head else widened(config, base).head_size
    return replace(widened(config, width), mup_base_width=base, mup_base_head=0 if config.model.score_scale else head)


SHAPES = {STANDARD: standard, MUP: mup}


def measure(model: ModelConfig, config: CoordinateConfig, seed: int) -> dict[str, list[float]]:
    """{quantity: size at every step} of one initialisation (see `Coordinates`)."""
    torch.manual_seed(seed)
    network = GPT(model)
    optimizer = build_optimizer(network, config.optimizer)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(config.batch_size, config.n_token + 1, generator=generator)
    tokens_BT = (model.vocab_size * uniform**3).long()
    start = _activations(network, tokens_BT)
    found = {name: [value.abs().mean().item()] for name, value in start.items()}
    for _ in range(config.steps):
        network(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, value in _activations(network, tokens_BT).items():
            change = value - start[name]
            found[name].append((change.mean().abs() if name == ADVANTAGE else change.abs().mean()).item())
    return found


@torch.no_grad()
def _activations(network: GPT, tokens_BT: Tensor) -> dict[str, Tensor]:
    """What the first block reads, what every block writes, the logits, and how far the right ones are above them."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: torch.nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
        seen[name] = inputs[0] if output is None else output

    hooks = [network.blocks[0].register_forward_pre_hook(partial(keep, "embedding"))]
    hooks += [block.register_forward_hook(partial(keep, f"block {n}")) for n, block in enumerate(network.blocks)]
    try:
        seen["logits"] = network(tokens_BT[:, :-1])
    finally:
        for hook in hooks:
            hook.remove()
    right_BT = seen["logits"].gather(-1, tokens_BT[:, 1:, None])[..., 0]
    return {**seen, ADVANTAGE: right_BT - seen["logits"].mean(-1)}


def report(found: Coordinates, config: CoordinateConfig) -> str:
    """coordinates.md."""
    last = config.steps
    lines = [
        "# Coordinate check",
        "",
        f"{config.model.name} at widths {', '.join(map(str, found.widths))}; optimizer {config.optimizer.name}, "
        f"learning rate {config.optimizer.lr:g}; {config.seeds} seeds. Step 0: mean |coordinate| at the start; "
        f"step {last}: mean |change| after {last} optimizer steps on one batch. Slope: of log(size) over log(width) at "
        "that step; 0 is flat.",
        "",
        "Right logits: those of the tokens that come next, above the mean of all logits; |mean change|: what is "
        "learned. The change of all logits has a random part too, which under muP falls as 1/sqrt(width).",
    ]
    for step in (0, last):
        titles = [f"{name} {width}" for name in found.sizes for width in [*found.widths, "slope"]]
        lines += ["", f"## Step {step}", "", f"| | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
        for quantity in found.sizes[MUP]:
            cells = []
            for name, sizes in found.sizes.items():
                cells += [f"{size:.3g}" for size in sizes[quantity][:, step]]
                cells.append(f"**{found.slope(name, quantity, step):+.2f}**")
            lines.append(f"| {quantity} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![sizes over width](coordinates.png)", ""])


def draw(found: Coordinates, path: Path) -> None:
    """A row a quantity (of several blocks the first and the last), a column a parametrisation, a line a step."""
    every = list(found.sizes[MUP])
    rows = list(dict.fromkeys((*every[:2], *every[-3:])))
    figure = new_figure(9, 2.5 * len(rows) + 0.5)
    grid = figure.subplots(len(rows), len(found.sizes), sharex=True, sharey="row", squeeze=False)
    for row, quantity in enumerate(rows):
        for column, (name, sizes) in enumerate(found.sizes.items()):
            axes = grid[row][column]
            n_step = sizes[quantity].shape[1]
            for step in range(n_step):
                label = "size at the start" if step == 0 else f"change after {step} step{'s' * (step > 1)}"
                colour = COLOURS[step % len(COLOURS)]
                style = "--" if step == 0 else "-"
                axes.plot(found.widths, sizes[quantity][:, step], style, marker="o", ms=3, color=colour, label=label)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(found.widths, [str(width) for width in found.widths])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
            slope = found.slope(name, quantity, n_step - 1)
            axes.set_title(f"{name}: {quantity}, slope {slope:+.2f} after {n_step - 1} steps", fontsize=9)
        grid[row][0].set_ylabel("mean |coordinate|")
    for axes in grid[-1]:
        axes.set_xlabel("width (d_model)")
    grid[0][0].legend(frameon=False, fontsize=7)
    save_figure(figure, path)


def write_check(config: CoordinateConfig, tell: Callable[[str], None] = print) -> Path:
    """Checks, and writes coordinates.md and coordinates.png; the former's path."""
    folder = Path(config.output_dir).expanduser()
    make_folder(folder)
    found = check_coordinates(config, tell)
    draw(found, folder / "coordinates.png")
    target = folder / "coordinates.md"
    target.write_text(report(found, config), encoding="utf-8")
    for name in found.sizes:
        tell(f"{name}: what logits learn in a step grows as width^{found.slope(name, ADVANTAGE, config.steps):.2f}")
    tell(f"{target} has the rest")
    return target


if __name__ == "__main__":

    def main(config: CoordinateConfig) -> None:
        """What it is at, and where the files are."""
        write_check(config)

    run_door("coordinates", CoordinateConfig, main)
