"""What attacks found: the worst case in a sentence, and figures. Every attack is shown in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmu_exp.record.results import AttackEntry, CurveData, Interval, Results
from rmu_exp.report.objectives import worst
from rmu_exp.report.style import BLACK, FORGET, GREEN, GREY, PINK, RETAIN, SKY, YELLOW, bare, figure_of, legend
from rmu_exp.report.table import interval, percent
from rmu_exp.report.tables import budget

COLOURS = {"base": RETAIN, "unlearned": FORGET, "oracle": GREEN, "shuffled": GREY, "random": GREY}
OTHERS = (FORGET, RETAIN, GREEN, PINK, SKY, YELLOW, BLACK)
CONTROLS = {"oracle": (0.08, "s", "control: oracle"), "base": (0.24, "^", "control: base")}
NOTHING = (0.16, "x", "control: random")  # nothing to find in it
WIDEST = 3  # panels in a row


def sentence(results: Results) -> str | None:
    """The worst case over all attacks beside the plain answers, in one sentence; None: no attack was scored."""
    most = worst(results)
    if most is None:
        return None
    entry = results.attacks[most.attack]
    assert entry.forget_acc is not None
    count = "1 attack" if most.attacks == 1 else f"{most.attacks} attacks"
    return (
        f"**Asked plainly, {percent(entry.forget_acc.before)} of the questions on what was to be forgotten are "
        f"answered correctly; under the worst of {count} ({most.attack}: {budget(entry)}) {percent(most.acc)}** "
        f"({interval(most.interval)}, an interval that holds for the largest of so many; "
        f"chance {percent(entry.chance)}; n = {most.n})."
    )


def summary(results: Results) -> Figure | None:
    """All attacks with intervals, the plain answers, every control, and chance."""
    scored = {name: marks(entry) for name, entry in results.attacks.items() if entry.forget_acc}
    if not scored:
        return None
    order = sorted(scored, key=lambda name: -scored[name][0].acc)
    figure = figure_of(8, 1.6 + 0.55 * len(order), "What attacks bring back")
    axes = figure.subplots()
    for y, name in enumerate(order):
        for mark in scored[name]:
            at = y + mark.shift
            axes.plot(mark.ci95, [at, at], color=mark.colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
            axes.plot(mark.acc, at, mark.marker, color=mark.colour, ms=6, label=mark.label)
    axes.axvline(results.attacks[next(iter(scored))].chance or 0, color=GREY, lw=1, ls=":", label="chance")
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("accuracy on questions about the forget topics; bars are 95 % intervals")
    bare(axes, "x", percent="x")
    legend(figure)
    return figure


class Mark(NamedTuple):
    """A point of the summary with its interval."""

    acc: float
    ci95: Interval
    shift: float
    marker: str
    colour: str
    label: str


def marks(entry: AttackEntry) -> list[Mark]:
    """What is drawn of a scored attack: under attack, asked plainly, and each control of a known kind."""
    assert entry.forget_acc is not None
    assert entry.ci95 is not None
    found = [
        Mark(entry.forget_acc.after, entry.ci95.after, -0.24, "o", FORGET, "under attack"),
        Mark(entry.forget_acc.before, entry.ci95.before, -0.08, "D", BLACK, "asked plainly"),
    ]
    for name, control in entry.controls.items():
        kind = name.split(",")[0]
        if kind in COLOURS and kind != "unlearned":
            shift, marker, label = CONTROLS.get(kind, NOTHING)
            found.append(Mark(control.acc, control.ci95, shift, marker, COLOURS[kind], label))
    return found


def figures(results: Results) -> list[str]:
    """Names of the figures of attacks, the summary first."""
    return ["attacks", *(f"{name}_{curve}" for name, entry in results.attacks.items() for curve in entry.curves)]


def curves(results: Results) -> dict[str, Figure]:
    """Name to figure, for every curve that an attack left."""
    entries = results.attacks.items()
    return {f"{name}_{curve}": draw(data) for name, entry in entries for curve, data in entry.curves.items()}


def draw(curve: CurveData) -> Figure:
    """A figure of one curve: one panel each, one colour per line; lines without points are left out."""
    panels = curve.panels
    wide = 2 if len(panels) == 4 else min(WIDEST, len(panels))
    tall = math.ceil(len(panels) / wide)
    figure = figure_of(max(5.5, 3.4 * wide), 0.9 + 2.7 * tall, curve.title)
    grid = figure.subplots(tall, wide, sharey=True, squeeze=False).flatten()
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name in names:
            if lines.get(name):
                xs, ys = zip(*lines[name], strict=True)
                style = "--" if name.partition(", ")[2] in ("plain", "oracle") else "-"
                axes.plot(xs, ys, style, color=_colour(name, names), lw=1.4, marker="o", ms=3, label=name)
        if curve.chance is not None:
            axes.axhline(curve.chance, color=GREY, lw=1, ls=":", label="chance")
            axes.set_ylim(0, 1.03)
        axes.set_xlabel(curve.x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=10)
        bare(axes, percent="" if curve.chance is None else "y")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::wide]:
        axes.set_ylabel(curve.y)
    if curve.chance is None:
        grid[0].set_ylim(bottom=0)
    legend(figure, grid, columns=4)
    return figure


def _colour(name: str, names: Sequence[str]) -> str:
    head, *_ = name.split(", ")
    heads = list(dict.fromkeys(n.split(", ")[0] for n in names))
    return COLOURS.get(head) or OTHERS[heads.index(head) % len(OTHERS)]
