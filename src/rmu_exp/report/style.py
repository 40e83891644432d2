"""The figures' one style: colours, sizes, spines, grid, per-cent axes. Drawn without pyplot: no global state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rmu_exp.support.files import replace_atomic

# Okabe and Ito: everyone can distinguish them
FORGET, RETAIN, GREEN, PINK, SKY, YELLOW = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, BLACK = "#777777", "#000000"
NORMS = [
    (f"norm_{role}_{state}", f"{role}, {state} model", colour, style)
    for role, colour in (("forget", FORGET), ("retain", RETAIN))
    for state, style in (("updated", "-"), ("frozen", "--"))
]
"""The four activation norms: key, label, colour, line."""


def figure_of(width: float, height: float, title: str = "", dpi: float = 120) -> Figure:
    """An empty figure, sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def bare(axes: Axes, grid: str = "both", percent: str = "") -> None:
    """A light grid (``both``, ``x`` or ``y``) below the marks, no frame; ``percent``: the axes shown in per cent."""
    axes.grid(axis=grid, color="#eeeeee")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for name in percent:
        getattr(axes, f"{name}axis").set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def accuracy_rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Make axes a list of names from the top, with accuracies from left to right."""
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel=label)
    bare(axes, "x", percent="x")


def mark(
    axes: Axes, accuracy: float, ci95: tuple[float, float], y: float, *,
    colour: str, marker: str = "o", size: float = 6, label: str = "",
) -> None:  # fmt: skip
    """An accuracy with its interval, at the height ``y``."""
    axes.plot(ci95, [y, y], color=colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
    axes.plot(accuracy, y, marker, color=colour, ms=size, label=label)


def curve(axes: Axes, metrics: Iterable[Mapping[str, float]], key: str, **look: object) -> None:
    """A metric over the steps that have it."""
    points = [(m["step"], m[key]) for m in metrics if key in m]
    if points:
        axes.plot(*zip(*points, strict=True), **look)  # type: ignore[arg-type]


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


def write(figure: Figure, file: Path, about: str = "") -> None:
    """Write a figure as PNG, whole or not at all; ``about`` stands in it as its description."""
    metadata = {"Description": about} if about else None
    replace_atomic(file, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary), metadata=metadata))
