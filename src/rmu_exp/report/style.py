"""The figures' one style: colours, sizes, spines, grid, per-cent axes. Drawn without pyplot: no global state."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import fill

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.gridspec import GridSpec
from matplotlib.text import Text

from rmu_exp.support.files import replace_atomic

log = logging.getLogger("rmu_exp")
# Okabe and Ito: everyone can distinguish them
FORGET, RETAIN, GREEN, PINK, SKY, YELLOW = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
GREY, BLACK = "#777777", "#000000"
LONG = 28  # letters of a legend's label, above which two do not fit beside each other in a column
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


def write(figure: Figure, file: Path, about: str | None = None) -> None:
    """Write a figure as its file's ending says (png, pdf, svg), whole or not at all; the same bytes each time.

    Args:
        about: stands in the file as its description.
    """
    kind = file.suffix[1:]
    metadata = {
        "png": {"Description": about} if about else {},
        "pdf": {"CreationDate": None, "Subject": about},
        "svg": {"Date": None, "Description": about},
    }[kind]

    def draw() -> None:
        replace_atomic(file, lambda temporary: figure.savefig(temporary, format=kind, metadata=metadata))

    with (
        rc_context({"pdf.fonttype": 42, "svg.hashsalt": "rmu_exp"}),  # fonts that publishers take; ids that stay
        warnings.catch_warnings(record=True) as said,
    ):
        draw()
        if any("missing from font" in str(warning.message) for warning in said):
            _find_letters(figure)
            draw()


def _find_letters(figure: Figure) -> None:
    """Let text with letters that the figure's font lacks, such as Chinese, fall back on an installed font with them."""
    for text in figure.findobj(Text):
        known = get_font(fontManager.findfont(text.get_fontproperties())).get_charmap()
        lacking = {ord(letter) for letter in text.get_text() if letter.isprintable()} - known.keys()
        if lacking and (other := _font_with(frozenset(lacking))) is not None:
            text.set_fontfamily([*text.get_fontfamily(), other])


@cache
def _font_with(letters: frozenset[int]) -> str | None:
    """An installed font that has these letters; None, and a word in the log: there is none."""
    for font in fontManager.ttflist:
        if "Last Resort" not in font.name and letters <= get_font(font.fname).get_charmap().keys():
            return str(font.name)
    shown = "".join(map(chr, sorted(letters)))
    log.warning("figures: no installed font has %s, so that they show boxes; install one, such as Noto Sans CJK", shown)
    return None


def narrow(figure: Figure, width: float, size: float = 7) -> Figure:
    """Make a figure fit a column of a paper, in place: its panels below one another, its title left to the caption.

    Args:
        width: of the column, in inches.
        size: of the text, in points; what is larger becomes so small.
    """
    _, height = figure.get_size_inches()
    placed = [(axes, spec) for axes in figure.axes if axes.get_visible() and (spec := axes.get_subplotspec())]
    panels = [axes for axes, _ in placed]
    if max((spec.get_gridspec().ncols for _, spec in placed), default=1) > 1:
        label = panels[0].get_ylabel()
        grid = GridSpec(len(panels), 1, figure=figure)
        for place, axes in enumerate(panels):
            axes.set_subplotspec(grid[place])
            axes.tick_params(labelleft=True)
            axes.set_ylabel(axes.get_ylabel() or label)
        height = 0.0  # that of its panels counts
    letters = int(20 * width)  # that fit across, in text of this size
    for axes in panels:
        beside = max((len(tick.get_text()) for tick in axes.get_yticklabels()), default=0)
        axes.set_xlabel(fill(axes.get_xlabel(), max(20, letters - 12 - beside)))
        axes.set_ylabel(fill(axes.get_ylabel(), letters // 2 - 6))
        names = [name for tick in axes.get_xticklabels() for name in tick.get_text().split("\n")]
        if sum(map(len, names)) > letters and any(name[:1].isalpha() for name in names):
            axes.tick_params(axis="x", labelrotation=90)
    rows = _legend_in_column(figure)
    figure.suptitle("")
    for text in figure.findobj(Text):
        text.set_fontsize(min(size, text.get_fontsize()))
    figure.set_size_inches(width, max(0.7 * width * len(panels), 0.65 * height) + 0.15 * rows)
    return figure


def _legend_in_column(figure: Figure) -> int:
    """Let legends have as many columns as fit; gives the number of their rows."""
    rows = 0
    for old in figure.legends:
        labels, handles = (
            [text.get_text() for text in old.get_texts()],
            [h for h in old.legend_handles if h is not None],
        )
        old.remove()
        fits = 1 if max(map(len, labels), default=0) > LONG else 2
        rows += -(-len(labels) // fits)
        figure.legend(handles, labels, loc="outside lower center", ncols=fits, frameon=False, handlelength=1.5)
    return rows
