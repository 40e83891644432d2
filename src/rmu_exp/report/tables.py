"""The tables of one run: accuracies on the screen, in report.md and on the model card; perplexities; attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rmu_exp.record.results import Accuracy, AttackEntry, Measured, MeasuredRow, Perplexity, Qa, QaRow, Results, RunInfo
from rmu_exp.report.table import Table, interval, numbers, percent
from rmu_exp.settings import ROLES

INDENT = "&nbsp;&nbsp;"
MOST_CHANGED = 10


def rows(qa: Qa) -> list[tuple[int, str]]:
    """Names of groups and tasks in reading order, each with its depth: 0 for a group, 1 for a task of it.

    A task that is in several groups stands in the smallest; one that was not asked in none.
    """
    tasks = {name: row.tasks for name, row in qa.items() if row.tasks is not None}
    home = {task: group for group in sorted(tasks, key=lambda n: len(tasks[n]))[::-1] for task in tasks[group]}
    listed: list[tuple[int, str]] = []
    alone = [name for name in qa if name not in tasks and (name not in home or qa[name].role)]
    for name in sorted((*tasks, *alone), key=lambda n: (_rank(qa[n]), -len(tasks.get(n, ())))):
        inside = [task for task in tasks.get(name, ()) if task in qa and home[task] == name and task not in alone]
        listed += [(0, name), *((1, task) for task in inside)]
    return listed


def _rank(row: QaRow) -> int:
    return ROLES.index(row.role) if row.role else len(ROLES)


def title(run: RunInfo) -> str:
    """The settings in words, for titles."""
    if run.kind == "judge":
        return f"{run.unlearned} beside {run.model}, seed {run.seed}"
    steer, alpha = (" and ".join(dict.fromkeys(f"{v:g}" for v in values)) for values in (run.steer, run.alpha))
    return f"{run.method} on {run.model}: layer {run.layer}, steer {steer}, alpha {alpha}, seed {run.seed}"


def on_screen(qa: Qa) -> Table:
    """Accuracies for the terminal, 80 columns wide with names up to 26 characters."""
    listed = rows(qa)
    body = []
    for depth, name in listed:
        row = qa[name]
        base, after = row.base, row.unlearned
        cells = ["  " * depth + name, percent(base.acc), *accuracy(after)]
        both = " → ".join(filter(None, (corrected(base).removesuffix(" %"), corrected(after).removesuffix(" %"))))
        body.append([*cells, both, percent(row.chance), str((after or base).n)])
    columns = ["questions", *numbers("base", "unlearned", "95 %", "corrected", "chance", "n")]
    return Table(columns, body, frozenset(i for i, (depth, _) in enumerate(listed) if depth))


def accuracies(qa: Qa) -> Table:
    """Accuracies with intervals, plain and without answer bias."""
    body = []
    for depth, task in rows(qa):
        row = qa[task]
        cells = [INDENT * depth + task, str(row.base.n), *accuracy(row.base), *accuracy(row.unlearned)]
        body.append([*cells, corrected(row.base), corrected(row.unlearned), percent(row.chance)])
    columns = ["n", "base", "95 %", "unlearned", "95 %", "base, corrected", "unlearned, corrected", "chance"]
    return Table(["questions", *numbers(*columns)], body)


def metrics(results: Results, everything: bool = False) -> Table:
    """lm-eval's metrics with their standard errors: of tasks without an accuracy of their own; or of all."""
    rows: dict[str, QaRow | MeasuredRow] = {**(results.qa if everything else {}), **results.measured}
    body = []
    for name, row in rows.items():
        for metric in row.base.metrics:
            cells = [name, metric, str(row.base.n), _metric(row.base, metric)]
            body.append([*cells, _metric(row.unlearned, metric) if row.unlearned else ""])
    return Table(["task", "metric", *numbers("n", "base", "unlearned")], body)


def _metric(measured: Accuracy | Measured, name: str) -> str:
    value, stderr = measured.metrics.get(name), measured.metrics_stderr.get(name)
    if value is None:
        return ""
    return f"{value:.4g}" if stderr is None or math.isnan(stderr) else f"{value:.4g} ± {stderr:.2g}"


def answer_probabilities(qa: Qa) -> Table:
    """Mean probability of the right option among the options, and of its text, with bootstrapped 95 % intervals."""
    body = []
    for depth, name in rows(qa):
        states = [qa[name].base, qa[name].unlearned]
        cells = [_probable(m.choice_prob, m.choice_prob_ci95) if m else "" for m in states]
        cells += [_probable(m.prob, m.prob_ci95) if m else "" for m in states]
        if any(cells):
            body.append([INDENT * depth + name, *cells])
    columns = ["base, among options", "unlearned, among options", "base, its text", "unlearned, its text"]
    return Table(["questions", *numbers(*columns)], body)


def _probable(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if bounds is None else f"{value:.3g} ({bounds[0]:.3g}–{bounds[1]:.3g})"


def changed(qa: Qa, lines: Iterable[Mapping[str, Any]]) -> dict[str, Table]:
    """Role to the :data:`MOST_CHANGED` questions whose right option lost or gained most probability, in words.

    Args:
        lines: of answers.jsonl.
    """
    roles = {task: row.role for name, row in qa.items() if row.role for task in row.tasks or [name]}
    found: dict[str, list[tuple[float, list[str]]]] = {}
    for line in lines:
        role, target = roles.get(str(line.get("task"))), line.get("target")
        before, after = line.get("base_probs"), line.get("unlearned_probs")
        if role and isinstance(target, int) and isinstance(before, list) and isinstance(after, list):
            first, last = before[target], after[target]
            words = [_cell(line.get(key, "")) for key in ("text", "right", "base_option", "unlearned_option")]
            cells = [*words[:3], f"{first:.2f}", words[3], f"{last:.2f}"]
            found.setdefault(role, []).append((abs(last - first), cells))
    columns = ["question", "right", "base", *numbers("p(right)"), "unlearned", *numbers("p(right)")]
    most = {role: sorted(mine, key=lambda m: -m[0])[:MOST_CHANGED] for role, mine in found.items()}
    return {role: Table(columns, [cells for _, cells in most[role]]) for role in ROLES if role in most}


def _cell(text: object, most: int = 160) -> str:
    line = " ".join(str(text).split()).replace("|", "\\|")
    return line if len(line) <= most else f"… {line[-most:]}"


def details(qa: Qa) -> Table:
    """McNemar's test of a change, the best blind answer and the test against it, probabilities of the options."""
    body = []
    for depth, task in rows(qa):
        row = qa[task]
        test, chance = row.mcnemar, row.p_chance
        cells = [INDENT * depth + task, *([f"{test.lost} / {test.gained}", f"{test.p:.2g}"] if test else ["", ""])]
        cells += [percent(row.blind), "" if chance is None else f"{chance:.2g}"]
        body.append([*cells, *probabilities(row.base), *probabilities(row.unlearned)])
    columns = ["lost / gained", "p, no change", "blind", "p, at chance"]
    columns += ["base, p(right)", "mass", "unlearned, p(right)", "mass"]
    return Table(["questions", *numbers(*columns)], body)


def corrected(measured: Accuracy | None) -> str:
    """The accuracy without answer bias; nothing for what was not measured."""
    return percent(measured.corrected.acc) if measured and measured.corrected else ""


def probabilities(measured: Accuracy | None) -> tuple[str, str]:
    """The mean probability of the right option and of all of them; nothing for what was not measured."""
    if measured is None or measured.prob is None or measured.mass is None:
        return "", ""
    return f"{measured.prob:.2g}", f"{measured.mass:.2g}"


def corrections(qa: Qa) -> str:
    """How answer bias was taken out, in words."""
    words = {
        "rotations": "by asking letter questions with their options in every rotation",
        "other questions": "by comparing an option's likelihood with its mean after other questions of the same kind",
    }
    kinds = {kind for row in qa.values() for kind in (row.correction or "").split(" and ")}
    return "; ".join(text for kind, text in words.items() if kind in kinds) or "where it was measured"


def accuracy(measured: Accuracy | None) -> tuple[str, str]:
    """An accuracy and its 95 % interval; nothing for what was not measured."""
    return (percent(measured.acc), interval(measured.ci95)) if measured else ("", "")


def perplexities(results: Results) -> Table:
    """Perplexity before and after, with intervals."""
    body = []
    for source, row in results.perplexity.items():
        cells = [*_spread(row.base), *(_spread(row.unlearned) if row.unlearned else ())]
        body.append([f"`{source}`", str((row.unlearned or row.base).tokens), *cells])
    return Table(["perplexity on", *numbers("tokens", "base", "95 %", "unlearned", "95 %")], body)


def _spread(measured: Perplexity) -> tuple[str, str]:
    """A perplexity and its 95 % interval, from the standard error of its logarithm."""
    centre = measured.perplexity
    if measured.nll_stderr is None:
        return f"{centre:.2f}", ""
    factor = math.exp(1.96 * measured.nll_stderr)
    return f"{centre:.2f}", f"{centre / factor:.2f}–{centre * factor:.2f}"


def attacks(results: Results) -> Table:
    """What each attack got out, plain and corrected, with its controls and its budget."""
    body = []
    for name, entry in results.attacks.items():
        if entry.forget_acc and entry.ci95:
            cells = [name, str(entry.n), percent(entry.forget_acc.before), percent(entry.forget_acc.after)]
            cells += [interval(entry.ci95.after), _change(corrected, entry), _change(probability, entry)]
            controls = ", ".join(f"{control} {percent(value.acc)}" for control, value in entry.controls.items())
            body.append([*cells, controls, budget(entry), _seconds(entry)])
    columns = ["n", "plain", "under attack", "95 %", "corrected", "answer probability"]
    return Table(["attack", *numbers(*columns), "controls", "budget", *numbers("seconds")], body)


def _change(shown: Callable[[Accuracy | None], str], entry: AttackEntry) -> str:
    return " → ".join(filter(None, map(shown, (entry.before, entry.after))))


def probability(measured: Accuracy | None) -> str:
    """The mean probability of the answer's text; nothing for what was not measured."""
    return likely(measured.prob) if measured and measured.prob is not None else ""


def likely(share: float) -> str:
    """A probability: in per cent, as far as one decimal tells anything."""
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def budget(entry: AttackEntry) -> str:
    """A budget in words: ``steps 40, samples 100``; without the time, which belongs to the machine."""
    values = {key: f"{v:g}" if isinstance(v, float) else v for key, v in entry.budget.items() if key != "seconds"}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _seconds(entry: AttackEntry) -> str:
    seconds = entry.budget.get("seconds")
    return f"{seconds:.0f}" if isinstance(seconds, (int, float)) else ""
