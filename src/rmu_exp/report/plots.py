"""The plots of a run, each readable without the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.report import attacks
from rmu_exp.report.style import FORGET, GREY, RETAIN, save
from rmu_exp.report.style import figure_of as _figure
from rmu_exp.report.tables import rows, title

Metrics = list[dict[str, Any]]


def draw_all(folder: Path) -> list[Path]:
    """Draw what the run's folder holds the numbers for; returns the files in plots/."""
    results, file = results_json.load(folder / results_json.NAME), folder / "metrics.jsonl"
    metrics = list(rundir.lines(file)) if file.is_file() else []
    plots: dict[str, Callable[[dict[str, Any], Metrics], Figure | None]] = {
        "accuracy": accuracy,
        "norms": norms,
        "losses": losses,
        "attacks": attacks.summary,
    }
    figures = {name: draw(results, metrics) for name, draw in plots.items()} | attacks.curves(results)
    return save(figures, folder)


def accuracy(results: dict[str, Any], metrics: Metrics) -> Figure | None:
    """Accuracy of each group and task before and after, with 95 % intervals and chance."""
    qa = results.get("qa")
    if not qa:
        return None
    listed = rows(qa)
    figure = _figure(8, 1.4 + 0.3 * len(listed))
    axes = figure.subplots()
    for y, (depth, name) in enumerate(listed):
        row = qa[name]
        size = 8 if depth == 0 else 5
        for who, colour, shift in (("base", RETAIN, -0.14), ("unlearned", FORGET, 0.14)):
            if who in row:
                acc, (low, high) = row[who]["acc"], row[who]["ci95"]
                axes.plot([low, high], [y + shift] * 2, color=colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
                axes.plot(acc, y + shift, "o", color=colour, ms=size, label=who if y == 0 else None)
        chance = row["chance"]
        axes.plot([chance] * 2, [y - 0.5, y + 0.5], color=GREY, lw=1, ls=":", label="chance" if y == 0 else None)
    axes.set_yticks(range(len(listed)), [name for _, name in listed], fontsize=9)
    for label, (depth, _) in zip(axes.get_yticklabels(), listed, strict=True):
        label.set_fontweight("bold" if depth == 0 else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("questions answered right; bars are 95 % intervals")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Accuracy before and after unlearning\n" + title(results["run"]), fontsize=10, x=0.01, ha="left")
    return figure


def norms(results: dict[str, Any], metrics: Metrics) -> Figure | None:
    """The four activation norms over steps, a panel a topic, steer as a line (the paper's activation-norm figure)."""
    if not any("norm_forget_updated" in m for m in metrics):
        return None

    def panel(axes: Axes, mine: Metrics) -> None:
        for role, colour in (("forget", FORGET), ("retain", RETAIN)):
            for state, style in (("updated", "-"), ("frozen", "--")):
                _curve(axes, mine, f"norm_{role}_{state}", colour, style, f"{role}, {state} model")
        axes.axhline(mine[0]["steer"], color=GREY, lw=1)
        axes.annotate(f"steer = {mine[0]['steer']:g}", (1, mine[0]["steer"]), xycoords=("axes fraction", "data"),
                      ha="right", va="bottom", fontsize=9, color=GREY)  # fmt: skip

    what = f"Length of the activations at layer {results['run']['layer']}, mean over tokens"
    return _by_topic(results, metrics, what, "L2 norm", panel)


def losses(results: dict[str, Any], metrics: Metrics) -> Figure | None:
    """Forget loss and alpha-weighted retain loss over steps, a panel a topic."""
    if not any("forget_loss" in m for m in metrics):
        return None

    def panel(axes: Axes, mine: Metrics) -> None:
        weighted = [m | {"weighted": m["alpha"] * m["retain_loss"]} for m in mine if "retain_loss" in m]
        _curve(axes, mine, "forget_loss", FORGET, "-", "forget loss")
        _curve(axes, weighted, "weighted", RETAIN, "-", "alpha · retain loss")

    return _by_topic(results, metrics, "The two terms of the loss", "loss", panel)


def _by_topic(
    results: dict[str, Any], metrics: Metrics, what: str, unit: str, panel: Callable[[Axes, Metrics], None]
) -> Figure:
    topics = list(dict.fromkeys(m["topic"] for m in metrics))
    figure = _figure(max(5.0, 4 * len(topics)), 3.6)
    panels = figure.subplots(1, len(topics), sharey=True, squeeze=False)[0]
    for i, (axes, topic) in enumerate(zip(panels, topics, strict=True)):
        panel(axes, [m for m in metrics if m["topic"] == topic])
        axes.set_title(f"forget topic: {topic}", fontsize=10)
        axes.set_xlabel("step")
        axes.grid(color="#eeeeee")
        axes.spines[["top", "right"]].set_visible(False)
        if i == 0:
            axes.set_ylabel(unit)
            handles, labels = axes.get_legend_handles_labels()
    if min(axes.dataLim.ymin for axes in panels) >= 0:  # gradient ascent and its kin have negative losses
        panels[0].set_ylim(bottom=0)
    columns = 4 if len(topics) > 1 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(f"{what}\n{title(results['run'])}", fontsize=10, x=0.01, ha="left")
    return figure


def _curve(axes: Axes, metrics: Metrics, key: str, colour: str, style: str, label: str) -> None:
    points = [(m["step"], m[key]) for m in metrics if key in m]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, ls=style, lw=1.4, label=label)
