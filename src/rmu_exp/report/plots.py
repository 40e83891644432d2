"""The plots of a run, each readable without the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.record.results import Qa, RunInfo
from rmu_exp.report import attacks
from rmu_exp.report.style import FORGET, GREY, RETAIN, bare, figure_of, legend, save
from rmu_exp.report.tables import rows, title

Metrics = Sequence[Mapping[str, Any]]
KINDS = tuple(
    (f"norm_{role}_{state}", f"{role}, {state} model", colour, style)
    for role, colour in (("forget", FORGET), ("retain", RETAIN))
    for state, style in (("updated", "-"), ("frozen", "--"))
)
"""The four activation norms: key, label, colour, line."""


def draw_all(folder: Path) -> list[Path]:
    """Draw what the run's folder holds the numbers for; returns the files in plots/."""
    results, file = results_json.load(folder / results_json.NAME), folder / rundir.METRICS
    metrics = list(rundir.lines(file)) if file.is_file() else []
    figures = {
        "accuracy": accuracy(results.qa, title(results.run)) if results.qa else None,
        "norms": norms(results.run, metrics),
        "losses": losses(results.run, metrics),
        "attacks": attacks.summary(results),
    }
    return save(figures | attacks.curves(results), folder)


def accuracy(qa: Qa, about: str) -> Figure:
    """Accuracy of each group and task before and after, with 95 % intervals and chance."""
    listed = rows(qa)
    figure = figure_of(8, 1.4 + 0.3 * len(listed), f"Accuracy before and after unlearning\n{about}")
    axes = figure.subplots()
    for y, (depth, name) in enumerate(listed):
        row, size = qa[name], 5 if depth else 8
        for state, measured, colour, at in (
            ("base", row.base, RETAIN, y - 0.14),
            ("unlearned", row.unlearned, FORGET, y + 0.14),
        ):
            if measured:
                axes.plot(measured.ci95, [at, at], color=colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
                axes.plot(measured.acc, at, "o", color=colour, ms=size, label=state if y == 0 else None)
        chance = row.chance
        axes.plot([chance] * 2, [y - 0.5, y + 0.5], color=GREY, lw=1, ls=":", label="chance" if y == 0 else None)
    axes.set_yticks(range(len(listed)), [name for _, name in listed], fontsize=9)
    for label, (depth, _) in zip(axes.get_yticklabels(), listed, strict=True):
        label.set_fontweight("normal" if depth else "bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xlabel("questions answered correctly; bars are 95 % intervals")
    bare(axes, "x", percent="x")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def norms(run: RunInfo, metrics: Metrics) -> Figure | None:
    """The four activation norms over steps, one panel per topic, steer as a line, as in the paper."""
    if not any("norm_forget_updated" in m for m in metrics):
        return None

    def panel(axes: Axes, mine: Metrics) -> None:
        for key, label, colour, style in KINDS:
            curve(axes, mine, key, colour, style, label=label)
        axes.axhline(mine[0]["steer"], color=GREY, lw=1)
        axes.annotate(f"steer = {mine[0]['steer']:g}", (1, mine[0]["steer"]), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", fontsize=9, color=GREY)  # fmt: skip

    what = f"Length of the activations at layer {run.layer}, mean over tokens"
    return _by_topic(f"{what}\n{title(run)}", metrics, "L2 norm", panel)


def losses(run: RunInfo, metrics: Metrics) -> Figure | None:
    """Forget loss and alpha-weighted retain loss over steps, one panel per topic."""
    if not any("forget_loss" in m for m in metrics):
        return None

    def panel(axes: Axes, mine: Metrics) -> None:
        weighted = [{**m, "weighted": m["alpha"] * m["retain_loss"]} for m in mine if "retain_loss" in m]
        curve(axes, mine, "forget_loss", FORGET, "-", label="forget loss")
        curve(axes, weighted, "weighted", RETAIN, "-", label="alpha · retain loss")

    return _by_topic(f"The two terms of the loss\n{title(run)}", metrics, "loss", panel)


def _by_topic(about: str, metrics: Metrics, unit: str, panel: Callable[[Axes, Metrics], None]) -> Figure:
    topics = list(dict.fromkeys(m["topic"] for m in metrics))
    figure = figure_of(max(5.0, 4 * len(topics)), 3.6, about)
    panels = figure.subplots(1, len(topics), sharey=True, squeeze=False)[0]
    for axes, topic in zip(panels, topics, strict=True):
        panel(axes, [m for m in metrics if m["topic"] == topic])
        axes.set_title(f"forget topic: {topic}", fontsize=10)
        axes.set_xlabel("step")
        bare(axes)
    panels[0].set_ylabel(unit)
    if min(axes.dataLim.ymin for axes in panels) >= 0:  # gradient ascent and its kin have negative losses
        panels[0].set_ylim(bottom=0)
    legend(figure, panels[:1], columns=4 if len(topics) > 1 else 2)
    return figure


def curve(axes: Axes, metrics: Metrics, key: str, colour: str, style: str, *, label: str) -> None:
    """A metric over the steps that have it."""
    points = [(m["step"], m[key]) for m in metrics if key in m]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.4, label=label)
