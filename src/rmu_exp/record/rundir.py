"""The folder of a run or a judgement: its files' names, and how commands read what they did not write.

What is damaged is reported in one line that names the file. Nothing here writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import JsonValue

from rmu_exp.config.parse import current, made, stored
from rmu_exp.record import results as results_json
from rmu_exp.record.results import Results, State
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.setting import flat as flat

CONFIG, DELTA, METRICS, ANSWERS = "config.yaml", "delta.safetensors", "metrics.jsonl", "answers.jsonl"
REPORT, PAGE, MODEL, LOG, SAMPLES = "report.md", "report.html", "model", "run.log", "samples.jsonl"
SWEEP, WORST_CASE = "sweep.yaml", "worst_case.json"  # of any sweep, and of a search for the worst attack
STATE = "state"  # the folder of what unfinished stages keep; gone when the run is done
WHO: tuple[State, State] = ("base", "unlearned")
Object = dict[str, JsonValue]
T = TypeVar("T")


@dataclass(frozen=True)
class TaskAnswers:
    """One task's answers: the right option of each question, and the ones that base and unlearned chose."""

    target: list[int] = field(default_factory=list)
    base: list[int] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)

    def chosen(self, who: State) -> list[int]:
        """The option that a model chose for each question."""
        return self.base if who == "base" else self.unlearned

    def correct(self, who: State) -> list[int]:
        """1 or 0 for each question."""
        return [int(chosen == right) for chosen, right in zip(self.chosen(who), self.target, strict=True)]


@dataclass(frozen=True)
class RunDir:
    """A run's folder."""

    folder: Path
    config: Object
    judged: bool
    digest: str  # of the settings, as config.yaml says
    command: str  # what it was first started by; empty: config.yaml does not say

    @cached_property
    def results(self) -> Results:
        """The content of results.json. Raises UserError when it is damaged or missing."""
        return results_json.load(self.folder / results_json.NAME)

    @cached_property
    def settings(self) -> Run | Judge:
        """The settings as a checked object. Raises UserError: they are not settings of this version."""
        try:
            return stored(self.config)
        except UserError as error:
            raise UserError(f"{self.folder / CONFIG}: {error}") from error

    def part(self, key: str, schema: type[T]) -> T:
        """One group of the settings, as this version has it: keys that it does not know are left out.

        Raises UserError: the group is not there, or holds a wrong type.
        """
        values = current(self.config).get(key)
        if not isinstance(values, dict):
            raise UserError(f"{self.folder / CONFIG}: damaged (no {key} in it)")
        known = getattr(schema, "__dataclass_fields__", {})
        try:
            return made(schema, {k: v for k, v in values.items() if k in known}, f"{key}.")
        except UserError as error:
            raise UserError(f"{self.folder / CONFIG}: {error}") from error

    @cached_property
    def answers(self) -> dict[str, TaskAnswers]:
        """Task to its answers; empty when no questions were asked. Raises UserError: answers.jsonl is damaged."""
        file, found = self.folder / ANSWERS, dict[str, TaskAnswers]()
        if not file.is_file():
            return found
        for number, line in enumerate(lines(file), 1):
            task, question = line.get("task"), line.get("question")
            row = [value for key in ("target", *WHO) if isinstance(value := line.get(key), int)]
            mine = found.setdefault(str(task), TaskAnswers())
            if len(row) < 3 or question != len(mine.target):
                raise UserError(
                    f"{file}: damaged (line {number} is no answer to question {len(mine.target)} of {task})"
                )
            for values, value in zip((mine.target, mine.base, mine.unlearned), row, strict=True):
                values.append(value)
        return found

    def correct(self, name: str, who: State) -> list[int] | None:
        """1 or 0 for each question of a task or group; None: its answers are not all there."""
        row = self.results.qa.get(name)
        tasks = row.tasks if row and row.tasks is not None else [name]
        if not all(task in self.answers for task in tasks):
            return None
        return [c for task in tasks for c in self.answers[task].correct(who)]

    @property
    def metrics(self) -> list[Object]:
        """metrics.jsonl, one line per step; empty when there is none. Raises UserError when it is damaged."""
        file = self.folder / METRICS
        return list(lines(file)) if file.is_file() else []


def read(folder: Path) -> RunDir:
    """The folder of a run that has results.

    Raises UserError: it is none, or its settings or results are missing or damaged.
    """
    for file in (folder / CONFIG, folder / results_json.NAME):
        if not file.is_file():
            raise UserError(f"{folder}: no {file.name} in it; give the folder of a run or a judgement that has results")
    found = of(folder / CONFIG)
    _ = found.results
    return found


def of(config: Path) -> RunDir:
    """A run's folder by its config.yaml. Raises UserError when that is damaged."""
    values = settings(config)
    digest, command = values.pop("digest", None), values.pop("command", None)
    kind = values.pop("kind", "judge" if "unlearned" in values else "train")  # schema 1 had no kind
    return RunDir(config.parent, values, kind == "judge", str(digest), command if isinstance(command, str) else "")


def settings(file: Path) -> Object:
    """The content of a config.yaml. Raises UserError when it is damaged."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({_reason(error)}); remove it") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{file}: damaged (no mapping in it); remove it")
    return values


def lines(file: Path) -> Iterator[Object]:
    """The objects in a file of JSON lines. Raises UserError at the first line that is none."""
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            value = json.loads(line)
            if not isinstance(value, dict):
                raise UserError(f"{file}: damaged (line {number} is no object)")
            yield value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({_reason(error)})") from error


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The objects in a file that a process may be writing, or was cut off in: other lines are left out."""
    found = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [value for value in found if isinstance(value, dict)]


def _reason(error: Exception) -> str:
    return " ".join((getattr(error, "strerror", None) or first_line(error)).split())
