"""The trials of a sweep, read from its folder: one sub-folder per trial, each an ordinary run's folder.

Knows nothing of Hydra: any folder that holds folders of runs can be read, also one that nobody swept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rmu_exp.record import results as results_json
from rmu_exp.record import rundir
from rmu_exp.record.differing import differing, settings_of, shown, usual
from rmu_exp.record.results import Results
from rmu_exp.settings import result_settings
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import LOCK, write_atomic
from rmu_exp.support.redaction import redact

TRIAL, ERROR = "trial.json", "error.txt"
ASKED = ("attacker.general", "data.attacked", "data.questions.", "model.oracle")


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it has come.

    Attributes:
        name: its folder's name.
        folder: None for a run of a result file.
        settings: swept key to value.
        state: ``done``, ``pruned`` (stopped early, on a part of the questions), ``failed``, ``running`` (some
            process works on it) or ``unfinished``.
        reason: why it failed or was given up.
        results: the content of results.json; None when there is none.
    """

    name: str
    folder: Path | None
    settings: Mapping[str, Any]
    state: str
    reason: str
    results: Results | None


def read(folder: Path) -> list[Trial]:
    """The trials in a folder as they were planned. Raises UserError: none are there, or what one wrote is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a sweep")
    found = [f for f in folder.iterdir() if (f / TRIAL).is_file() or (f / rundir.CONFIG).is_file()]
    if not found:
        raise UserError(f"{folder}: no trials in it; give the folder of a sweep")
    plans = {f: _plan(f) for f in found}
    order = sorted(found, key=lambda f: (plans[f].get("number", len(found)), _natural(f.name)))
    settings = {f: plan["settings"] for f, plan in plans.items() if plan} or _differences(order)
    return [read_one(f, settings.get(f, {})) for f in order]


def of(runs: Sequence[Results]) -> list[Trial]:
    """Finished runs, such as a result file has, as trials, those first that are most alike; none has a folder.

    Each is named by the settings in which any two differ, of those that all of them have. Where one run has every
    setting that most have, the others are named by what they have instead.
    """
    all_ = [settings_of(run) for run in runs]
    every = set.intersection(*map(set, all_))
    found_in = differing({i: {k: v for k, v in own.items() if k in every} for i, own in enumerate(all_)})
    most = usual(list(found_in.values()))
    found: dict[tuple[object, ...], Trial] = {}
    for i, own in found_in.items():
        apart = [key for key, value in own.items() if most.get(key) != shown(value)]
        name = ",".join(f"{key}={shown(own[key])}" for key in apart or own) or "all"
        same = sum(trial.name.partition(" (")[0] == name for trial in found.values())
        values = [(0, v, "") if isinstance(v, (int, float)) else (1, 0, shown(v)) for v in own.values()]
        order = (len(apart), *(key not in apart for key in own), *values, i)
        found[order] = Trial(f"{name} ({same + 1})" if same else name, None, own, "done", "", runs[i])
    return [found[order] for order in sorted(found)]


def _plan(folder: Path) -> dict[str, Any]:
    """What was noted of a trial before it started; empty for a run that no sweep started."""
    if not (folder / TRIAL).is_file():
        return {}
    plan = next(rundir.lines(folder / TRIAL), {})
    if not (isinstance(plan.get("number"), int) and isinstance(plan.get("settings"), dict)):
        raise UserError(f"{folder / TRIAL}: damaged; remove it, or the trial's folder")
    return plan


def read_one(folder: Path, settings: Mapping[str, Any]) -> Trial:
    """One trial; ``unfinished`` if its folder holds nothing, or is not there."""
    worked_on = not is_done(folder) and _is_worked_on(folder)  # asked before its files are read: it may end meanwhile
    done, file = is_done(folder), folder / results_json.NAME
    results = results_json.load(file) if file.is_file() else None
    state, reason = "running" if worked_on else "unfinished", ""
    if (folder / ERROR).is_file():
        state, reason = "failed", (folder / ERROR).read_text(encoding="utf-8").strip()
    elif done:
        pruned = results.pruned if results else None
        state, reason = ("pruned", pruned.because) if pruned else ("done", "")
    return Trial(folder.name, folder, settings, state, reason, results)


def _is_worked_on(folder: Path) -> bool:
    if not (folder / LOCK).is_file():
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that cannot be written to
        return False


def is_done(folder: Path) -> bool:
    """Whether a run went through to its end: report.md is what it writes last."""
    return (folder / results_json.NAME).is_file() and (folder / rundir.REPORT).is_file()


def asked(settings: Mapping[str, Any]) -> rundir.Object:
    """The settings that change what attacks find, and not the unlearned model; those that are not set are left out."""
    return {key: value for key, value in rundir.flat(settings).items() if key.startswith(ASKED) and value}


def plan(folder: Path, number: int, settings: Mapping[str, object]) -> None:
    """Note a trial before it starts, so that one that never ends is listed too."""
    (folder / ERROR).unlink(missing_ok=True)
    write_atomic(folder / TRIAL, json.dumps({"number": number, "settings": settings}) + "\n")


def failed(folder: Path, reason: str) -> None:
    """Note why a trial failed, if the disk takes it."""
    with suppress(OSError):
        write_atomic(folder / ERROR, redact(reason) + "\n")


def swept(trials: Sequence[Trial]) -> list[str]:
    """The swept keys, in the order of the command line."""
    return list(dict.fromkeys(key for t in trials for key in t.settings))


def _differences(folders: Sequence[Path]) -> dict[Path, rundir.Object]:
    """Without notes of a sweep: the keys of config.yaml in which the runs differ."""
    return differing({f: rundir.flat(result_settings(rundir.settings(f / rundir.CONFIG))) for f in folders})


def _natural(name: str) -> list[tuple[int, float, str]]:
    """So that ``layer=9`` stands before ``layer=10``."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)]
