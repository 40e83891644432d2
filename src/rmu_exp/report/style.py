"""The figures' one style: colours, sizes, spines, grid, per-cent axes. Drawn without pyplot: no global state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rmu_exp.support.files import replace_atomic

# Okabe and Ito: everyone can distinguish them
FORGET, RETAIN, GREEN, PINK, SKY, YELLOW = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, BLACK = "#777777", "#000000"


def figure_of(width: float, height: float, title: str = "", dpi: float = 120) -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    if title:
        set_title(figure, title)
    return figure


def set_title(figure: Figure, text: str) -> None:
    """A figure's title, at its left."""
    figure.suptitle(text, fontsize=10, x=0.01, ha="left")


def bare(axes: Axes, grid: str = "both", percent: str = "") -> None:
    """A light grid (``both``, ``x`` or ``y``) below the marks, no frame; ``percent``: the axes shown in per cent."""
    axes.grid(axis=grid, color="#eeeeee")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for name in percent:
        getattr(axes, f"{name}axis").set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def legend(figure: Figure, panels: Iterable[Axes] | None = None, columns: int = 3, size: float = 9) -> None:
    """One legend below the panels (all, if none are given), each label once."""
    found: dict[str, Artist] = {}
    for axes in figure.axes if panels is None else panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(str(label), handle)
    figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns, frameon=False, fontsize=size
    )


def save(figures: Mapping[str, Figure | None], folder: Path) -> list[Path]:
    """Write each figure that there is as ``plots/NAME.png`` in the folder; returns the files."""
    written = {folder / "plots" / f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    for path, figure in written.items():
        write(figure, path)
    return list(written)


def write(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    replace_atomic(file, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))
