"""The plots of a sweep: the front, a map per pair of swept keys, the activation norms side by side."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmu_exp.report.objectives import Axis
from rmu_exp.report.style import FORGET, GREY, RETAIN, save
from rmu_exp.sweep import trials as reading
from rmu_exp.sweep.trials import Trial

CELLS = 8  # more values than this of a key are a scatter, not a map
CROWD = 150  # more trials than this are small dots, with intervals on the front alone
PANELS = 12
ROLES, STATES = (("forget", FORGET), ("retain", RETAIN)), (("updated", "-"), ("frozen", "--"))
Trials = Sequence[Trial]


def draw_all(
    folder: Path, trials: Trials, axes: Sequence[Axis], best: Sequence[Trial], chosen: Trial | None
) -> list[Path]:
    """Draw what there are numbers for; returns the files in plots/, removing those of an earlier report."""
    figures: dict[str, Figure | None] = {"front": None, "norms": norms(trials, best)}
    for a, b in itertools.combinations(axes, 2):
        figures["front" if len(axes) == 2 else f"front-{a.name}-{b.name}"] = front(trials, a, b, best, chosen)
    keys = [k for k in reading.swept(trials) if len({reading.show(t.settings.get(k)) for t in trials}) > 1]
    for x, y in itertools.combinations(keys, 2):
        figures[f"map-{_plain(x)}-{_plain(y)}"] = maps(trials, axes, x, y)
    if len(keys) == 1:
        figures[f"curve-{_plain(keys[0])}"] = curve(trials, axes, keys[0])
    for old in (folder / "plots").glob("*.png"):
        old.unlink()
    return save(figures, folder)


def front(trials: Trials, x: Axis, y: Axis, best: Sequence[Trial], chosen: Trial | None) -> Figure | None:
    """Each trial by two axes with 95 % intervals; the front, the chosen trial and the base model marked."""
    placed = [(t, a, b) for t in trials if (a := x.of(t.results)) and (b := y.of(t.results))]
    if not placed:
        return None
    figure = Figure(figsize=(8, 5.4), dpi=120, layout="constrained")
    plot = figure.subplots()
    names, many = {t.name for t in best}, len(placed) > CROWD
    for t, a, b in sorted(placed, key=lambda p: p[0].name in names):
        on, given_up = t.name in names, t.state == "pruned"
        colour = FORGET if on else GREY
        errors: dict[str, Any] = {"xerr": [[a.value - a.low], [a.high - a.value]]}
        errors["yerr"] = [[b.value - b.low], [b.high - b.value]]
        if on or not many:
            plot.errorbar(a.value, b.value, **errors, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.35)
        size = 6 if on or not many else 3
        plot.plot(a.value, b.value, "o", color=colour, ms=size, mfc="white" if given_up else colour, zorder=3)
    _steps(plot, [(a.value, b.value) for t, a, b in placed if t.name in names], y.sign)
    numbers: dict[tuple[float, float], list[str]] = {}
    for number, trial in enumerate(best, 1):
        where = next((a.value, b.value) for t, a, b in placed if t.name == trial.name)
        numbers.setdefault(where, []).append(str(number))
    for where, there in numbers.items():
        plot.annotate(", ".join(there), where, (-6, 7), textcoords="offset points", ha="right", fontsize=8)
    for t, a, b in placed:
        if chosen is not None and t.name == chosen.name:
            plot.plot(a.value, b.value, "o", ms=13, mfc="none", mec="black", label=f"chosen: {t.name}", zorder=4)
    first = placed[0][0].results
    base_x, base_y = x.of(first, "base"), y.of(first, "base")
    if base_x and base_y:
        plot.plot(base_x.value, base_y.value, "s", color=RETAIN, ms=7, label="base model", zorder=4)
    if x.tasks:
        plot.axvline(x.chance(first), color=GREY, lw=1, ls=":", label="chance")
    plot.plot([], [], "o", color=FORGET, label="on the front, numbered as in report.md")
    plot.plot([], [], "o", color=GREY, label="beaten")
    if any(t.state == "pruned" for t, *_ in placed):
        plot.plot([], [], "o", mfc="white", mec=GREY, label="given up on a part of the questions")
    plot.set_xlabel(f"{x.label}  ({'less' if x.sign > 0 else 'more'} is better)")
    plot.set_ylabel(f"{y.label}  ({'less' if y.sign > 0 else 'more'} is better)")
    _percent(plot.xaxis, plot.yaxis)
    _bare(plot)
    plot.legend(frameon=False, fontsize=9)
    _title(figure, f"{len(placed)} trials, {x.name} against {y.name}; bars are 95 % intervals")
    return figure


def _steps(plot: Axes, points: Sequence[tuple[float, float]], sign: int) -> None:
    """The edge of what the front dominates."""
    ordered = sorted(points)
    if len(ordered) > 1:
        xs, ys = zip(*ordered, strict=True)
        plot.step(xs, ys, where="post", color=FORGET, lw=1, alpha=0.6)


def maps(trials: Trials, axes: Sequence[Axis], x: str, y: str) -> Figure | None:
    """Accuracy over two swept keys, a panel an axis; what the other keys vary is averaged."""
    placed = [t for t in trials if any(axis.of(t.results) for axis in axes) and x in t.settings and y in t.settings]
    if not placed:
        return None
    figure = Figure(figsize=(4.4 * len(axes), 3.9), dpi=120, layout="constrained")
    many = max(len({reading.show(t.settings[key]) for t in placed}) for key in (x, y)) > CELLS
    for axis, plot in zip(axes, figure.subplots(1, len(axes), squeeze=False)[0], strict=True):
        (_scatter if many else _cells)(figure, plot, placed, axis, x, y)
        plot.set_xlabel(x)
        plot.set_ylabel(y)
        plot.set_title(axis.label, fontsize=9)
    others = len(placed) > len({(reading.show(t.settings[x]), reading.show(t.settings[y])) for t in placed})
    what = "accuracy after unlearning" + (", mean over the other keys" if others and not many else "")
    _title(figure, f"{y} against {x}: {what}")
    return figure


def _cells(figure: Figure, plot: Axes, placed: Trials, axis: Axis, x: str, y: str) -> None:
    columns, lines = _values(placed, x), _values(placed, y)
    cells = np.full((len(lines), len(columns)), np.nan)
    for i, line in enumerate(lines):
        for j, column in enumerate(columns):
            here = [t for t in placed if (reading.show(t.settings[y]), reading.show(t.settings[x])) == (line, column)]
            measured = [m.value for t in here if (m := axis.of(t.results))]
            if measured:
                cells[i, j] = sum(measured) / len(measured)
    plot.imshow(cells, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(cells):
        text = "–" if np.isnan(value) else f"{100 * value:.1f}"
        colour = "black" if np.isnan(value) or value > 0.55 else "white"
        plot.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    plot.set_xticks(range(len(columns)), columns)
    plot.set_yticks(range(len(lines)), lines)


def _values(placed: Trials, key: str) -> list[str]:
    """The values of a key in order: numbers by size, the rest as planned."""
    values = {reading.show(t.settings[key]): t.settings[key] for t in placed}
    numeric = all(isinstance(v, (int, float)) for v in values.values())
    return sorted(values, key=lambda text: values[text]) if numeric else list(values)


def _scatter(figure: Figure, plot: Axes, placed: Trials, axis: Axis, x: str, y: str) -> None:
    points = [(t.settings[x], t.settings[y], m.value) for t in placed if (m := axis.of(t.results))]
    xs, ys, values = zip(*points, strict=True)
    drawn = plot.scatter(xs, ys, c=values, vmin=0, vmax=1, cmap="cividis", s=45, edgecolors="white")
    for side, setter, given in ((plot.xaxis, plot.set_xscale, xs), (plot.yaxis, plot.set_yscale, ys)):
        if all(isinstance(v, (int, float)) and v > 0 for v in given) and max(given) / min(given) > 20:
            setter("log")
            side.set_major_formatter(lambda value, _: f"{value:g}")
    figure.colorbar(drawn, ax=plot, format=lambda v, _: f"{100 * v:.0f} %")
    _bare(plot)


def curve(trials: Trials, axes: Sequence[Axis], key: str) -> Figure | None:
    """Accuracy over the only swept key, with 95 % intervals."""
    figure = Figure(figsize=(7, 3.9), dpi=120, layout="constrained")
    plot, order = figure.subplots(), _values([t for t in trials if key in t.settings], key)
    numeric = all(isinstance(t.settings.get(key), (int, float)) for t in trials)
    drawn = False
    for axis, colour in zip(axes, (FORGET, RETAIN, GREY), strict=False):
        measured = [(t.settings[key], m) for t in trials if key in t.settings and (m := axis.of(t.results))]
        points = [(v if numeric else order.index(reading.show(v)), m) for v, m in measured]
        points.sort(key=lambda p: p[0])
        if points:
            xs, ms = zip(*points, strict=True)
            plot.fill_between(xs, [m.low for m in ms], [m.high for m in ms], color=colour, alpha=0.15, lw=0)
            plot.plot(xs, [m.value for m in ms], "o-", color=colour, ms=4, lw=1.4, label=axis.label)
            drawn = True
    if not numeric:
        plot.set_xticks(range(len(order)), order)
    plot.set_xlabel(key)
    plot.set_ylim(0, 1.02)
    _percent(plot.yaxis)
    _bare(plot)
    if drawn:
        plot.legend(frameon=False, fontsize=9)
    _title(figure, f"Accuracy after unlearning over {key}; bands are 95 % intervals")
    return figure if drawn else None


def norms(trials: Trials, best: Sequence[Trial]) -> Figure | None:
    """Activation norms over the steps, a panel a trial, those of the front first."""
    first = [t.name for t in best]
    ordered = sorted(trials, key=lambda t: t.name not in first) if len(trials) > PANELS else trials
    curves = [(t, lines) for t in ordered if (lines := _norm_lines(t.folder))][:PANELS]
    if not curves:
        return None
    wide = min(4, len(curves))
    high = -(-len(curves) // wide)
    figure = Figure(figsize=(2.9 * wide + 0.4, 2.2 * high + 0.9), dpi=120, layout="constrained")
    panels = list(figure.subplots(high, wide, squeeze=False).flat)
    for plot in panels:
        plot.set_axis_off()
    for plot, (trial, lines) in zip(panels, curves, strict=False):
        plot.set_axis_on()
        for topic in dict.fromkeys(line["topic"] for line in lines):
            mine = [line for line in lines if line["topic"] == topic]
            for role, colour in ROLES:
                for state, style in STATES:
                    points = [(m["step"], m[f"norm_{role}_{state}"]) for m in mine if f"norm_{role}_{state}" in m]
                    if points:
                        plot.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1)
            plot.axhline(mine[0]["steer"], color=GREY, lw=0.8)
        plot.set_ylim(bottom=0)
        plot.set_title(trial.name, fontsize=8)
        plot.tick_params(labelsize=7)
        _bare(plot)
    kinds = [*((f"{role}, {state}", c, s) for role, c in ROLES for state, s in STATES), ("steer", GREY, "-")]
    handles = [panels[0].plot([], [], color=c, ls=s, label=label)[0] for label, c, s in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    more = len(trials) - len(curves)
    left_out = f"; {more} more trials not drawn" if more > 0 else ""
    _title(figure, f"Length of the activations over the steps, each topic a line{left_out}")
    return figure


def _norm_lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return []
    found = []
    for line in file.read_bytes().splitlines():
        with suppress(ValueError, RecursionError):  # a trial may be writing it, or have been cut off
            found.append(json.loads(line))
    return [m for m in found if _has_norms(m)]


def _has_norms(metrics: Any) -> bool:
    if not isinstance(metrics, dict) or not isinstance(metrics.get("topic"), str):
        return False
    drawn = ["step", "steer", "norm_forget_updated", *(key for key in metrics if key.startswith("norm_"))]
    return all(isinstance(metrics.get(key), (int, float)) for key in drawn)


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=10, x=0.01, ha="left")


def _plain(key: str) -> str:
    return key.split(".")[-1].split("/")[-1]


def _percent(*sides: Any) -> None:
    for side in sides:
        side.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _bare(plot: Axes) -> None:
    plot.grid(color="#eeeeee")
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
