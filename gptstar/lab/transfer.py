"""Does the best learning rate of a narrow model hold on a wide one? Loss over learning rate, a line a width, with muP
and without (Yang et al., arXiv:2203.03466, figure 1), from finished runs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptstar.errors import UserError
from gptstar.figure import new_figure, save_figure
from gptstar.lab.reading.runs import Run

STANDARD, MUP = "standard", "muP"


@dataclass(frozen=True)
class Sweep:
    """One width in one parametrisation.

    rates   learning rates, ascending; losses: final ones in nats a token at each of them, of all seeds, infinite where
            the run diverged
    """

    width: int
    rates: list[float]
    losses: list[list[float]]

    @property
    def means(self) -> list[float]:
        """Over seeds."""
        return [float(np.mean(losses)) for losses in self.losses]

    @property
    def best(self) -> int:
        """The number of the rate with the lowest mean."""
        return int(np.argmin(self.means))

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the first or last one tried: the optimum may lie beyond."""
        return self.best in (0, len(self.rates) - 1)

    @property
    def optimum(self) -> float:
        """The rate at the lowest point of a parabola in log(rate) through the best rate and its neighbours."""
        if self.at_edge:
            return self.rates[self.best]
        x, y = np.log2(self.rates[self.best - 1 : self.best + 2]), self.means[self.best - 1 : self.best + 2]
        if not np.isfinite(y).all():
            return self.rates[self.best]
        a, b, _ = np.polyfit(x, y, 2)
        return float(2 ** (-b / (2 * a))) if a > 0 else self.rates[self.best]

    def loss_at(self, rate: float) -> float:
        """Mean final loss, between the rates tried on a straight line over log(rate); infinite beyond them."""
        if not self.rates[0] <= rate <= self.rates[-1]:
            return math.inf
        if rate in self.rates:
            return self.means[self.rates.index(rate)]
        between = float(np.interp(math.log2(rate), np.log2(self.rates), self.means))
        return between if math.isfinite(between) else math.inf


@dataclass(frozen=True)
class Transfer:
    """What a study found: {parametrisation: its sweeps, narrow to wide}. excluded: {run: why}."""

    sweeps: dict[str, list[Sweep]]
    excluded: dict[str, str] = field(default_factory=dict)

    def octaves(self, name: str) -> float:
        """By how many octaves (doublings) the optimum of the widest lies above that of the narrowest."""
        first, last = self.sweeps[name][0], self.sweeps[name][-1]
        return math.log2(last.optimum / first.optimum)

    def cost(self, name: str) -> float:
        """What the narrowest model's best rate costs the widest one, in nats a token above its own best."""
        first, last = self.sweeps[name][0], self.sweeps[name][-1]
        return last.loss_at(first.rates[first.best]) - last.means[last.best]


def transfer(runs: list[Run]) -> Transfer:
    """Sorts finished runs by parametrisation, width and learning rate.

    A run as wide as its own mup_base_width belongs to both. Raises UserError where no parametrisation has two widths
    with three rates each.
    """
    found: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    excluded: dict[str, str] = {}
    for run in runs:
        loss = math.inf if run.diverged else run.final_loss
        if loss is None or (run.problem is not None and not run.diverged):
            excluded[run.source] = run.problem or "it has no final loss"
            continue
        try:
            width, rate = run.config["model"]["d_model"], float(run.config["optimizer"]["lr"])
        except (KeyError, TypeError):
            excluded[run.source] = "its configuration does not say model.d_model and optimizer.lr"
            continue
        base = run.config["model"].get("mup_base_width", 0)
        for name in {MUP if base else STANDARD, STANDARD if base in (0, width) else MUP}:
            found[name, width][rate].append(loss)
    sweeps: dict[str, list[Sweep]] = {STANDARD: [], MUP: []}
    for (name, width), losses in sorted(found.items()):
        if sum(math.isfinite(max(values)) for values in losses.values()) > 2:
            rates = sorted(losses)
            sweeps[name].append(Sweep(width, rates, [losses[rate] for rate in rates]))
    sweeps = {name: each for name, each in sweeps.items() if len(each) > 1}
    if not sweeps:
        raise UserError(
            f"{len(runs)} runs, {len(runs) - len(excluded)} of them finished, are no study of transfer: it takes two "
            "widths (model.d_model) with three learning rates (optimizer.lr) each"
        )
    return Transfer(sweeps, excluded)


def transfer_markdown(found: Transfer) -> str:
    """transfer.md."""
    lines = ["# Learning-rate transfer across width", ""]
    for name, sweeps in found.sweeps.items():
        first, last = sweeps[0], sweeps[-1]
        edge = [str(sweep.width) for sweep in sweeps if sweep.at_edge]
        cost = found.cost(name)
        lines.append(
            f"- **{name}**: from width {first.width} to {last.width} the best learning rate moves by "
            f"{found.octaves(name):+.2f} octaves ({first.optimum:.2g} to {last.optimum:.2g}); the rate that is best at "
            f"{first.width} {_costs(cost, first.rates[first.best] in last.rates)} at {last.width}."
            + (
                f" At width {', '.join(edge)} the best rate is the last one tried: the optimum lies beyond."
                if edge
                else ""
            )
        )
    for name, sweeps in found.sweeps.items():
        rates = sorted({rate for sweep in sweeps for rate in sweep.rates})
        lines += ["", f"## {name}", ""]
        lines.append(f"| width | {' | '.join(f'{rate:.2g}' for rate in rates)} | best (parabola) | seeds |")
        lines.append(f"|---:|{'---:|' * (len(rates) + 2)}")
        for sweep in sweeps:
            means = dict(zip(sweep.rates, sweep.means, strict=True))
            cells = [_cell(means.get(rate)) for rate in rates]
            best = rates.index(sweep.rates[sweep.best])
            cells[best] = f"**{cells[best]}**"
            counts = {len(losses) for losses in sweep.losses}
            seeds = str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
            lines.append(f"| {sweep.width} | {' | '.join(cells)} | {sweep.optimum:.2g} | {seeds} |")
    lines += ["", "Final loss in nats a token, mean over seeds. Rates are the base ones, before muP's own factors.", ""]
    lines += [f"Left out: {source} ({why})." for source, why in found.excluded.items()]
    return "\n".join([*lines, "", "![loss over learning rate](transfer.png)", ""])


def _costs(nats: float, tried: bool) -> str:
    if math.isfinite(nats):
        return f"costs {nats:.4f} nats a token"
    return "diverges" if tried else "was not tried"


def _cell(mean: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.4f}" if math.isfinite(mean) else "diverged"


def draw_transfer(found: Transfer, path: Path) -> None:
    """Loss over learning rate, a panel a parametrisation, a line a width; bars from the best seed to the worst."""
    from matplotlib import colormaps

    figure = new_figure(4.8 * len(found.sweeps), 4.2)
    panels = figure.subplots(1, len(found.sweeps), sharex=True, sharey=True, squeeze=False)[0]
    widths = sorted({sweep.width for sweeps in found.sweeps.values() for sweep in sweeps})
    for axes, (name, sweeps) in zip(panels, found.sweeps.items(), strict=True):
        for sweep in sweeps:
            colour = colormaps["viridis"](0.85 * (1 - widths.index(sweep.width) / max(1, len(widths) - 1)))
            means = np.array(sweep.means)
            there = np.isfinite(means)  # what diverged is above the picture
            low, high = (np.array([f(losses) for losses in sweep.losses]) for f in (min, max))
            bars = np.stack((means[there] - low[there], high[there] - means[there]))
            axes.errorbar(
                np.array(sweep.rates)[there],
                means[there],
                bars,
                color=colour,
                marker="o",
                ms=3,
                capsize=2,
                label=f"{sweep.width}",
            )
            axes.axvline(sweep.optimum, color=colour, linestyle=":", linewidth=0.9)
            axes.plot(sweep.rates[sweep.best], means[sweep.best], "*", color=colour, ms=13)
        axes.set(
            xscale="log", xlabel="learning rate", title=f"{name}: optimum moves {found.octaves(name):+.2f} octaves"
        )
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("final loss (nats/token)")
    panels[0].legend(title="width", frameon=False)
    save_figure(figure, path)


def write_transfer(runs: list[Run], folder: Path) -> Path:
    """transfer.md and transfer.png in an existing folder; the former's path. Raises UserError as `transfer` does."""
    found = transfer(runs)
    draw_transfer(found, folder / "transfer.png")
    target = folder / "transfer.md"
    target.write_text(transfer_markdown(found), encoding="utf-8")
    return target
