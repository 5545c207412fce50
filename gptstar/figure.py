"""What every picture has in common: how it is laid out and written, and its colours."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from gptstar.files import replace_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa3377", "#ccbb44", "#66ccee", "#222222", "#ee7733")
BLUE, RED, GREEN = COLOURS[:3]
GREY = "#bbbbbb"


def new_figure(width: float, height: float) -> Figure:
    """Of so many inches; needs no screen. Loads matplotlib, which takes a while."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks gets boxes
        figure.savefig(content, dpi=110, format="png")
    replace_bytes(path, content.getvalue())
