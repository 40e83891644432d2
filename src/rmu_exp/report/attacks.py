"""What attacks found: a section of report.md, and figures. Every attack is shown in the same way."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmu_exp.attacks.runner import worst
from rmu_exp.report.style import BLACK, FORGET, GREEN, GREY, PINK, RETAIN, SKY, YELLOW, figure_of
from rmu_exp.report.tables import percent

COLOURS = {"base": RETAIN, "unlearned": FORGET, "oracle": GREEN, "shuffled": GREY, "random": GREY}
OTHERS = (FORGET, RETAIN, GREEN, PINK, SKY, YELLOW, BLACK)
WIDEST = 3  # panels in a row


def sentence(results: dict[str, Any]) -> str | None:
    """The worst case over all attacks beside the plain answers, in one sentence; None: no attack was scored."""
    most = worst(results)
    if most is None:
        return None
    entry = results["attacks"][most["attack"]]
    low, high = most["interval"]
    count = "1 attack" if most["attacks"] == 1 else f"{most['attacks']} attacks"
    return (
        f"**Asked plainly, {percent(entry['forget_acc']['before'])} of the questions on what was to be forgotten are "
        f"answered right; under the worst of {count} ({most['attack']}: {told(entry['budget'])}) "
        f"{percent(most['acc'])}** ({100 * low:.1f}–{100 * high:.1f}, an interval that holds for the largest of "
        f"so many; chance {percent(entry['chance'])}; n = {most['n']})."
    )


def section(results: dict[str, Any]) -> list[str]:
    """The worst case, and a table of attacks with their controls and budgets."""
    attacks = results.get("attacks")
    if not attacks:
        return []
    lines = ["## Does the knowledge survive?", ""]
    if line := sentence(results):
        lines += [line, ""]
    lines += [
        "| attack | n | plain | under attack | 95 % | controls | budget | seconds |",
        "|---|--:|--:|--:|--:|---|---|--:|",
    ]
    for name, entry in attacks.items():
        if "forget_acc" in entry:
            before, after = entry["forget_acc"]["before"], entry["forget_acc"]["after"]
            low, high = entry["ci95"]["after"]
            cells = [name, str(entry["n"]), percent(before), percent(after), f"{100 * low:.1f}–{100 * high:.1f}"]
            lines.append(
                "| "
                + " | ".join([*cells, controls(entry), told(entry["budget"]), f"{entry['budget']['seconds']:.0f}"])
                + " |"
            )
    lines += [f"- **{name} failed**: {entry['error']}" for name, entry in attacks.items() if "error" in entry]
    lines += [
        "",
        "*oracle*: the same attack on a model that never knew; *base*: on the model before unlearning; *random* and",
        "*shuffled*: with nothing to find in it. Whatever an attack chooses (a layer, a prompt, a direction), it",
        "chooses by questions on other facts than the n that it is scored on.",
    ]
    return lines


def controls(entry: dict[str, Any]) -> str:
    """The controls of an attack: name and accuracy."""
    scored = {name: value for name, value in entry["control"].items() if isinstance(value, dict) and "acc" in value}
    return ", ".join(f"{name} {percent(value['acc'])}" for name, value in scored.items())


def told(budget: dict[str, Any]) -> str:
    """A budget in words: ``steps 40, samples 100``; without the time, which belongs to the machine."""
    budget = {key: value for key, value in budget.items() if key != "seconds"}
    return ", ".join(f"{k.replace('_', ' ')} {v:g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
                     for k, v in budget.items())  # fmt: skip


def summary(results: dict[str, Any], _metrics: Any = None) -> Figure | None:
    """All attacks with intervals, the plain answers, every control, and chance."""
    scored = {n: a for n, a in results.get("attacks", {}).items() if "forget_acc" in a}
    if not scored:
        return None
    order = sorted(scored, key=lambda name: -scored[name]["forget_acc"]["after"])
    figure = figure_of(8, 1.6 + 0.55 * len(order))
    axes = figure.subplots()
    seen: set[str] = set()
    for y, name in enumerate(order):
        entry = scored[name]
        _mark(axes, y - 0.24, entry["forget_acc"]["after"], entry["ci95"]["after"], "under attack", "o", FORGET, seen)
        _mark(axes, y - 0.08, entry["forget_acc"]["before"], entry["ci95"]["before"], "asked plainly", "D", BLACK, seen)
        for kind, colour, marker in (("oracle", GREEN, "s"), ("base", RETAIN, "^"), ("random", GREY, "x")):
            for control, value in entry["control"].items():
                alike = control.split(",")[0] == kind or (kind == "random" and control == "shuffled")
                if alike and isinstance(value, dict) and "acc" in value:
                    label = {"oracle": "control: never knew", "base": "control: base", "random": "control: random"}[
                        kind
                    ]
                    at = y + {"oracle": 0.08, "base": 0.24, "random": 0.16}[kind]
                    _mark(axes, at, value["acc"], value["ci95"], label, marker, colour, seen)
    axes.axvline(next(iter(scored.values()))["chance"], color=GREY, lw=1, ls=":", label="chance")
    axes.set_yticks(range(len(order)), [name.replace("_", " ") for name in order])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("questions on the forget topics answered right; bars are 95 % intervals")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("What attacks bring back", fontsize=10, x=0.01, ha="left")
    return figure


def _mark(
    axes: Axes, y: float, acc: float, ci: list[float], label: str, marker: str, colour: str, seen: set[str]
) -> None:
    axes.plot(ci, [y, y], color=colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
    axes.plot(acc, y, marker, color=colour, ms=6, label=None if label in seen else label)
    seen.add(label)


def figures(results: dict[str, Any]) -> list[str]:
    """Names of the figures of attacks, the summary first."""
    entries = results.get("attacks", {}).items()
    return ["attacks", *(f"{name}_{curve}" for name, entry in entries for curve in entry.get("curves", {}))]


def curves(results: dict[str, Any]) -> dict[str, Figure]:
    """Name to figure, for every curve that an attack left."""
    return {
        f"{name}_{curve}": draw(data)
        for name, entry in results.get("attacks", {}).items()
        for curve, data in entry.get("curves", {}).items()
    }


def draw(curve: dict[str, Any]) -> Figure:
    """A figure of one curve: a panel each, a colour a line; lines without points are left out."""
    panels = curve["panels"]
    wide = 2 if len(panels) == 4 else min(WIDEST, len(panels))
    tall = math.ceil(len(panels) / wide)
    figure = figure_of(max(5.5, 3.4 * wide), 0.9 + 2.7 * tall)
    grid = figure.subplots(tall, wide, sharey=True, squeeze=False).flatten()
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name in names:
            if lines.get(name):
                xs, ys = zip(*lines[name], strict=True)
                style = "--" if name.partition(", ")[2] in ("plain", "oracle") else "-"
                axes.plot(xs, ys, style, color=_colour(name, names), lw=1.4, marker="o", ms=3, label=name)
        if curve["chance"] is not None:
            axes.axhline(curve["chance"], color=GREY, lw=1, ls=":", label="chance")
            axes.set_ylim(0, 1.03)
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel(curve["x"])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=10)
        axes.grid(color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::wide]:
        axes.set_ylabel(curve["y"])
    if curve["chance"] is None:
        grid[0].set_ylim(bottom=0)
    handles = dict(zip(*reversed(grid[0].get_legend_handles_labels()), strict=True))
    for axes in grid:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(curve["title"], fontsize=10, x=0.01, ha="left")
    return figure


def _colour(name: str, names: list[str]) -> str:
    head = name.partition(", ")[0]
    if head in COLOURS:
        return COLOURS[head]
    heads = list(dict.fromkeys(n.partition(", ")[0] for n in names))
    return OTHERS[heads.index(head) % len(OTHERS)]
