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

from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.stats import t

from rmu_exp.evaluate.statistics import wilson
from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.record.results import Results, State
from rmu_exp.report import style
from rmu_exp.report.objectives import ROLES, Axis, standing_for, worst
from rmu_exp.report.style import GREY
from rmu_exp.report.table import Table, numbers
from rmu_exp.settings import result_settings
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic

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
    """A method, or a base model (no seeds); None: not measured.

    Attributes:
        accuracy: role to accuracy, for the roles that were asked about.
        chance: of a blind guess at the forget questions.
        worst: the greatest accuracy on the attacks' questions after an attack.
        seconds, megabytes: medians over seeds, of training.
    """

    method: str
    seeds: int
    accuracy: dict[str, Cell]
    chance: float
    perplexity: float | None = None
    worst: Cell | None = None
    seconds: float | None = None
    megabytes: float | None = None


def read(folder: Path) -> list[Results]:
    """The results of every finished run below a folder. Raises UserError: there is none, or one is damaged."""
    found = [results_json.load(file) for file in sorted(folder.rglob(results_json.NAME))]
    runs = [r for r in found if r.qa and r.train]
    if not runs:
        raise UserError(f"{folder}: no finished runs below it; give the folder of a sweep over methods")
    return runs


def rows(runs: Sequence[Results]) -> list[Row]:
    """A row for each base model and one for each method on it, the least forget accuracy first.

    Runs of a method that differ in more than their seed have a row for each setting.
    """
    models = list(dict.fromkeys(r.run.model for r in runs))
    table: list[Row] = []
    for model in models:
        own = [r for r in runs if r.run.model == model]
        on = f" on {model}" if len(models) > 1 else ""
        made = [_row(f"{name}{on}", mine) for name, mine in _by_method(own).items()]
        made.sort(key=lambda row: row.accuracy["forget"].mean if "forget" in row.accuracy else 1)
        table += [_base(f"{BASE}{on}", own), *made]
    return table


def _by_method(runs: Sequence[Results]) -> dict[str, list[Results]]:
    """Method, and what its runs differ in, to its runs."""
    found: dict[str, list[Results]] = {}
    for run in runs:
        alike = [_settings(r) for r in runs if r.run.method == run.run.method]
        differing = [f"{k}={v}" for k, v in _settings(run).items() if any(s.get(k) != v for s in alike)]
        found.setdefault(" ".join([str(run.run.method), *differing]), []).append(run)
    return found


def _settings(results: Results) -> dict[str, str]:
    """What changes a run's result, but for its seed."""
    run, origin = results.run, results.provenance
    own = {"layer": run.layer, "steer": run.steer, "alpha": run.alpha, "settings": run.settings}
    config = (origin.config if origin else None) or own
    kept = {key: value for key, value in result_settings(config).items() if key not in ("seed", "eval")}
    return {key: str(value) for key, value in rundir.flat(kept).items()}


def _base(name: str, runs: Sequence[Results]) -> Row:
    read_by = [row.base.perplexity for row in runs[0].perplexity.values()]
    return Row(name, 0, *_accuracy(runs[:1], "base"), statistics.mean(read_by) if read_by else None)


def _row(name: str, runs: Sequence[Results]) -> Row:
    read_by = [row.unlearned.perplexity for r in runs for row in r.perplexity.values() if row.unlearned]
    attacked = [found for r in runs if (found := worst(r))]
    trained = [r.train for r in runs if r.train]
    return Row(
        name,
        len({r.run.seed for r in runs}),
        *_accuracy(runs, "unlearned"),
        statistics.mean(read_by) if read_by else None,
        cell([(a.acc, a.n) for a in attacked], 1 - 0.05 / attacked[0].attacks) if attacked else None,
        statistics.median(train.seconds for train in trained),
        statistics.median(train.peak_memory_bytes for train in trained) / 1e6,
    )


def _accuracy(runs: Sequence[Results], state: State) -> tuple[dict[str, Cell], float]:
    """Role to accuracy, and chance at the forget questions."""
    found: dict[str, Cell] = {}
    axes = {role: Axis(role, standing_for(role, runs[0].qa), 1) for role in ROLES}
    for role, axis in axes.items():
        measured = [m for r in runs if (m := axis.of(r, state))]
        if measured:
            found[role] = cell([(m.value, m.n) for m in measured])
    return found, axes["forget"].chance(runs[0])


def cell(measured: Sequence[tuple[float, int]], confidence: float = 0.95) -> Cell:
    """The mean over seeds of accuracies, each over so many questions, with its interval."""
    accs, n = [acc for acc, _ in measured], sum(n for _, n in measured)
    mean = statistics.mean(accs)
    low, high = wilson(round(sum(acc * n for acc, n in measured)), n, confidence)
    if len(accs) > 1:
        half = float(t.ppf((1 + confidence) / 2, len(accs) - 1)) * statistics.stdev(accs) / len(accs) ** 0.5
        low, high = min(low, max(0.0, mean - half)), max(high, min(1.0, mean + half))
    return Cell(mean, low, high)


def table(listed: Sequence[Row]) -> Table:
    """The rows as text, in per cent; columns that nobody measured are left out."""
    cells = {
        row.method: {role: row.accuracy.get(role) for role in ROLES}
        | {
            "perplexity": row.perplexity and f"{row.perplexity:.4g}",
            "worst after attacks": row.worst,
            "seeds": row.seeds or None,
            "seconds": row.seconds and f"{row.seconds:.0f}",
            "memory, MB": row.megabytes and f"{row.megabytes:.0f}",
        }
        for row in listed
    }
    shown = [key for key in next(iter(cells.values())) if any(row[key] is not None for row in cells.values())]
    body = [[row, *("" if found[key] is None else str(found[key]) for key in shown)] for row, found in cells.items()]
    return Table(["method", *numbers(*shown)], body)


def draw(listed: Sequence[Row]) -> Figure:
    """Forget against general accuracy, every method a point with its intervals."""
    points = [row for row in listed if {"forget", "general"} <= set(row.accuracy)]
    palette = [c for i, c in enumerate(colormaps["tab20"](range(20))) if i not in (14, 15)]  # its greys are the base's
    named = sorted(row.method for row in points if row.seeds)
    colours = {row.method: GREY for row in points} | {m: palette[i % len(palette)] for i, m in enumerate(named)}
    figure = style.figure_of(7, 5, dpi=150)
    axes = figure.subplots()
    for row in points:
        x, y = row.accuracy["forget"], row.accuracy["general"]
        colour = colours[row.method]
        axes.plot([x.low, x.high], [y.mean] * 2, color=colour, lw=1, alpha=0.4)
        axes.plot([x.mean] * 2, [y.low, y.high], color=colour, lw=1, alpha=0.4)
        axes.plot(x.mean, y.mean, "o", color=colour, ms=5)
    places = [(row.accuracy["forget"].mean, row.accuracy["general"].mean) for row in points]
    for row, at, dy in zip(points, places, _spread(places), strict=True):
        leader = {"arrowstyle": "-", "color": colours[row.method], "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
        leader["relpos"] = (0, 0.5)
        axes.annotate(row.method, at, (9, dy), textcoords="offset points", fontsize=8, va="center", arrowprops=leader)
    for chance in dict.fromkeys(row.chance for row in points):
        axes.axvline(chance, color=GREY, lw=1, ls=":")
        axes.annotate("chance", (chance, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color=GREY, ha="left")
    left, bottom = (min([0.1, *(row.accuracy[key].low - 0.02 for row in points)]) for key in ("forget", "general"))
    axes.set(xlim=(left, 1.1), ylim=(bottom, 1.05))
    axes.set(xlabel="forget accuracy (lower is better)", ylabel="general accuracy")
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

    Raises UserError: there are no finished runs below it.
    """
    listed = rows(read(folder))
    page, picture = folder / "methods.md", folder / "methods.png"
    write_atomic(page, f"# Methods\n\nAccuracy in per cent, 95 % intervals.\n\n{table(listed).markdown()}\n")
    style.write(draw(listed), picture)
    return [page, picture]
