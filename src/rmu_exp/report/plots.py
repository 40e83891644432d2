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
from rmu_exp.report import attacks, observed
from rmu_exp.report.style import FORGET, GREY, NORMS, RETAIN, accuracy_rows, bare, curve, figure_of, legend, mark, save
from rmu_exp.report.tables import rows, title

Metrics = Sequence[Mapping[str, Any]]


def draw_all(folder: Path) -> list[Path]:
    """Draw what the run's folder holds the numbers for; returns the files in plots/."""
    return save(figures(folder), folder)


def figures(folder: Path) -> dict[str, Figure]:
    """Name to figure, of what the run's folder holds the numbers for."""
    results, metrics = results_json.load(folder / results_json.NAME), rundir.whole_lines(folder / rundir.METRICS)
    drawn = {
        "accuracy": accuracy(results.qa, title(results.run)) if results.qa else None,
        "norms": norms(results.run, metrics),
        "losses": losses(results.run, metrics),
        "attacks": attacks.summary(results),
        "ripple": observed.ripple_figure(results.ripple, title(results.run)) if results.ripple else None,
    }
    return {name: figure for name, figure in (drawn | attacks.curves(results)).items() if figure is not None}


def accuracy(qa: Qa, about: str) -> Figure:
    """Accuracy of each group and task before and after, with 95 % intervals and chance."""
    listed = rows(qa)
    figure = figure_of(8, 1.9 + 0.3 * len(listed), f"Accuracy before and after unlearning\n{about}")
    axes = figure.subplots()
    accuracy_rows(axes, [name for _, name in listed], "questions answered correctly; bars are 95 % intervals")
    for y, ((depth, name), label) in enumerate(zip(listed, axes.get_yticklabels(), strict=True)):
        row, size = qa[name], 5 if depth else 8
        mark(axes, row.base.acc, row.base.ci95, y - 0.14, colour=RETAIN, size=size, label="base")
        if after := row.unlearned:
            mark(axes, after.acc, after.ci95, y + 0.14, colour=FORGET, size=size, label="unlearned")
        axes.plot([row.chance] * 2, [y - 0.5, y + 0.5], color=GREY, lw=1, ls=":", label="chance")
        label.set_fontweight("normal" if depth else "bold")
    legend(figure)
    return figure


def norms(run: RunInfo, metrics: Metrics) -> Figure | None:
    """The four activation norms over steps, one panel per topic, steer as a line, as in the paper."""

    def panel(axes: Axes, mine: Metrics) -> None:
        for key, label, colour, style in NORMS:
            curve(axes, mine, key, color=colour, ls=style, lw=1.4, label=label)
        steer = mine[0]["steer"]
        axes.axhline(steer, color=GREY, lw=1)
        axes.margins(y=0.12)  # room for the next words
        axes.annotate(f"target = {steer:g}", (1, steer), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=9, color=GREY)  # fmt: skip

    if not any("norm_forget_updated" in m for m in metrics):
        return None
    what = f"Length of the activations at layer {run.layer}, mean over tokens"
    return _by_topic(f"{what}\n{title(run)}", metrics, "L2 norm", panel)


def losses(run: RunInfo, metrics: Metrics) -> Figure | None:
    """Forget loss and alpha-weighted retain loss over steps, one panel per topic."""

    def panel(axes: Axes, mine: Metrics) -> None:
        weighted = [{**m, "weighted": m["alpha"] * m["retain_loss"]} for m in mine if "retain_loss" in m]
        curve(axes, mine, "forget_loss", color=FORGET, lw=1.4, label="forget loss")
        curve(axes, weighted, "weighted", color=RETAIN, lw=1.4, label="alpha · retain loss")

    if not any("forget_loss" in m for m in metrics):
        return None
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
