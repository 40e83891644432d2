"""Beyond accuracy, for a person: damage, what both models write, and where accuracy was lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rmu_exp.record import rundir
from rmu_exp.record.results import Rate, Rates, Results, Ripple
from rmu_exp.report.style import FORGET, GREY, RETAIN, bare, figure_of, legend
from rmu_exp.report.table import Table, interval, numbers, percent

SHOWN, LONGEST = 4, 220  # samples per role in a report, characters of each
KINDS = ("neutral", "retain", "forget")


def damage(results: Results) -> Table:
    """KL and agreement by kind of text, with 95 % intervals."""
    found = results.damage
    if found is None:
        return Table([], [])
    body = []
    for kind in (*KINDS, *(set(found.kl) - set(KINDS))):
        if kind in found.kl:
            kl, agree = found.kl[kind], found.agreement[kind]
            cells = [kind, str(found.texts.get(kind, "")), str(kl.tokens), f"{kl.mean:.3f}", _low_high(kl)]
            body.append([*cells, percent(agree.mean), interval(agree.ci95)])
    columns = numbers("n", "tokens", "KL", "95 %", "agreement", "95 %")
    return Table(["texts", *columns], body)


def perplexity(results: Results) -> Table:
    """Perplexity on each source that both models read."""
    found = results.damage.perplexity if results.damage else {}
    body = [[f"`{source}`", f"{row.base:.2f}", f"{row.unlearned:.2f}"] for source, row in found.items()]
    return Table(["perplexity on", *numbers("base", "unlearned")], body)


def _low_high(rate: Rate) -> str:
    return f"{rate.ci95[0]:.3f}–{rate.ci95[1]:.3f}"


def rates(results: Results) -> Table:
    """Rates over what both models wrote, by role."""
    body = []
    for role, row in results.samples.items():
        body += [[role, "base", *_rates(row.base)], ["", "unlearned", *_rates(row.unlearned)]]
    columns = numbers("n", "right", "empty", "refusal", "repeat", "distinct-1", "distinct-2", "distinct-3", "NLL")
    return Table(["prompts", "model", *columns], body)


def _rates(found: Rates) -> list[str]:
    shares = [percent(rate.mean) if rate else "" for rate in (found.match, found.empty, found.refusal)]
    distinct = [f"{value:.2f}" for value in found.distinct.values()]
    return [str(found.n), *shares, f"{found.repeat:.1f}", *distinct, f"{found.nll:.2f}"]


def samples(lines: Sequence[rundir.Object], shown: int = SHOWN) -> Table:
    """The first prompts of each role with what both models wrote, greedily and sampled."""
    body: list[list[str]] = []
    count: dict[object, int] = {}
    for line in lines:
        role = line.get("role")
        count[role] = count.get(role, 0) + 1
        if count[role] <= shown:
            cells = [_cell(line.get(key)) for key in ("prompt", "base", "unlearned")]
            body.append([str(role), *cells])
            if "base_sampled" in line:
                sampled = [_cell(line.get(key)) for key in ("base_sampled", "unlearned_sampled")]
                body.append(["", f"*sampled, seed {line.get('seed')}*", *sampled])
    return Table(["role", "prompt", "base writes", "unlearned writes"], body)


def _cell(text: object) -> str:
    """Text as a cell of a Markdown table: one line, nothing in it is markup, not too long."""
    words = str(text).replace("\n", " ⏎ ").strip()
    if len(words) > LONGEST:
        words = f"{words[:LONGEST]}…"
    for mark in "\\`*_|<[]":
        words = words.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return words or "*nothing*"


def written(folder: Path) -> list[rundir.Object]:
    """The lines of samples.jsonl; none when there is no such file. Raises UserError when it is damaged."""
    file = folder / rundir.SAMPLES
    return list(rundir.lines(file)) if file.is_file() else []


def ripple(results: Results) -> Table:
    """Accuracy lost at each distance, nearest first."""
    found = results.ripple
    if found is None:
        return Table([], [])
    body = []
    for level in found.levels:
        cells = [level.name, str(level.n), percent(level.base), percent(level.unlearned)]
        body.append([*cells, _points(level.lost.mean), "–".join(map(_points, level.lost.ci95))])
    return Table(["distance", *numbers("n", "base", "unlearned", "lost, points", "95 %")], body)


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def ripple_figure(found: Ripple, about: str) -> Figure:
    """Accuracy lost against distance, nearest first, with 95 % intervals and what the base had to lose."""
    measured = all(level.distance is not None for level in found.levels)
    places = [level.distance or 0.0 for level in found.levels] if measured else list(range(len(found.levels)))
    figure = figure_of(8, 4.2, f"Accuracy lost, by distance from what was forgotten\n{about}")
    axes = figure.subplots()
    lost = [level.lost.mean for level in found.levels]
    below = [max(0.0, y - level.lost.ci95[0]) for y, level in zip(lost, found.levels, strict=True)]
    above = [max(0.0, level.lost.ci95[1] - y) for y, level in zip(lost, found.levels, strict=True)]
    axes.errorbar(places, lost, yerr=[below, above], fmt="o-", color=FORGET, lw=1.4, capsize=3, label="accuracy lost")
    had = [level.base - (level.chance or 0.0) for level in found.levels]
    axes.plot(places, had, "_", color=RETAIN, ms=22, mew=2, label="accuracy above chance of the base")
    axes.axhline(0, color=GREY, lw=1)
    if measured:
        axes.set_xlabel("distance from the nearest forget text: 1 − cosine of the base's hidden states")
    else:
        broken = [level.name.replace(", ", ",\n") for level in found.levels]
        names = [f"{name}\nn = {level.n}" for name, level in zip(broken, found.levels, strict=True)]
        axes.set_xticks(places, names, fontsize=8)
    axes.set_ylabel("accuracy of base − unlearned")
    bare(axes, "y", percent="y")
    legend(figure)
    return figure


def on_screen(results: Results) -> list[str]:
    """A line each on damage and on what is written, for the terminal."""
    lines = []
    if results.damage:
        each = [f"{kind} {rate.mean:.3f}" for kind, rate in results.damage.kl.items()]
        agree = [f"{kind} {percent(rate.mean)}" for kind, rate in results.damage.agreement.items()]
        lines.append(f"KL(base || unlearned) per token: {', '.join(each)}; same likeliest token: {', '.join(agree)}")
        both = [f"{source} {row.base:.1f} → {row.unlearned:.1f}" for source, row in results.damage.perplexity.items()]
        lines.append(f"Perplexity: {', '.join(both)}")
    if results.samples:
        right = [
            f"{role} {percent(row.base.match.mean)} → {percent(row.unlearned.match.mean)}"
            for role, row in results.samples.items()
            if row.base.match and row.unlearned.match
        ]
        each = [f"{role} {row.base.repeat:.1f} → {row.unlearned.repeat:.1f}" for role, row in results.samples.items()]
        begins = [f"Answers begin rightly: {', '.join(right)}"] if right else []
        lines.append("; ".join([*begins, f"longest repeat in tokens: {', '.join(each)}"]))
    return lines
