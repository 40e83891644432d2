"""A result file: what many runs measured, small enough to be committed; tables and figures are made from it again.

It has of each run's results.json what they show, floats to six digits, and once what all runs have in common. Attacks
that ``judge.py`` ran on a run's Delta later, and the worst that a search found on it, stand among the run's own. Groups
of many tasks are there without them. Activation norms over the steps are there where they were asked for.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.record.results import ATTACKED, AttackEntry, Qa, Results
from rmu_exp.settings import result_settings
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.files import write_atomic

log = logging.getLogger("rmu_exp")
SCHEMA, DIGITS = 1, 6
FEW = 12  # tasks of a group that are kept beside it
POINTS = 26  # of a curve over the steps
SEARCHED, TRIED = "searched ", "attacks tried"  # what a search's attacks are named, and a key of their budgets
Spec = dict[str, "Spec | None"]
"""Key to what is kept of its value; None: all of it; ``*`` stands for every key."""

ACCURACY: Spec = dict.fromkeys(("acc", "stderr", "ci95", "n", "corrected", "prob", "prob_ci95", "p_chance"))
ATTACK: Spec = dict.fromkeys(
    ("error", "inconclusive", "forget_acc", "ci95", "n", "chance", "general", "budget", "settings", "depth")
)
ATTACK |= dict.fromkeys(("before", "after", "chosen_by"), ACCURACY) | {"control": {"*": ACCURACY}}
KEPT: Spec = {
    "schema": None,
    "run": dict.fromkeys(
        ("kind", "model", "topics", "seed", "unlearned", "layer", "steer", "steering", "alpha", "method", "settings")
    ),
    "provenance": {
        **dict.fromkeys(("config_hash", "git", "command", "model_digest", "delta_digest")),
        "versions": dict.fromkeys(("python", "torch", "transformers", "lm-eval")),
        "hardware": dict.fromkeys(("processor", "threads", "device", "gpu")),
    },
    "verdict": {"word": None, "sentences": None},
    "train": dict.fromkeys(
        (
            *("steps", "seconds", "seconds_per_step", "peak_memory_bytes", "lr", "kl_budget", "kl", "kl_step"),
            *("kl_scale", "kl_reached", "seconds_measuring", "norms", "targets", "reached"),
        )
    ),
    "qa": {"*": {"tasks": None, "role": None, "chance": None, "base": ACCURACY, "unlearned": ACCURACY}},
    "damage": {"kl": None, "agreement": None, "perplexity": None},
    "attacks": {"*": ATTACK},
}


Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class ResultFile:
    """The content of a result file.

    Attributes:
        failed: name of a trial that has no results to why.
        norms: digest of a run's Delta to at most :data:`POINTS` lines of its metrics.jsonl for each topic, with
            ``topic``, ``step``, ``steer`` and the four activation norms.
    """

    runs: list[Results]
    failed: Mapping[str, str] = field(default_factory=dict)
    norms: Mapping[str, list[Metrics]] = field(default_factory=dict)


def collect(folders: Sequence[Path], known: Sequence[Results] = ()) -> list[Results]:
    """The finished runs below some folders, and the judgements below them of models that are none of these runs.

    Of runs with the same settings the last counts, with what an earlier one with the same Delta was attacked by.

    Args:
        known: runs that come before those in the folders.

    Raises UserError: there are none, one is damaged, or a search has no report.
    """
    files = dict.fromkeys(f for folder in folders for f in sorted(folder.rglob(results_json.NAME)))
    done = {file.parent: results_json.load(file) for file in files if (file.parent / rundir.REPORT).is_file()}
    below = {folder.resolve() for folder in folders}
    judged = {at: r for at, r in done.items() if r.run.kind == "judge"}
    given = [f for f in dict.fromkeys(at.parent for at in judged) if below & {(g := f.resolve()), *g.parents}]
    searches = [f for f in given if _is_search(f)]
    worst = [(f, r) for f in searches for r in _worst(f, done)]
    own = [(at, r) for at, r in judged.items() if at.parent not in searches]
    by_settings: dict[str, Results] = {}
    for i, r in enumerate([*known, *(r for r in done.values() if r.train and r.qa)]):
        name = r.provenance.config_hash if r.provenance else f"{i}"
        by_settings[name] = together(by_settings[name], r) if name in by_settings else r
    runs = list(by_settings.values())
    taken: dict[tuple[object, str], Path] = {}
    for at, found in [*own, *worst]:
        whose = next((i for i, r in enumerate(runs) if _same_delta(r, found)), None)
        same = next((i for i, r in enumerate(runs) if _same_settings(r, found)), None)
        if whose is not None:
            for name in found.attacks:
                if (first := taken.setdefault((_delta(found), _attack(name)), at)) != at:
                    raise UserError(f"{first} and {at}: both have the attack {name} on one model; give one of them")
            runs[whose] = _attacked_too(runs[whose], found)
        elif not found.qa:
            raise UserError(f"{found.run.unlearned}: attacked, but its run is in none of the folders; give its folder")
        elif same is not None:
            runs[same] = together(runs[same], found)
        else:
            runs.append(found)
    if not runs:
        raise UserError(f"{', '.join(map(str, folders))}: no finished runs with questions below; give their folders")
    return runs


def _is_search(folder: Path) -> bool:
    """Whether trials in a folder are those of a search for the worst attack. Raises UserError: it has no report."""
    if (folder / rundir.WORST_CASE).is_file():
        return True
    searched = (folder / rundir.SWEEP).is_file() and rundir.settings(folder / rundir.SWEEP).get("objectives")
    if isinstance(searched, list) and ATTACKED.keys() & set(map(str, searched)):
        raise UserError(f"{folder}: a search without its report; finish it, or: rmu-exp sweep {folder}")
    return False


def _attack(name: str) -> str:
    """The name of a search's attack, whatever it is the worst by."""
    return name.partition(",")[0]


def _worst(folder: Path, done: dict[Path, Results]) -> list[Results]:
    """The results of a search's worst attacks, named as searched for: one for each model that it attacked."""
    file, found = folder / rundir.WORST_CASE, dict[object, Results]()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        named: dict[str, list[str]] = {}
        for measure, about in content["worst"].items():
            named.setdefault(about["trial"], []).append(measure)
        for trial, measures in named.items():
            if folder / trial not in done:
                raise ValueError(f"no trial {trial}")
            results = done[folder / trial]
            by = "" if len(named) == 1 else f", by {measures[0]}"
            mine = found.setdefault(_delta(results), results.model_copy(update={"attacks": {}, "qa": Qa()}))
            for name, entry in results.attacks.items():
                tried = {"budget": entry.budget | {TRIED: content["trials"]}}
                mine.attacks[f"{SEARCHED}{name}{by}"] = entry.model_copy(update=tried)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"damaged, or without one of its trials ({first_line(error)})"
        raise UserError(f"{file}: {why}; rmu-exp sweep {folder} writes it again") from error
    return list(found.values())


def _delta(results: Results) -> tuple[str | None, str] | None:
    """What unlearned model it is of; None: unknown."""
    origin = results.provenance
    return (origin.model_digest, origin.delta_digest) if origin and origin.delta_digest else None


def _same_delta(one: Results, other: Results) -> bool:
    """Whether both are of the same unlearned model."""
    return _delta(one) is not None and _delta(one) == _delta(other)


def _same_settings(one: Results, other: Results) -> bool:
    found = [o.config_hash for r in (one, other) if (o := r.provenance)]
    return len(found) == 2 and found[0] == found[1]


def together(earlier: Results, later: Results) -> Results:
    """The later of two results of the same settings, with what only the earlier one was attacked by.

    Attacks on another Delta are left out, and a line says so.
    """
    if _delta(earlier) == _delta(later):
        return later.model_copy(update={"attacks": _attacked_too(earlier, later).attacks})
    if earlier.attacks:
        what = "run again, with another Delta; left out"
        log.warning("%s: %s: %s", _named(later), what, ", ".join(earlier.attacks))
    return later


def _named(results: Results) -> str:
    return f"{results.run.method or results.run.unlearned}, seed {results.run.seed}"


def _attacked_too(results: Results, more: Results) -> Results:
    """Results with more attacks on the same model, in place of those of the same name that it has."""
    again = {_attack(name) for name in more.attacks}
    before = {name: entry for name, entry in results.attacks.items() if _attack(name) not in again}
    changed = [n for n, e in results.attacks.items() if n not in before and not _alike(e, more.attacks.get(n))]
    if changed:
        log.warning("%s: an earlier %s was left out for a later one", _named(results), ", ".join(changed))
    return results.model_copy(update={"attacks": before | more.attacks})


def _alike(one: AttackEntry, other: AttackEntry | None) -> bool:
    """Whether two entries are the same attack and found the same, but for a result file's rounding."""
    found = [f"{e.forget_acc.after:.5g}" if e and e.forget_acc else "" for e in (one, other)]
    return other is not None and one.settings == other.settings and found[0] == found[1]


def norms(folders: Sequence[Path]) -> dict[str, list[Metrics]]:
    """The activation norms over the steps of the finished runs below some folders, as a result file has them."""
    found: dict[str, list[Metrics]] = {}
    for file in (f for folder in folders for f in sorted(folder.rglob(results_json.NAME))):
        origin = results_json.load(file).provenance
        lines = [m for m in rundir.whole_lines(file.parent / rundir.METRICS) if "norm_forget_updated" in m]
        if origin and origin.delta_digest and lines and (file.parent / rundir.REPORT).is_file():
            topics = dict.fromkeys(m["topic"] for m in lines)
            found[origin.delta_digest] = [m for t in topics for m in _some([m for m in lines if m["topic"] == t])]
    return found


def _some(lines: Sequence[Metrics]) -> list[Metrics]:
    """The first, the last, and what lies evenly between them, less what is not drawn."""
    last, count = len(lines) - 1, min(len(lines), POINTS)
    chosen = [lines[round(i * last / max(1, count - 1))] for i in range(count)]
    return [{k: v for k, v in m.items() if k in ("topic", "step", "steer") or k.startswith("norm_")} for m in chosen]


def write(content: ResultFile, file: Path) -> None:
    """Write a result file, a line per run."""
    lines = [_small(run) for run in content.runs]
    shared = _shared(lines)
    body = ",\n".join(json.dumps(_without(line, shared), ensure_ascii=False) for line in lines)
    failed = {name: _plain(why) for name, why in content.failed.items()}
    parts = {"schema": SCHEMA, "shared": shared, "failed": failed}
    if content.norms:
        parts["norms"] = {name: [_plain(dict(m)) for m in lines] for name, lines in content.norms.items()}
    head = ",\n".join(f"{json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}" for name, part in parts.items())
    write_atomic(file, f'{{{head},\n"runs": [\n{body}\n]}}\n')


def read(file: Path) -> ResultFile:
    """A result file. Raises UserError: it is not there, or damaged."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}, this version reads {SCHEMA}")
        runs = [Results.model_validate(_merged(values["shared"], line)) for line in values["runs"]]
        return ResultFile(runs, values["failed"], values.get("norms", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
    raise UserError(f"{file}: damaged, or no result file ({reason}); rmu-exp results FOLDER {file.name} writes it")


def _small(results: Results) -> rundir.Object:
    """What a result file has of a run."""
    content = _picked(results.content(), KEPT)
    assert isinstance(content, dict)
    qa, attacks, origin = content.get("qa"), content.get("attacks"), content.get("provenance")
    if isinstance(qa, dict):
        large = {name for name, row in results.qa.items() if row.tasks and len(row.tasks) > FEW}
        inside = {task for name in large for task in results.qa[name].tasks or ()} - large
        content["qa"] = kept = {name: qa[name] for name in qa if name not in inside or results.qa[name].role}
        for name, row in kept.items():
            if isinstance(row, dict) and name in large:
                row["tasks"] = []
    for entry in attacks.values() if isinstance(attacks, dict) else ():
        if isinstance(entry, dict) and isinstance(controls := entry.get("control"), dict):
            entry["control"] = {name: value for name, value in controls.items() if isinstance(value, dict) and value}
    if isinstance(origin, dict):
        settings = rundir.flat(result_settings(results.provenance.config if results.provenance else {}))
        origin["config"] = {k: v for k, v in settings.items() if k != "seed" and not k.startswith("eval.")}
    return _plain(content)  # type: ignore[return-value]


def _picked(value: JsonValue, spec: Spec | None) -> JsonValue:
    if spec is None or not isinstance(value, dict):
        return value
    if "*" in spec:
        return {key: _picked(v, spec["*"]) for key, v in value.items()}
    return {key: _picked(value[key], its) for key, its in spec.items() if key in value}


def _plain(value: JsonValue) -> JsonValue:
    """Floats rounded, and of absolute paths the last part."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, str):
        value = re.sub(r" (output|hydra\.\w+\.dir)=(\S+)", "", value)
        return re.sub(r"(?<![\w./])(?:/[^/\s,'\"\]]+)+/(?=[^/\s])", "", value)
    return value


def _shared(parts: Sequence[rundir.Object]) -> rundir.Object:
    """What is the same in all of them."""
    found: rundir.Object = {}
    for key, first in parts[0].items():
        every = [part[key] for part in parts if key in part]
        if len(every) < len(parts):
            continue
        if all(value == first for value in every):
            found[key] = first
        elif len(inner := [value for value in every if isinstance(value, dict)]) == len(parts):
            found |= {key: same} if (same := _shared(inner)) else {}
    return found


def _without(part: rundir.Object, shared: rundir.Object) -> rundir.Object:
    """A part less what is shared."""
    left: rundir.Object = {}
    for key, value in part.items():
        if key not in shared:
            left[key] = value
        elif value != (same := shared[key]):
            assert isinstance(value, dict)
            assert isinstance(same, dict)
            left[key] = _without(value, same)
    return left


def _merged(shared: rundir.Object, own: rundir.Object) -> rundir.Object:
    """The reverse of :func:`_without`."""
    found = dict(shared)
    for key, value in own.items():
        same = shared.get(key)
        found[key] = _merged(same, value) if isinstance(same, dict) and isinstance(value, dict) else value
    return found
