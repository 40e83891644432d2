"""Worlds that ship with the project: texts to forget and to retain, and questions about them.

A world is ``worlds/NAME.py`` (or a package) and ``conf/data/NAME.yaml``. Its module has ``texts(name) -> list[str]``,
which raises KeyError with what there is: ``NAME:name`` is then a source of texts. Questions are either
``questions() -> {task: [{question, choices, answer, fact}, …]}``, asked without letters, or a folder ``tasks/`` of
lm-eval YAML in a package. Checkpoints in folders of a package are models: ``NAME`` is ``weights/``, ``NAME:folder``
is another. ``LEVELS`` and ``level(task, doc)`` say how far questions are from what was to be forgotten.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One question: ``question``, ``choices``, ``answer`` (index of the right choice), ``fact`` (what it asks about)."""


def names() -> list[str]:
    """The worlds that there are."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find(name: str) -> Any:
    """A world's module by its name, or by that of a source, task or model of it; None: there is none."""
    world = name.partition(":")[0].partition("_")[0]
    return importlib.import_module(f"{__name__}.{world}") if world in names() else None


def questions(task: str) -> list[Row] | None:
    """The questions of a task that a world declares in Python; None: it is not one."""
    declared = getattr(find(task), "questions", None)
    return declared().get(task) if declared else None


def task_folders() -> list[Path]:
    """The folders of lm-eval YAML."""
    return [folder for path in __path__ for folder in sorted(Path(path).glob("*/tasks"))]


def checkpoint(model: str) -> Path | None:
    """The folder of a model that ships with a world; None: it is none of them."""
    name, _, folder = model.partition(":")
    found = [Path(path) / name / (folder or "weights") for path in __path__]
    return next((place for place in found if name in names() and (place / "config.json").is_file()), None)


def levels(task: str) -> tuple[str, ...]:
    """The distances from what was to be forgotten that a task's world knows, nearest first; none: it knows none."""
    return tuple(getattr(find(task), "LEVELS", ()))


def level(task: str, doc: Mapping[str, Any]) -> str | None:
    """The one of :func:`levels` that a question of a task has; None: it has none."""
    of = getattr(find(task), "level", None)
    return str(of(task, doc)) if of else None
