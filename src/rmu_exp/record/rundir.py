"""The folder of a run or a judgement, as read by commands that did not write it. Nothing here writes.

What is damaged is told in one line that names the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rmu_exp.config.parse import stored
from rmu_exp.evaluate import statistics
from rmu_exp.model.delta import Delta
from rmu_exp.record import results as results_json
from rmu_exp.record.results import Accuracy, Results, State
from rmu_exp.settings import Judge, Run
from rmu_exp.support.errors import UserError

WHO: tuple[State, ...] = ("base", "unlearned")


@dataclass(frozen=True)
class TaskAnswers:
    """One task's answers: the right option of each question, and the ones that base and unlearned chose."""

    target: list[int] = field(default_factory=list)
    base: list[int] = field(default_factory=list)
    unlearned: list[int] = field(default_factory=list)

    def correct(self, who: str) -> list[int]:
        """1 or 0 for each question."""
        return [int(chosen == right) for chosen, right in zip(getattr(self, who), self.target, strict=True)]


@dataclass(frozen=True)
class RunDir:
    """A run's folder.

    Attributes:
        config: the settings in config.yaml.
        digest: of the settings, as config.yaml says.
    """

    folder: Path
    config: dict[str, Any]
    digest: str

    @cached_property
    def results(self) -> Results:
        """The content of results.json.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return results_json.load(self.folder / results_json.NAME)

    @property
    def judged(self) -> bool:
        """Whether it is a judgement of a model that somebody else unlearned."""
        return "unlearned" in self.config

    @cached_property
    def settings(self) -> Run | Judge:
        """The settings as a checked object.

        Raises:
            UserError: they are not settings of this version.
        """
        try:
            return stored(self.config)
        except UserError as error:
            raise UserError(f"{self.folder / 'config.yaml'}: {error}") from error

    @cached_property
    def delta(self) -> Delta:
        """What unlearning changed; of a judgement, of what was judged.

        Raises:
            UserError: there is none, or it is damaged.
        """
        return Delta.load(self.folder / "delta.safetensors")

    @cached_property
    def answers(self) -> dict[str, TaskAnswers]:
        """Task to its answers; empty when no questions were asked.

        Raises:
            UserError: answers.jsonl is damaged.
        """
        file, found = self.folder / "answers.jsonl", dict[str, TaskAnswers]()
        if not file.is_file():
            return found
        for number, line in enumerate(lines(file), 1):
            task, question = line.get("task"), line.get("question")
            row = [line.get(key) for key in ("target", *WHO)]
            mine = found.setdefault(str(task), TaskAnswers())
            if not all(isinstance(v, int) for v in row) or question != len(mine.target):
                raise UserError(
                    f"{file}: damaged (line {number} is no answer to question {len(mine.target)} of {task})"
                )
            for values, value in zip((mine.target, mine.base, mine.unlearned), row, strict=True):
                values.append(value)  # type: ignore[arg-type]
        return found

    def correct(self, name: str, who: str) -> list[int] | None:
        """1 or 0 for each question of a task or group; None: its answers are not all there."""
        row = self.results.qa.get(name)
        tasks = row.tasks if row and row.tasks is not None else [name]
        if not all(task in self.answers for task in tasks):
            return None
        return [c for task in tasks for c in self.answers[task].correct(who)]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl, a line a step; empty when there is none. Raises UserError when it is damaged."""
        file = self.folder / "metrics.jsonl"
        return list(lines(file)) if file.is_file() else []


def read(folder: Path) -> RunDir:
    """A run's folder.

    Raises:
        UserError: it is none, or its settings or results are missing or damaged.
    """
    config = folder / "config.yaml"
    for file in (config, folder / results_json.NAME):
        if not file.is_file():
            raise UserError(f"{folder}: no {file.name} in it; give the folder of a run or a judgement that has results")
    found = of(config)
    _ = found.results
    return found


def of(config: Path) -> RunDir:
    """A run's folder by its config.yaml; it may have no results yet. Raises UserError when config.yaml is damaged."""
    values = settings(config)
    digest = values.pop("digest", None)
    values.pop("command", None)
    return RunDir(config.parent, values, str(digest))


def settings(file: Path) -> dict[str, Any]:
    """The content of a config.yaml. Raises UserError when it is damaged."""
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({reason(error)}); remove it") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{file}: damaged (no mapping in it); remove it")
    return values


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file of JSON lines. Raises UserError at the first line that is none."""
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            value = json.loads(line)
            if not isinstance(value, dict):
                raise UserError(f"{file}: damaged (line {number} is no object)")
            yield value
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({reason(error)})") from error


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def reason(error: Exception) -> str:
    """An error of reading a file, in one line."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return " ".join((str(error).splitlines() or [""])[0].split()) or type(error).__name__


def close(a: float, b: float) -> bool:
    """Whether two numbers are the same but for the last digits, which another library's version may round otherwise."""
    return a == b or abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-300)


def summary_differs(given: Accuracy, correct: list[int]) -> str | None:
    """Where an accuracy with its error and interval is not that of these answers; None: nowhere."""
    if not correct:
        return "no answers"
    made = statistics.summary(correct)
    for key in ("n", "acc", "stderr"):
        if not close(getattr(given, key), made[key]):
            return f"{key} {getattr(given, key):g}, the answers give {made[key]:g}"
    if not all(map(close, given.ci95, made["ci95"])):
        return f"ci95 {list(given.ci95)}, the answers give {made['ci95']}"
    return None
