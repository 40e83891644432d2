"""Methods and attacks by name: a module with a dataclass ``Settings``, and a file in ``conf/`` that holds the values.

There is no list of them. ``method=npo`` is ``unlearn/methods/npo.py`` and ``conf/method/npo.yaml``,
``attacks=[relearn]`` is ``attacks/relearn.py`` and ``conf/attacks/relearn.yaml``. What a file declares is read from its
source, so that help imports no torch. Checks no value: :mod:`rmu_exp.config.parse` does.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import UserError
from rmu_exp.support.setting import Allowed

METHODS, ATTACKS = "method", "attacks"  # the groups of conf/
PACKAGES = {METHODS: "rmu_exp.unlearn.methods", ATTACKS: "rmu_exp.attacks"}
SETTINGS = "Settings"


def files(group: str) -> dict[str, Path]:
    """Name to file of the group's modules, none of them imported."""
    folders = importlib.import_module(PACKAGES[group]).__path__
    found = [file for folder in folders for file in Path(folder).glob("*.py")]
    marked = f"\nclass {SETTINGS}"
    return {file.stem: file for file in sorted(found) if marked in file.read_text(encoding="utf-8")}


def module(group: str, name: str) -> Any:
    """A method's or an attack's module. Raises UserError: there is none of this name."""
    known = files(group)
    if name not in known:
        key = "method.name" if group == METHODS else group
        raise UserError(f"{key}: got {name!r}, allowed is {', '.join(known)}")
    return importlib.import_module(f"{PACKAGES[group]}.{name}")


@cache
def schema(group: str, name: str) -> type:
    """The dataclass of the settings, for a method with its ``name`` as one more field. Raises as :func:`module`."""
    own: type = module(group, name).Settings
    if group == ATTACKS:
        return own
    return make_dataclass("Method", [("name", str, field(default=name))], bases=(own,))


@dataclass(frozen=True)
class Declared:
    """A setting as its source declares it; without a default (MISSING of dataclasses) a file in ``conf/`` holds it."""

    sentence: str
    kind: str  # its type, as written
    default: object
    allowed: Allowed


def declared(group: str, name: str) -> dict[str, Declared]:
    """The settings of a method or an attack; empty when there is no such module."""
    file = files(group).get(name)
    return declarations(file, SETTINGS) if file else {}


def declarations(file: Path, name: str) -> dict[str, Declared]:
    """The settings that a class declares, and those of its bases here or in a file beside it (``rmu.Family``).

    Nothing is imported.
    """
    classes = _classes(file)
    found: dict[str, Declared] = {}
    for base in classes[name].bases:
        match base:
            case ast.Name(id=own) if own in classes:
                found |= declarations(file, own)
            case ast.Attribute(value=ast.Name(id=other), attr=its):
                found |= declarations(file.with_name(f"{other}.py"), its)
    for item, after in pairwise(classes[name].body):
        match item, after:
            case (
                ast.AnnAssign(target=ast.Name(id=key), annotation=kind, value=ast.Call() as call),
                ast.Expr(value=ast.Constant(value=str(sentence))),
            ):
                given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                given.pop("changes_result", None)
                literal = call.args and not isinstance(call.args[0], ast.Name)
                default = ast.literal_eval(call.args[0]) if literal else dataclasses.MISSING
                found[key] = Declared(sentence, ast.unparse(kind), default, Allowed(**given))
    return found


@cache
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def settings_of(method: Any) -> Any:
    """A method's own ``Settings``, without its name, from a run's ``method``."""
    values = dataclasses.asdict(method)
    return module(METHODS, values.pop("name")).Settings(**values)
