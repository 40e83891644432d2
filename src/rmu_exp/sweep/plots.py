"""The plots of a sweep: the front, a map per pair of swept keys, the activation norms side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmu_exp.record import rundir
from rmu_exp.record.differing import one, shown
from rmu_exp.report.objectives import Axis
from rmu_exp.report.style import FORGET, GREY, NORMS, RETAIN, bare, figure_of, legend, save
from rmu_exp.report.style import curve as line
from rmu_exp.sweep import trials as reading
from rmu_exp.sweep.trials import Trial

CELLS = 8  # more values than this of a key are a scatter, not a map
CROWD = 150  # more trials than this are small dots, with intervals on the front alone
PANELS = 12
Trials = Sequence[Trial]


def draw_all(
    folder: Path, trials: Trials, axes: Sequence[Axis], best: Sequence[Trial], chosen: Trial | None
) -> list[Path]:
    """Draw what there are numbers for; returns the files in plots/, removing those of an earlier report."""
    for old in (folder / "plots").glob("*.png"):
        old.unlink()
    return save(figures(trials, axes, best, chosen), folder)


def figures(
    trials: Trials, axes: Sequence[Axis], best: Sequence[Trial], chosen: Trial | None
) -> dict[str, Figure | None]:
    """Name to figure; None where there are no numbers for it."""
    drawn: dict[str, Figure | None] = {"front": None, "norms": norms(trials, best)}
    for a, b in itertools.combinations(axes, 2):
        drawn["front" if len(axes) == 2 else f"front-{a.name}-{b.name}"] = front(trials, a, b, best, chosen)
    trials = [replace(t, settings={k: one(v) for k, v in t.settings.items()}) for t in trials]
    keys = [k for k in reading.swept(trials) if len({shown(t.settings.get(k)) for t in trials}) > 1]
    for x, y in itertools.combinations(keys, 2):
        drawn[f"map-{_plain(x)}-{_plain(y)}"] = maps(trials, axes, x, y)
    if len(keys) == 1:
        drawn[f"curve-{_plain(keys[0])}"] = curve(trials, axes, keys[0])
    return drawn


def front(trials: Trials, x: Axis, y: Axis, best: Sequence[Trial], chosen: Trial | None) -> Figure | None:
    """Each trial by two axes with 95 % intervals; the front, the chosen trial and the base model marked."""
    placed = [(t, a, b) for t in trials if (a := x.of(t.results)) and (b := y.of(t.results))]
    if not placed:
        return None
    figure = figure_of(8, 5.4, f"{len(placed)} trials, {x.name} against {y.name}; bars are 95 % intervals")
    plot = figure.subplots()
    names, many = [t.name for t in best], len(placed) > CROWD
    numbers: dict[tuple[float, float], list[str]] = {}
    for t, a, b in sorted(placed, key=lambda p: p[0].name in names):
        on = t.name in names
        colour, label = (FORGET, "on the front, numbered as in report.md") if on else (GREY, "beaten")
        if on or not many:
            plot.plot([a.low, a.high], [b.value] * 2, color=colour, lw=0.8, alpha=0.35)
            plot.plot([a.value] * 2, [b.low, b.high], color=colour, lw=0.8, alpha=0.35)
        given_up = t.state == "pruned"
        inside, label = ("white", "given up on a part of the questions") if given_up else (colour, label)
        plot.plot(a.value, b.value, "o", color=colour, ms=6 if on or not many else 3, mfc=inside, label=label, zorder=3)
        if on:
            numbers.setdefault((a.value, b.value), []).append(str(names.index(t.name) + 1))
        if chosen is not None and t.name == chosen.name:
            plot.plot(a.value, b.value, "o", ms=13, mfc="none", mec="black", label=f"chosen: {t.name}", zorder=4)
    if len(numbers) > 1:  # the edge of what the front dominates
        plot.step(*zip(*sorted(numbers), strict=True), where="post", color=FORGET, lw=1, alpha=0.6)
    for where, there in numbers.items():
        label = ", ".join(sorted(there, key=int))
        plot.annotate(label, where, (-6, 7), textcoords="offset points", ha="right", fontsize=8)
    first = placed[0][0].results
    base_x, base_y = x.of(first, "base"), y.of(first, "base")
    if base_x and base_y:
        plot.plot(base_x.value, base_y.value, "s", color=RETAIN, ms=7, label="base model", zorder=4)
    if x.tasks:
        plot.axvline(x.chance(first), color=GREY, lw=1, ls=":", label="chance")
    plot.set_xlabel(f"{x.label}  ({'less' if x.sign > 0 else 'more'} is better)")
    plot.set_ylabel(f"{y.label}  ({'less' if y.sign > 0 else 'more'} is better)")
    bare(plot, percent="xy")
    legend(figure)
    return figure


def maps(trials: Trials, axes: Sequence[Axis], x: str, y: str) -> Figure | None:
    """Accuracy over two swept keys, a panel an axis; what the other keys vary is averaged."""
    placed = [t for t in trials if any(axis.of(t.results) for axis in axes) and x in t.settings and y in t.settings]
    if not placed:
        return None
    columns, lines = _values(placed, x), _values(placed, y)
    many = max(len(columns), len(lines)) > CELLS
    others = len(placed) > len({(shown(t.settings[x]), shown(t.settings[y])) for t in placed})
    what = "accuracy after unlearning" + (", mean over the other keys" if others and not many else "")
    figure = figure_of(4.4 * len(axes), 3.9, f"{y} against {x}: {what}")
    for axis, plot in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        (_scatter if many else _cells)(plot, placed, axis, x, y)
        plot.set_xlabel(x)
        plot.set_ylabel(y)
        plot.set_title(axis.label, fontsize=9)
    return figure


def _cells(plot: Axes, placed: Trials, axis: Axis, x: str, y: str) -> None:
    columns, lines = _values(placed, x), _values(placed, y)
    cells = np.full((len(lines), len(columns)), np.nan)
    found: dict[tuple[int, int], list[float]] = {}
    for t in placed:
        if m := axis.of(t.results):
            place = lines.index(shown(t.settings[y])), columns.index(shown(t.settings[x]))
            found.setdefault(place, []).append(m.value)
    for place, values in found.items():
        cells[place] = np.mean(values)
    plot.imshow(cells, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(cells):
        text = "–" if np.isnan(value) else f"{100 * value:.1f}"
        colour = "black" if np.isnan(value) or value > 0.55 else "white"
        plot.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    plot.set_xticks(range(len(columns)), columns)
    plot.set_yticks(range(len(lines)), lines)


def _values(placed: Trials, key: str) -> list[str]:
    """The values of a key in order: numbers by size, the rest as planned."""
    values = {shown(t.settings[key]): t.settings[key] for t in placed}
    return sorted(values, key=lambda text: values[text]) if _numeric(values.values()) else list(values)


def _numeric(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _scatter(plot: Axes, placed: Trials, axis: Axis, x: str, y: str) -> None:
    points = [(t.settings[x], t.settings[y], m.value) for t in placed if (m := axis.of(t.results))]
    if not points:
        return
    *places, values = zip(*points, strict=True)
    xs, ys = ([*given] if _numeric(given) else [*map(shown, given)] for given in places)
    drawn = plot.scatter(xs, ys, c=values, vmin=0, vmax=1, cmap="cividis", s=45, edgecolors="white")
    for side, setter, given in ((plot.xaxis, plot.set_xscale, xs), (plot.yaxis, plot.set_yscale, ys)):
        numbers = [v for v in given if isinstance(v, (int, float))]
        if len(numbers) == len(given) and min(numbers) > 0 and max(numbers) / min(numbers) > 20:
            setter("log")
            side.set_major_formatter(lambda value, _: f"{value:g}")
    plot.figure.colorbar(drawn, ax=plot, format=lambda v, _: f"{100 * v:.0f} %")
    bare(plot)


def curve(trials: Trials, axes: Sequence[Axis], key: str) -> Figure | None:
    """Accuracy over the only swept key, with 95 % intervals."""
    figure = figure_of(7, 3.9, f"Accuracy after unlearning over {key}; bands are 95 % intervals")
    having = [t for t in trials if key in t.settings]
    plot = figure.subplots()
    numeric = _numeric(t.settings.get(key) for t in trials)
    for axis, colour in zip(axes, (FORGET, RETAIN, GREY), strict=False):
        measured = [(t.settings[key], m) for t in having if (m := axis.of(t.results))]
        if measured:
            points = sorted(measured, key=lambda p: p[0]) if numeric else [(shown(v), m) for v, m in measured]
            xs, ms = zip(*points, strict=True)
            plot.fill_between(xs, [m.low for m in ms], [m.high for m in ms], color=colour, alpha=0.15, lw=0)
            plot.plot(xs, [m.value for m in ms], "o-", color=colour, ms=4, lw=1.4, label=axis.label)
    if not plot.lines:
        return None
    plot.set(xlabel=key, ylim=(0, 1.02))
    bare(plot, percent="y")
    legend(figure)
    return figure


def norms(trials: Trials, best: Sequence[Trial]) -> Figure | None:
    """Activation norms over the steps, a panel a trial, those of the front first."""
    first = [t.name for t in best]
    ordered = sorted(trials, key=lambda t: t.name not in first) if len(trials) > PANELS else trials
    curves = [(t, lines) for t in ordered if t.folder and (lines := _norm_lines(t.folder))][:PANELS]
    if not curves:
        return None
    wide = min(4, len(curves))
    high, more = math.ceil(len(curves) / wide), len(trials) - len(curves)
    left_out = f"; {more} more trials not drawn" if more > 0 else ""
    title = f"Length of the activations over the steps, each topic a line{left_out}"
    figure = figure_of(2.9 * wide + 0.4, 2.2 * high + 0.9, title)
    panels = list(figure.subplots(high, wide, squeeze=False).flat)
    for plot in panels[len(curves) :]:
        plot.set_axis_off()
    for plot, (trial, lines) in zip(panels, curves, strict=False):
        for topic in dict.fromkeys(m["topic"] for m in lines):
            mine = [m for m in lines if m["topic"] == topic]
            for key, label, colour, style in NORMS:
                line(plot, mine, key, color=colour, ls=style, lw=1, label=label)
            plot.axhline(mine[0]["steer"], color=GREY, lw=0.8, label="steer")
        plot.set_ylim(bottom=0)
        plot.set_title(trial.name, fontsize=8)
        plot.tick_params(labelsize=7)
        bare(plot)
    legend(figure, columns=5, size=8)
    return figure


def _norm_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with all that is drawn."""
    lines = rundir.whole_lines(folder / rundir.METRICS)
    return [m for m in lines if isinstance(m.get("topic"), str) and _has_numbers(m)]


def _has_numbers(metrics: dict[str, Any]) -> bool:
    drawn = ["step", "steer", "norm_forget_updated", *(key for key in metrics if key.startswith("norm_"))]
    return all(isinstance(metrics.get(key), (int, float)) for key in drawn)


def _plain(key: str) -> str:
    return key.split(".")[-1].split("/")[-1]
