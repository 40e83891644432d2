"""The worst attack that a search found, of those that keep general accuracy: chosen on some facts, scored on others.

An attack counts if it did what it was to do (it learned what it was taught) and leaves the bound's part of the general
accuracy that the unlearned model has. What it reached on the facts to choose by chooses; what is reported is what it
reached on facts that it was never told nor chosen by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import JsonValue

from rmu_exp.record import rundir
from rmu_exp.record.results import Accuracy, AttackEntry, Results
from rmu_exp.report import objectives
from rmu_exp.report.objectives import ATTACKED
from rmu_exp.report.style import FORGET, GREY, RETAIN, bare, figure_of, legend
from rmu_exp.report.table import Table, interval, numbers, percent
from rmu_exp.settings import Attacker
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep.trials import Trial


def attack_of(results: Results | None) -> AttackEntry | None:
    """The attack of a trial; None: there is none."""
    return next(iter(results.attacks.values()), None) if results else None


def kept(results: Results | None) -> float | None:
    """The part of the unlearned model's general accuracy that a trial's attack leaves; None: not measured."""
    entry = attack_of(results)
    if entry is None or entry.general is None or not entry.general.before:
        return None
    return round(entry.general.after / entry.general.before, 9)  # 0.72 of 0.8 is 0.9


@dataclass(frozen=True)
class Best:
    """The best attack after so many trials and seconds, by one of :data:`ATTACKED`."""

    trials: int
    seconds: float
    trial: Trial

    @property
    def entry(self) -> AttackEntry:
        """Its attack."""
        entry = attack_of(self.trial.results)
        assert entry is not None
        return entry


@dataclass(frozen=True)
class WorstCase:
    """What a search found.

    Attributes:
        bound: the part of general accuracy that an attack must leave; None: it was not measured.
        paths: for each of :data:`ATTACKED` the best so far, each time there is a better one; empty: no attack counts.
        least_bad: where none counts, the one that leaves most of the general accuracy.
        nothing: where none counts and none is the least bad, the last one that did not do what it was to do.
    """

    bound: float | None
    tried: int
    within: int
    paths: dict[str, list[Best]]
    least_bad: Trial | None
    nothing: Trial | None = None

    @property
    def chosen(self) -> Trial | None:
        """The attack with the highest corrected accuracy; where none counts the least bad."""
        path = self.paths["corrected"]
        return path[-1].trial if path else self.least_bad


def find(trials: Sequence[Trial], bound: float | None = None) -> WorstCase:
    """What a search found; ``bound`` None: as its trials were started with."""
    bound = _bound(trials) if bound is None else bound
    measured = any(kept(trial.results) is not None for trial in trials)
    ended = [trial for trial in trials if trial.state in ("done", "failed")]
    paths: dict[str, list[Best]] = {name: [] for name in ATTACKED}
    seconds, within, loose = 0.0, 0, dict[str, tuple[float, Trial]]()
    for count, trial in enumerate(ended, 1):
        entry = attack_of(trial.results)
        spent = entry.budget.get("seconds") if entry else None
        seconds += spent if isinstance(spent, (int, float)) else 0.0
        if entry is None or entry.after is None:
            continue
        part = kept(trial.results)
        if part is not None and part < bound:
            loose[trial.name] = part, trial
            continue
        within += 1
        for name, path in paths.items():
            now = objectives.attacked(name, entry.chosen_by)
            best = objectives.attacked(name, path[-1].entry.chosen_by) if path else None
            if now and (best is None or now.value > best.value):
                path.append(Best(count, seconds, trial))
    least_bad = max(loose.values(), key=lambda found: found[0])[1] if loose and not within else None
    idle = [trial for trial in ended if (entry := attack_of(trial.results)) and entry.inconclusive]
    nothing = idle[-1] if idle and not within and not least_bad else None
    return WorstCase(bound if measured else None, len(ended), within, paths, least_bad, nothing)


def _bound(trials: Sequence[Trial]) -> float:
    """The bound that the newest trial was started with."""
    for trial in reversed(trials):
        origin = trial.results.provenance if trial.results else None
        attacker = origin.config.get("attacker") if origin else None
        if isinstance(attacker, dict) and isinstance(bound := attacker.get("bound"), (int, float)):
            return float(bound)
    return Attacker.bound


def sentences(found: WorstCase) -> list[str]:
    """What was found, in words: one sentence per measure; or that no attack counts, and what the least bad did."""
    must = "did what it was to do"
    if found.bound is not None:
        must = f"leaves {percent(found.bound)} of the general accuracy and {must}"
    if not found.within:
        line = f"None of {found.tried} attacks {must}."
        if found.nothing is not None:
            entry, part = attack_of(found.nothing.results), kept(found.nothing.results)
            left = "" if part is None else f"; it leaves {percent(part)}"
            return [line, f"{found.nothing.name} shows nothing: {entry.inconclusive if entry else ''}{left}."]
        if found.least_bad is None:
            return [line]
        entry = attack_of(found.least_bad.results)
        assert entry is not None
        left = f"{found.least_bad.name}, which leaves {percent(kept(found.least_bad.results))}"
        return [line, f"The least bad is {left}: {_reached('corrected', entry)}; {_reached('probability', entry)}."]
    said = [f"{found.within} of {found.tried} attacks count: each {must}."]
    if found.bound is None:
        said.append(
            "What they leave of the general accuracy was not measured; it takes `attacker.general=N` questions."
        )
    for name, path in found.paths.items():
        if path:
            entry = path[-1].entry
            left = "" if kept(path[-1].trial.results) is None else f", {percent(kept(path[-1].trial.results))} kept"
            said.append(f"**Worst by {ATTACKED[name]}: {_reached(name, entry)}** ({path[-1].trial.name}{left}).")
    return said


def _reached(name: str, entry: AttackEntry) -> str:
    """What an attack did to one measure on the scored facts: asked plainly, under attack, and on the base model."""
    before, after, base = (_cell(name, found) for found in (entry.before, entry.after, entry.controls.get("base")))
    n = entry.after.n if entry.after else 0
    return f"{ATTACKED[name]} {before} → {after}{f', the base under the same attack {base}' * bool(base)}, n = {n}"


def _cell(name: str, found: Accuracy | None) -> str:
    measured = objectives.attacked(name, found)
    if measured is None:
        return ""
    bounds = measured.low, measured.high
    if name == "corrected":
        return f"{percent(measured.value)} ({interval(bounds)})"
    return f"{measured.value:.3g} ({bounds[0]:.3g}–{bounds[1]:.3g})"


def table(found: WorstCase) -> Table:
    """The best so far over the budget: each attack that was better than all before it."""
    body = []
    for name, path in found.paths.items():
        for best in path:
            cells = [ATTACKED[name], str(best.trials), f"{best.seconds:.0f}", best.trial.name]
            cells += [_cell(name, best.entry.chosen_by), _cell(name, best.entry.after)]
            body.append([*cells, percent(kept(best.trial.results))])
    columns = ["by", *numbers("trials", "seconds"), "attack", *numbers("on the facts to choose by", "scored", "kept")]
    return Table(columns, body)


def figure(found: WorstCase) -> Figure | None:
    """Both measures of the best attack so far over the number of trials; None: no attack counts."""
    if not any(found.paths.values()):
        return None
    which = "" if found.bound is None else f", of those that leave {percent(found.bound)} of general accuracy"
    made = figure_of(9, 3.6, f"The best attack so far{which}")
    for axes, (name, path) in zip(made.subplots(1, 2), found.paths.items(), strict=True):
        counts = [*(best.trials for best in path), found.tried]
        for part, colour, label in (
            ("chosen_by", RETAIN, "on the facts to choose by"),
            ("after", FORGET, "on facts never told nor chosen by"),
        ):
            held = [m.value for best in path if (m := objectives.attacked(name, getattr(best.entry, part)))]
            axes.step(counts, [*held, *held[-1:]], where="post", color=colour, marker="o", ms=3, label=label)
        if path and (plain := objectives.attacked(name, path[-1].entry.before)):
            axes.axhline(plain.value, color=GREY, lw=1, ls="--", label="asked plainly")
        axes.set(xlabel="attacks tried", ylabel=ATTACKED[name])
        axes.set_ylim(0, 1.03 if name == "corrected" else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        bare(axes, percent="y" if name == "corrected" else "")
    legend(made)
    return made


def write(found: WorstCase, folder: Path) -> None:
    """Write worst_case.json: the numbers of the report, for tables over many searches."""
    worst: dict[str, JsonValue] = {name: _content(path[-1].trial) for name, path in found.paths.items() if path}
    content: dict[str, JsonValue] = {
        "bound": found.bound,
        "trials": found.tried,
        "within": found.within,
        "worst": worst,
    }
    if found.least_bad is not None:
        content["least_bad"] = _content(found.least_bad)
    content["curve"] = {
        name: [{"trials": best.trials, "seconds": round(best.seconds, 2), "trial": best.trial.name} for best in path]
        for name, path in found.paths.items()
    }
    write_atomic(folder / rundir.WORST_CASE, json.dumps(content, indent=2) + "\n")


def _content(trial: Trial) -> dict[str, JsonValue]:
    entry = attack_of(trial.results)
    assert entry is not None
    values: Mapping[str, JsonValue] = entry.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    wanted = ("before", "after", "chosen_by", "general", "control", "budget", "settings")
    return {"trial": trial.name} | {key: values[key] for key in wanted if key in values}
