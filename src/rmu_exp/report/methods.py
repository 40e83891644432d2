"""The paper's table: methods compared over the runs in a folder, seeds together.

``python -m rmu_exp table FOLDER`` writes methods.md and methods.png there. A method's accuracy is the mean over its
seeds; its 95 % interval covers both that of Student's t over the seeds' means and the binomial one (Wilson) over all
answers. The worst case after k attacks has both at 1 − 0.05/k. It reads results.json and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t

from rmu_exp.attacks.runner import worst
from rmu_exp.evaluate.statistics import wilson
from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.report.plots import GREY
from rmu_exp.settings import result_settings
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic

ROLES = ("forget", "adjacent", "general")
BASE = "base"


@dataclass(frozen=True)
class Cell:
    """A mean over seeds and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ({100 * self.low:.0f}–{100 * self.high:.0f})"


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        accuracy: role to accuracy, for the roles that were asked about.
        perplexity: mean over seeds; None when not measured.
        worst: the greatest accuracy on the attacks' questions (V) after an attack, likewise; None when none was run.
        seconds, megabytes: medians over seeds, of training.
    """

    method: str
    seeds: int
    accuracy: dict[str, Cell]
    perplexity: float | None
    worst: Cell | None
    seconds: float | None
    megabytes: float | None


def read(folder: Path) -> list[dict[str, Any]]:
    """The results of every finished run below a folder.

    Raises:
        UserError: there is none, or one is damaged.
    """
    files = sorted(folder.rglob("results.json"))
    found = [results_json.load(file) for file in files]
    runs = [r for r in found if "qa" in r and "train" in r]
    if not runs:
        raise UserError(f"{folder}: no finished runs below it; give the folder of a sweep over methods")
    return runs


def rows(runs: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for the base model and one for each method, the least forget accuracy first.

    Runs of a method that differ in more than their seed have a row for each setting.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        alike = [_settings(r) for r in runs if r["run"]["method"] == run["run"]["method"]]
        mine = _settings(run)
        told = [f"{key}={value}" for key, value in mine.items() if any(s.get(key) != value for s in alike)]
        by_method.setdefault(" ".join([run["run"]["method"], *told]), []).append(run)
    table = [_row(method, own) for method, own in by_method.items()]
    table.sort(key=lambda row: row.accuracy["forget"].mean if "forget" in row.accuracy else 1)
    return [_row(BASE, runs[:1]), *table]


def _settings(run: dict[str, Any]) -> dict[str, str]:
    """What changes a run's result, but for its seed."""
    config = run.get("provenance", {}).get("config")
    if not isinstance(config, dict):
        config = {key: run["run"].get(key) for key in ("layer", "steer", "alpha", "settings")}
    kept = {key: value for key, value in result_settings(config).items() if key not in ("seed", "eval")}
    return {key: str(value) for key, value in rundir.flat(kept).items()}


def _row(method: str, runs: Sequence[dict[str, Any]]) -> Row:
    who = "base" if method == BASE else "unlearned"
    accuracy = {role: cell([r["qa"][group][who] for r in runs]) for role, group in groups(runs[0]).items()}
    read_by = [v[who]["perplexity"] for r in runs for v in r.get("perplexity", {}).values()]
    attacked = [found for r in runs if (found := worst(r))]
    base = method == BASE
    return Row(
        method,
        0 if base else len({r["run"]["seed"] for r in runs}),
        accuracy,
        statistics.mean(read_by) if read_by else None,
        cell(attacked, 1 - 0.05 / attacked[0]["attacks"]) if attacked and not base else None,
        None if base else statistics.median(r["train"]["seconds"] for r in runs),
        None if base else statistics.median(r["train"]["peak_memory_bytes"] for r in runs) / 1e6,
    )


def groups(run: dict[str, Any]) -> dict[str, str]:
    """Role to the group of questions that stands for it: lore's, or WMDP for forget and MMLU for general."""
    known = {role: [f"lore_{role}"] for role in ROLES}
    known["forget"].append("wmdp")
    known["general"].append("mmlu")
    found = {role: [name for name in names if name in run["qa"]] for role, names in known.items()}
    return {role: names[0] for role, names in found.items() if names}


def cell(measured: Sequence[dict[str, Any]], confidence: float = 0.95) -> Cell:
    """The mean of accuracies (``acc``, ``n``) over seeds, with its interval."""
    accs, n = [m["acc"] for m in measured], sum(m["n"] for m in measured)
    mean = statistics.mean(accs)
    low, high = wilson(round(sum(m["acc"] * m["n"] for m in measured)), n, confidence)
    if len(accs) > 1:
        half = float(t.ppf((1 + confidence) / 2, len(accs) - 1)) * statistics.stdev(accs) / len(accs) ** 0.5
        low, high = min(low, max(0.0, mean - half)), max(high, min(1.0, mean + half))
    return Cell(mean, low, high)


def markdown(table: Sequence[Row]) -> str:
    """The table, in per cent; columns that nobody measured are left out."""
    columns: dict[str, Any] = {role: lambda row, role=role: row.accuracy.get(role) for role in ROLES}
    columns |= {
        "perplexity": lambda row: None if row.perplexity is None else f"{row.perplexity:.4g}",
        "worst after attacks": lambda row: row.worst,
        "seeds": lambda row: row.seeds or None,
        "seconds": lambda row: None if row.seconds is None else f"{row.seconds:.0f}",
        "memory, MB": lambda row: None if row.megabytes is None else f"{row.megabytes:.0f}",
    }
    shown = {name: value for name, value in columns.items() if any(value(row) is not None for row in table)}
    lines = [f"| method | {' | '.join(shown)} |", f"|---|{'--:|' * len(shown)}"]
    for row in table:
        values = [value(row) for value in shown.values()]
        lines.append(f"| {row.method} | {' | '.join('' if v is None else str(v) for v in values)} |")
    return "\n".join(lines) + "\n"


def draw(table: Sequence[Row]) -> Figure:
    """Forget against general accuracy, every method a point with its intervals."""
    points = [row for row in table if {"forget", "general"} <= set(row.accuracy)]
    palette = [c for i, c in enumerate(colormaps["tab20"](range(20))) if i not in (14, 15)]  # its greys are the base's
    named = sorted(row.method for row in points if row.method != BASE)
    colours = {BASE: GREY} | {method: palette[i % len(palette)] for i, method in enumerate(named)}
    figure = Figure(figsize=(7, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row in points:
        x, y = row.accuracy["forget"], row.accuracy["general"]
        colour = colours[row.method]
        axes.plot([x.low, x.high], [y.mean] * 2, color=colour, lw=1, alpha=0.4)
        axes.plot([x.mean] * 2, [y.low, y.high], color=colour, lw=1, alpha=0.4)
        axes.plot(x.mean, y.mean, "o", color=colour, ms=5)
    places = [(row.accuracy["forget"].mean, row.accuracy["general"].mean) for row in points]
    for row, at, dy in zip(points, places, _spread(places), strict=True):
        leader = {
            "arrowstyle": "-",
            "color": colours[row.method],
            "lw": 0.8,
            "shrinkA": 0,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axes.annotate(row.method, at, (9, dy), textcoords="offset points", fontsize=8, va="center", arrowprops=leader)
    axes.axvline(0.25, color=GREY, lw=1, ls=":")
    axes.annotate("chance", (0.25, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color=GREY, ha="left")
    axes.set(xlim=(0.1, 1.1), ylim=(0.1, 1.05), xlabel="forget accuracy (lower is better)", ylabel="general accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Forget against general, mean over seeds with 95 % intervals", fontsize=10, loc="left")
    return figure


def _spread(points: Sequence[tuple[float, float]]) -> list[float]:
    """Vertical offsets of labels, so that those of near points do not cover each other."""
    offsets, placed = [0.0] * len(points), list[tuple[float, float]]()
    for i in sorted(range(len(points)), key=lambda i: -points[i][1]):
        x, y = points[i]
        height = min([y, *(py - 0.033 for px, py in placed if abs(px - x) < 0.16 and py - y < 0.033)])
        placed.append((x, height))
        offsets[i] = (height - y) * 290
    return offsets


def write(folder: Path) -> list[Path]:
    """Write methods.md and methods.png into a folder of runs; returns the two files.

    Raises:
        UserError: there are no finished runs below it.
    """
    table = rows(read(folder))
    page, picture = folder / "methods.md", folder / "methods.png"
    write_atomic(page, "# Methods\n\nAccuracy in per cent, 95 % intervals.\n\n" + markdown(table))
    FigureCanvasAgg(draw(table)).print_png(str(picture))
    return [page, picture]
