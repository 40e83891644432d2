"""The table of methods: methods, and models that were judged, compared over many runs, seeds together.

``python -m rmu_exp table FOLDER …`` writes methods.md and methods.png into the first. A method's accuracy is
the mean over its seeds; its 95 % interval covers both that of Student's t over the seeds' means and the binomial one
(Wilson) over all answers. The worst case after k attacks has both at 1 − 0.05/k. It reads results.json, or the result
files that were made of many, and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t

from rmu_exp.evaluation.statistics import wilson
from rmu_exp.record import result_file
from rmu_exp.record import results as results_json
from rmu_exp.record.differing import settings_of, shown, usual
from rmu_exp.record.results import Accuracy, AttackEntry, Results, State
from rmu_exp.report import objectives, style, tables
from rmu_exp.report.objectives import Axis, Measure, standing_for, worst
from rmu_exp.report.style import FORGET, GREY, RETAIN
from rmu_exp.report.table import Table, numbers
from rmu_exp.settings import ROLES
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic

NUMBERS = {
    "KL": ".3g",
    "KL, budget's texts": ".3g",
    "perplexity": ".4g",
    "answer probability": ".3g",
    "after attacks": ".3g",
    "seeds": "d",
    "seconds": ".0f",
    "memory, MB": ".0f",
}  # how they are written
BUDGET = "train.kl_budget"
WORST, CORRECTED = "worst after attacks", ", corrected"
ABOUT = (
    "Accuracy in per cent, plain / corrected for answer bias, with 95 % intervals (of the corrected one); KL to the "
    "base on neutral text, in nats per token."
)


@dataclass(frozen=True)
class Row:
    """A method, a judged model, or a base model (no seeds); what was not measured is not there.

    Attributes:
        accuracy: role to mean accuracy over seeds, and role with :data:`CORRECTED` to the corrected one;
            :data:`WORST`: the greatest after an attack, plain or corrected, on its questions.
        chance: of a blind guess at the forget questions.
        numbers: those of :data:`NUMBERS`. The answer probability is of the forget questions, and the greatest after
            an attack, on its questions; perplexity is that of the first text; seconds and memory are medians over
            seeds, of training.
        lasting: by corrected accuracy and by answer probability (:data:`objectives.ATTACKED`): ``before`` and ``after``
            the worst attack, and the ``base`` model under that attack, on the attack's questions.
    """

    method: str
    accuracy: dict[str, Measure]
    chance: float
    numbers: dict[str, float]
    lasting: dict[str, dict[str, Measure]]


def read(folders: Sequence[Path]) -> list[Results]:
    """The results of every finished run and judgement below some folders, or in result files.

    Raises UserError: there is none below one of them, or one is damaged.
    """
    runs: list[Results] = []
    for folder in folders:
        if folder.is_file():
            runs += result_file.read(folder).runs
            continue
        found = [results_json.load(file) for file in sorted(folder.rglob(results_json.NAME))]
        mine = [r for r in found if r.qa and (r.train or r.run.kind == "judge")]
        if not mine:
            raise UserError(f"{folder}: no finished runs or judgements with questions below it; give their folder")
        runs += mine
    once: dict[object, Results] = {}
    for i, r in enumerate(runs):
        name = _identity(r, i)
        once[name] = result_file.together(once[name], r) if name in once else r
    return list(once.values())


def _identity(results: Results, number: int) -> object:
    """The same for a run and its copy in another folder."""
    origin = results.provenance
    return (results.run.kind, origin.config_hash, origin.model_digest, origin.delta_digest) if origin else number


def rows(runs: Sequence[Results]) -> list[Row]:
    """A row for each base model and one for each method or judged model on it, the least forget accuracy first.

    Runs of a method, and judgements of a model, that differ in more than their seed have a row for each setting.
    """
    table: list[Row] = []
    for on, own in _by_model(runs):
        made = [_row(f"{name}{on}", mine) for name, mine in _by_method(own).items()]
        made.sort(key=lambda row: row.accuracy["forget"].value if "forget" in row.accuracy else 1)
        table += [_row(f"base{on}", own[:1], "base"), *made]
    return table


def about(runs: Sequence[Results]) -> str:
    """What the columns are, and what a row has that its name does not say."""
    lines = [ABOUT]
    for on, own in _by_model(runs):
        for method, most in _usual(own).items():
            if has := ", ".join(f"{key}={value}" for key, value in most.items()):
                lines.append(f"`{method}{on}`, where nothing else is said: {has}.")
    return " ".join(lines)


def _by_model(runs: Sequence[Results]) -> list[tuple[str, list[Results]]]:
    """The runs of each base model, and what their rows' names end with: nothing where there is only one."""
    models = list(dict.fromkeys(r.run.model for r in runs))
    own = [[r for r in runs if r.run.model == model] for model in models]
    return [(f" on {model}" if len(models) > 1 else "", mine) for model, mine in zip(models, own, strict=True)]


def _by_method(runs: Sequence[Results]) -> dict[str, list[Results]]:
    """A row's name to its runs: the method, and where they differ from what most of the method's runs have.

    The budget is named where any two of all the runs differ in it.
    """
    found: dict[str, list[Results]] = {}
    differing, most = _differing(runs), _usual(runs)
    budgets = {own[BUDGET] for run in runs if BUDGET in (own := _settings(run))}
    for run in runs:
        own, method = _settings(run), _made_by(run)
        named = [k for k in own if k in differing[method] and most[method].get(k) != own[k]]
        named += [BUDGET] if BUDGET in own and len(budgets) > 1 else []
        found.setdefault(" ".join([method, *(f"{k}={own[k]}" for k in named)]), []).append(run)
    return found


def _differing(runs: Sequence[Results]) -> dict[str, set[str]]:
    """Method to the settings in which any of its runs that have them differ, but for the budget."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        mine = values.setdefault(_made_by(run), {})
        for key, value in _settings(run).items():
            mine.setdefault(key, set()).add(value)
    return {method: {k for k, v in mine.items() if len(v) > 1 and k != BUDGET} for method, mine in values.items()}


def _usual(runs: Sequence[Results]) -> dict[str, dict[str, str]]:
    """Method to what most of its runs have of the settings in which they differ, of those that all of them have."""
    found: dict[str, dict[str, str]] = {}
    for method, differing in _differing(runs).items():
        own = [_settings(run) for run in runs if _made_by(run) == method]
        keys = [key for key in own[0] if key in differing and all(key in settings for settings in own)]
        found[method] = usual([{key: settings[key] for key in keys} for settings in own])
    return found


def _made_by(results: Results) -> str:
    """The method of a run, or the model that was judged."""
    return str(results.run.unlearned if results.run.kind == "judge" else results.run.method)


def _settings(results: Results) -> dict[str, str]:
    """What must be the same for numbers to be averaged: what made the model, but for its seed, and what it was asked.

    The worst attack that a search found is another one on each model.
    """
    own = settings_of(results).items()
    apart = ("seed", "method", "model")
    found = {key: shown(value) for key, value in own if key not in apart and not key.startswith("eval.")}
    found["questions"] = str(sum(row.n for r in results.qa.values() if r.role and (row := r.unlearned)))
    for name, entry in results.attacks.items():
        if not name.startswith(result_file.SEARCHED):
            found |= {f"attacks.{name}.{key}": shown(value) for key, value in entry.settings.items()}
    return found


def _row(name: str, runs: Sequence[Results], state: State = "unlearned") -> Row:
    axes = {role: Axis(role, standing_for(role, runs[0].qa), 1) for role in ROLES}
    found = {role: [m for r in runs if (m := axis.of(r, state))] for role, axis in axes.items()}
    accuracy: dict[str, Measure] = {role: mean(measured) for role, measured in found.items() if measured}
    for role, axis in axes.items():
        if unbiased := [m for r in runs if (m := _unbiased(_asked(r, axis, state)))]:
            accuracy[role + CORRECTED] = mean(unbiased)
    values, lasting = dict[str, float](), dict[str, dict[str, Measure]]()
    if likely := [(a.prob, a.n) for r in runs for a in _asked(r, axes["forget"], state) if a.prob is not None]:
        values["answer probability"] = sum(prob * n for prob, n in likely) / sum(n for _, n in likely)
    if read_by := [p.perplexity for r in runs for row in [*r.perplexity.values()][:1] if (p := row.of(state))]:
        values["perplexity"] = statistics.mean(read_by)
    if state == "unlearned":
        values["seeds"] = len({r.run.seed for r in runs})
        if kl := [row.mean for r in runs if r.damage and (row := r.damage.kl.get("neutral"))]:
            values["KL"] = statistics.mean(kl)
        if met := [r.train.kl for r in runs if r.train and r.train.kl is not None]:
            values["KL, budget's texts"] = statistics.mean(met)
        if after := [max(probs) for r in runs if (probs := [a.prob for a in _after(r) if a.prob is not None])]:
            values["after attacks"] = statistics.mean(after)
        if trained := [r.train for r in runs if r.train]:
            values["seconds"] = statistics.median(train.seconds for train in trained)
            values["memory, MB"] = statistics.median(train.peak_memory_bytes for train in trained) / 1e6
        if attacked := [most for r in runs if (most := worst(r))]:
            measured = [Measure(most.acc, *most.interval, most.n) for most in attacked]
            accuracy[WORST] = mean(measured, 1 - 0.05 / max(most.accuracies for most in attacked))
        lasting = {by: states for by in objectives.ATTACKED if (states := _before_and_after(runs, by))}
    return Row(name, accuracy, axes["forget"].chance(runs[0]), values, lasting)


def _before_and_after(runs: Sequence[Results], by: str) -> dict[str, Measure]:
    """``before``, ``after`` and ``base`` over the seeds, each run under the attack that is the worst by one measure."""
    kept: dict[str, list[Measure]] = {}
    for run in runs:
        scored = [(now.value, e) for e in run.attacks.values() if (now := objectives.attacked(by, e.after))]
        if scored:
            _, entry = max(scored, key=lambda pair: pair[0])
            states = {"before": entry.before, "after": entry.after, "base": entry.controls.get("base")}
            for state, answered in states.items():
                if measured := objectives.attacked(by, answered):
                    kept.setdefault(state, []).append(measured)
    return {state: _over_seeds(values, by) for state, values in kept.items()}


def _over_seeds(measured: Sequence[Measure], by: str) -> Measure:
    """One measure of several runs; a mean of probabilities has no interval."""
    if len(measured) == 1:
        return measured[0]
    if by == "corrected":
        return mean(measured)
    value = statistics.mean(m.value for m in measured)
    return Measure(value, value, value, sum(m.n for m in measured))


def _asked(results: Results, axis: Axis, state: State) -> list[Accuracy]:
    """What one model answers to the groups and tasks of an axis."""
    return [row for task in axis.tasks if task in results.qa and (row := results.qa[task].of(state))]


def _unbiased(rows: Sequence[Accuracy]) -> Measure | None:
    """The corrected accuracy over several groups of questions; None: not measured on all of them."""
    pairs = [(row.corrected.acc, row.n) for row in rows if row.corrected]
    if not pairs or len(pairs) < len(rows):
        return None
    n, right = sum(n for _, n in pairs), sum(acc * n for acc, n in pairs)
    return Measure(right / n, *wilson(round(right), n), n)


def _after(results: Results) -> list[Accuracy]:
    """The forget questions under each attack that was scored."""
    return [entry.after for entry in results.attacks.values() if entry.after]


def mean(measured: Sequence[Measure], confidence: float = 0.95) -> Measure:
    """The mean over seeds of accuracies, with its interval."""
    accs, n = [m.value for m in measured], sum(m.n for m in measured)
    centre = statistics.mean(accs)
    low, high = wilson(round(sum(m.value * m.n for m in measured)), n, confidence)
    if len(accs) > 1:
        half = float(t.ppf((1 + confidence) / 2, len(accs) - 1)) * statistics.stdev(accs) / len(accs) ** 0.5
        low, high = min(low, max(0.0, centre - half)), max(high, min(1.0, centre + half))
    return Measure(centre, low, high, n)


def table(listed: Sequence[Row]) -> Table:
    """The rows as text, in per cent; columns that nobody measured are left out."""
    cells = [
        {key: _cell(row.accuracy, key) for key in row.accuracy}
        | {key: f"{value:{NUMBERS[key]}}" for key, value in row.numbers.items()}
        for row in listed
    ]
    order = (*ROLES, WORST, "answer probability", "after attacks", "KL", "KL, budget's texts", "perplexity")
    order += ("seeds", "seconds", "memory, MB")
    shown = [key for key in order if any(key in found for found in cells)]
    body = [[row.method, *(found.get(key, "") for key in shown)] for row, found in zip(listed, cells, strict=True)]
    return Table(["method", *numbers(*shown)], body)


def _cell(accuracy: Mapping[str, Measure], key: str) -> str:
    """Per cent, plain / corrected where that was measured, with the interval of the last."""
    shown = [accuracy[key], *([accuracy[key + CORRECTED]] if key + CORRECTED in accuracy else [])]
    low, high = 100 * shown[-1].low, 100 * shown[-1].high
    return f"{' / '.join(f'{100 * m.value:.1f}' for m in shown)} ({low:.0f}–{high:.0f})"


def attacked(runs: Sequence[Results]) -> Table:
    """What each attack gets out of each method's models: plain / corrected accuracy in per cent, answer probability.

    Means over seeds, in brackets the number of questions, in the order of :func:`rows`; last the base models under the
    same attacks, from the least to the greatest where the attacks that were chosen differ.
    """
    order = [row.method for row in rows(runs)]
    names = list(dict.fromkeys(name for r in runs for name in r.attacks))
    asked = {"asked plainly": [n for n in names if not n.startswith(result_file.SEARCHED)]}
    asked["asked plainly, searched"] = [n for n in names if n not in asked["asked plainly"]]
    asked = {head: mine for head, mine in asked.items() if mine}
    body = []
    for on, own in _by_model(runs):
        named = {f"{method}{on}": mine for method, mine in _by_method(own).items()}
        for method, mine in sorted(named.items(), key=lambda item: order.index(item[0])):
            plain = [
                [next((e.before for e in _of(r, group) if e.before), None) for r in mine] for group in asked.values()
            ]
            attacked = [[e.after for r in mine for e in _of(r, [name])] for name in names]
            body.append([method, *map(_answers, [*plain, *attacked])])
        scored = [[e for r in own for e in _of(r, [name]) if e.after and "base" in e.controls] for name in names]
        controls = [_from_to([e.controls["base"] for e in entries]) for entries in scored]
        body.append([f"*base{on}*", *([""] * len(asked)), *controls])
    heads = [_counted(head, runs, group) for head, group in [*asked.items(), *((name, [name]) for name in names)]]
    return Table(["method", *numbers(*heads)], body)


def _of(results: Results, names: Sequence[str]) -> list[AttackEntry]:
    return [entry for name, entry in results.attacks.items() if name in names]


def _counted(head: str, runs: Sequence[Results], names: Sequence[str]) -> str:
    """A column's heading with the number of its questions, which differs between seeds."""
    counts = sorted({e.n for r in runs for e in _of(r, names) if e.n})
    return f"{head} ({'–'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))})" if counts else head


def _answers(measured: Sequence[Accuracy | None]) -> str:
    """Plain / corrected accuracy and answer probability, means over those that were measured."""
    found = [m for m in measured if m]
    accs = [[m.acc for m in found], [m.corrected.acc for m in found if m.corrected]]
    shown = " / ".join(f"{100 * statistics.mean(values):.1f}" for values in accs if values)
    probs = [m.prob for m in found if m.prob is not None]
    return ", ".join(filter(None, (shown, tables.likely(statistics.mean(probs)) if probs else "")))


def _from_to(measured: Sequence[Accuracy]) -> str:
    """As :func:`_answers` where all are the same; otherwise each from its least to its greatest."""
    accs = [[100 * m.acc for m in measured], [100 * m.corrected.acc for m in measured if m.corrected]]
    ends = [dict.fromkeys((f"{min(values):.1f}", f"{max(values):.1f}")) for values in accs if values]
    probs = [m.prob for m in measured if m.prob is not None]
    likely = dict.fromkeys(map(tables.likely, (min(probs), max(probs)))) if probs else {}
    return ", ".join(filter(None, (" / ".join(map("–".join, ends)), " – ".join(likely))))


def notes(runs: Sequence[Results]) -> list[str]:
    """What a reader of the table must know: budgets that were not reached, attacks that failed or show nothing."""
    short, said, nothing, tried = list[str](), list[str](), dict[str, list[str]](), dict[str, list[str]]()
    named = [
        (f"{method}{on}", r) for on, own in _by_model(runs) for method, mine in _by_method(own).items() for r in mine
    ]
    for method, r in named:
        name = f"{method}, seed {r.run.seed}"
        if r.train and r.train.kl_budget and not r.train.kl_reached:
            short.append(f"{name}: {r.train.kl:.3g} of {r.train.kl_budget:g}")
        for attack, entry in r.attacks.items():
            if entry.error is not None:
                said.append(f"{name}: {attack} failed: {entry.error}")
            if entry.inconclusive:
                nothing.setdefault(attack, []).append(f"{name} (it {entry.inconclusive})")
            if count := entry.budget.get(result_file.TRIED):
                tried.setdefault(f"{attack.partition(',')[0]} is the worst of {count} attacks", []).append(name)
    if short:
        said.insert(0, f"never reached the budget: {'; '.join(short)}")
    said += [f"{what} for {'; '.join(dict.fromkeys(whose))}" for what, whose in tried.items()]
    return said + [f"{attack} shows nothing for {'; '.join(whose)}" for attack, whose in nothing.items()]


def draw(listed: Sequence[Row]) -> Figure:
    """Forget accuracy against general accuracy.

    Every method is a numbered point with its intervals; a line joins those that no other beats on both.
    """
    points = [row for row in listed if {"forget", "general"} <= set(row.accuracy)]
    figure = style.figure_of(7, 5, "Forget against general, mean over seeds with 95 % intervals", dpi=150)
    axes = figure.subplots()
    places = [(row.accuracy["forget"].value, row.accuracy["general"].value) for row in points if "seeds" in row.numbers]
    front = sorted(p for p in places if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in places))
    axes.plot([x for x, _ in front], [y for _, y in front], color=GREY, lw=1, alpha=0.5)
    for number, row in enumerate(points):
        x, y, colour = row.accuracy["forget"], row.accuracy["general"], FORGET if "seeds" in row.numbers else RETAIN
        axes.plot([x.low, x.high], [y.value] * 2, color=colour, lw=1, alpha=0.3)
        axes.plot([x.value] * 2, [y.low, y.high], color=colour, lw=1, alpha=0.3)
        size = 5 if number < 10 else 9  # as wide as it is
        axes.plot(x.value, y.value, "k", marker=f"${number}$", ls="", ms=size, mew=0.3, label=row.method, zorder=3)
    for chance in dict.fromkeys(row.chance for row in points):
        axes.axvline(chance, color=GREY, lw=1, ls=":")
        axes.annotate("chance", (chance, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color=GREY, ha="left")
    left, bottom = (min([0.1, *(row.accuracy[key].low - 0.02 for row in points)]) for key in ("forget", "general"))
    axes.set(xlim=(left, 1.1), ylim=(bottom, 1.05))
    axes.set(xlabel="forget: accuracy (lower is better)", ylabel="general accuracy")
    style.bare(axes, percent="xy")
    style.legend(figure, columns=4)
    return figure


def lasting(listed: Sequence[Row]) -> Figure | None:
    """What each method's models answer before and after the attack that brings most back; what lasts best is on top.

    By corrected accuracy and by answer probability, beside the base model under the same attack. None: no attack was
    scored.
    """
    measures = [by for by in objectives.ATTACKED if any(by in row.lasting for row in listed)]
    if not measures:
        return None
    attacked = [row for row in listed if row.lasting]
    attacked.sort(key=lambda row: m["after"].value if (m := row.lasting.get(measures[-1])) else 1)
    names = [f"{r.method}  ({r.numbers['KL']:.2g})" if "KL" in r.numbers else r.method for r in attacked]
    title = "Before and after the worst attack; in brackets KL to the base on neutral text"
    figure = style.figure_of(9, 1.5 + 0.26 * len(names), title, dpi=150)
    looks = {"before": (RETAIN, "o", "asked plainly"), "after": (FORGET, "o", "after the worst attack")}
    looks["base"] = (GREY, "|", "the base model under that attack")
    for axes, by in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for y, row in enumerate(attacked):
            if not (states := row.lasting.get(by)):
                continue
            after = states["after"]
            axes.plot(
                [m.value for m in (states.get("before", after), after)], [y, y], color="#cccccc", lw=1.5, zorder=1
            )
            axes.plot([after.low, after.high], [y, y], color=FORGET, lw=1.2, alpha=0.4, zorder=1)
            for state, (colour, marker, label) in looks.items():
                if state in states:
                    size = 9 if marker == "|" else 5
                    axes.plot(states[state].value, y, marker, color=colour, ms=size, mew=1.5, label=label, ls="")
        axes.set(ylim=(len(names) - 0.4, -0.6), xlabel=objectives.ATTACKED[by])
        axes.set_yticks(range(len(names)), names if axes is figure.axes[0] else [""] * len(names), fontsize=8)
        if by == "corrected":
            axes.set_xlim(0, 1.02)
        else:
            axes.set_xscale("log")
        style.bare(axes, "x", percent="x" if by == "corrected" else "")
    style.legend(figure)
    return figure


def write(folders: Sequence[Path]) -> list[Path]:
    """Write methods.md and methods.png into the first of some folders of runs and judgements; returns the two files.

    Raises UserError: there are none below one of them.
    """
    runs = read(folders)
    listed = rows(runs)
    first = folders[0].parent if folders[0].is_file() else folders[0]
    page, picture = first / "methods.md", first / "methods.png"
    write_atomic(page, f"# Methods\n\n{about(runs)}\n\n{table(listed).markdown()}\n")
    style.write(draw(listed), picture)
    return [page, picture]
