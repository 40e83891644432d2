"""What attacks found: the worst case in a sentence, and figures. Every attack is shown in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmu_exp.record.results import CurveData, Results
from rmu_exp.report import style
from rmu_exp.report.objectives import worst
from rmu_exp.report.style import BLACK, FORGET, GREEN, GREY, PINK, RETAIN, SKY, YELLOW
from rmu_exp.report.table import interval, percent
from rmu_exp.report.tables import budget

COLOURS = {"base": RETAIN, "unlearned": FORGET, "oracle": GREEN, "shuffled": GREY, "random": GREY}
OTHERS = (FORGET, RETAIN, GREEN, PINK, SKY, YELLOW, BLACK)
CONTROLS = {"oracle": (0.08, "s", "control: oracle"), "base": (0.24, "^", "control: base")}
LINES = {"plain": "--", "oracle": "--", "base": "-."}
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
    how = ", corrected for answer bias" * most.corrected
    return (
        f"**Asked plainly, {percent(entry.forget_acc.before)} of the questions on what was to be forgotten are "
        f"answered correctly; under the worst of {count} ({most.attack}: {budget(entry)}{how}) {percent(most.acc)}** "
        f"({interval(most.interval)}, an interval that holds for the largest of so many; "
        f"chance {percent(entry.chance)}; n = {most.n})."
    )


def depths(results: Results) -> list[str]:
    """Unlearning depth in words: the score where there was an oracle, and what each kind of patch did at most."""
    said = []
    for found in (entry.depth for entry in results.attacks.values() if entry.depth):
        if found.score:
            low, high = found.score.ci95
            about = "0: all of the answer is in the hidden states, 1: as little as in the oracle"
            over = f"over {found.scored} of {found.n} questions"
            said.append(f"**Unlearning depth {found.score.mean:.2f}** ({low:.2f}–{high:.2f}; {about}), {over}")
        elif found.oracle:
            said.append(f"No unlearning depth: the oracle's hidden states hold the answers to all {found.n} questions")
        else:
            said.append("No unlearning depth: without an oracle it is not known how much should be missing")
        (most, at), (more, there) = (
            max((value, layer) for layer, value in enumerate(values)) for values in (found.lost, found.restored)
        )
        said[-1] += (
            f". The unlearned model's state in the base costs at most {most:.2f} nats (layer {at}); "
            f"the base's in the unlearned model brings back at most {more:.2f} (layer {there})."
        )
        if found.apart and max(found.apart) > found.threshold:
            said[-1] += (
                f" On other questions, which it can answer, the oracle's state costs up to "
                f"{max(found.apart):.2f} nats, which is no missing knowledge; the score is to be read with that."
            )
    return said


def summary(results: Results) -> Figure | None:
    """All attacks with intervals, the plain answers, every control, and chance."""
    scored = [(pair, name, entry) for name, entry in results.attacks.items() if (pair := entry.forget_acc)]
    if not scored:
        return None
    scored.sort(key=lambda found: -found[0].after)
    figure = style.figure_of(8, 1.6 + 0.55 * len(scored), "What attacks bring back")
    axes, names = figure.subplots(), [name.replace("_", " ") for _, name, _ in scored]
    style.accuracy_rows(axes, names, "accuracy on questions about the forget topics; bars are 95 % intervals")
    for y, (pair, _, entry) in enumerate(scored):
        assert entry.ci95 is not None
        style.mark(axes, pair.after, entry.ci95.after, y - 0.24, colour=FORGET, label="under attack")
        style.mark(axes, pair.before, entry.ci95.before, y - 0.08, colour=BLACK, marker="D", label="asked plainly")
        if entry.after and (unbiased := entry.after.corrected):
            label = "under attack, corrected"
            style.mark(axes, unbiased.acc, unbiased.ci95, y - 0.38, colour=PINK, marker="s", label=label)
        for name, control in entry.controls.items():
            kind = name.split(",")[0]
            if kind in COLOURS and kind != "unlearned":
                shift, marker, label = CONTROLS.get(kind, NOTHING)
                style.mark(axes, control.acc, control.ci95, y + shift, colour=COLOURS[kind], marker=marker, label=label)
    axes.axvline(scored[0][2].chance or 0, color=GREY, lw=1, ls=":", label="chance")
    style.legend(figure)
    return figure


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
    figure = style.figure_of(max(5.5, 3.4 * wide), 0.9 + 2.7 * tall, curve.title)
    grid = figure.subplots(tall, wide, sharey=True, squeeze=False).flatten()
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for name in names:
            if lines.get(name):
                xs, ys = zip(*lines[name], strict=True)
                line = LINES.get(name.partition(", ")[2], "-")
                axes.plot(xs, ys, line, color=_colour(name, names), lw=1.4, marker="o", ms=3, label=name)
        if curve.chance is not None:
            axes.axhline(curve.chance, color=GREY, lw=1, ls=":", label="chance")
            axes.set_ylim(0, 1.03)
        axes.set_xlabel(curve.x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=10)
        style.bare(axes, percent="" if curve.chance is None else "y")
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::wide]:
        axes.set_ylabel(curve.y)
    if curve.chance is None:
        grid[0].set_ylim(bottom=min(0, *(y for lines in panels.values() for line in lines.values() for _, y in line)))
    style.legend(figure, grid, columns=4)
    return figure


def _colour(name: str, names: Sequence[str]) -> str:
    head, *_ = name.split(", ")
    heads = list(dict.fromkeys(n.split(", ")[0] for n in names))
    return COLOURS.get(head) or OTHERS[heads.index(head) % len(OTHERS)]
