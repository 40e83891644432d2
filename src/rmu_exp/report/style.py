"""Colours and sizes of the figures. Drawn without pyplot: no global state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rmu_exp.support.files import replace_atomic

# Okabe and Ito: told apart by everyone
FORGET, RETAIN, GREEN, PINK, SKY, YELLOW = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, BLACK = "#777777", "#000000"


def figure_of(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def save(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Write each figure that there is as ``plots/NAME.png`` in the folder; returns the files."""
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / "plots" / f"{name}.png"
            replace_atomic(path, partial(_draw, figure))
            written.append(path)
    return written


def _draw(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure).print_png(str(file))
