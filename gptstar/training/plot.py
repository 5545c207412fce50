"""The loss curve of a run, from its metrics.jsonl, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptstar.figure import BLUE, RED, new_figure, save_figure
from gptstar.training.metrics import read_metrics


def draw_loss_curve(metrics: Path, output: Path, title: str) -> None:
    """Training loss (every step, and smoothed) and held-out loss in nats a token, the last one in bits a byte too."""
    lines = read_metrics(metrics)
    train = np.array([(line["tokens"], line["loss"]) for line in lines if line.get("loss") is not None]).reshape(-1, 2)
    held_out = [line for line in lines if "validation_loss" in line]
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    tokens = train[:, 0] / 1e6
    axes.plot(tokens, train[:, 1], color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(tokens, _smooth(train[:, 1]), color=BLUE, label="training (smoothed)")
    if held_out:
        x = [line["tokens"] / 1e6 for line in held_out]
        y = [line["validation_loss"] for line in held_out]
        axes.plot(x, y, "o-", color=RED, markersize=4, label="held out")
        last = held_out[-1]
        axes.annotate(
            f"{last['validation_loss']:.3f} nats/token\n{last['bits_per_byte']:.3f} bits/byte",
            (x[-1], y[-1]),
            xytext=(-10, 28),
            textcoords="offset points",
            ha="right",
            color=RED,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 2},
        )
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats/token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    save_figure(figure, output)


def _smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Mean over a centred window of a share of the run, narrower at the ends."""
    half = max(1, int(len(values) * share))
    total = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    return (total[high] - total[low]) / (high - low)
