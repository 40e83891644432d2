"""Methods and attacks by name: a module with a dataclass ``Settings``, and a file in ``conf/`` that holds the values.

There is no list of them. ``method=npo`` is ``unlearning/methods/npo.py`` and ``conf/method/npo.yaml``,
``attacks=[relearn]`` is ``attacks/relearn.py`` and ``conf/attacks/relearn.yaml``. Other distributions add theirs by
entry points of the groups ``rmu_exp.method``, ``rmu_exp.attacks`` and ``rmu_exp.conf``, each naming a package. What a
file declares is read from its source, so that help imports no torch. Checks no value: :mod:`rmu_exp.config.parse` does.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import UserError, first_line
from rmu_exp.support.setting import Allowed

METHODS, ATTACKS = "method", "attacks"  # the groups of conf/
PACKAGES = {METHODS: "rmu_exp.unlearning.methods", ATTACKS: "rmu_exp.attacks"}
SETTINGS = "Settings"


def files(group: str) -> dict[str, Path]:
    """Name to file of the group's modules, none of them imported."""
    return {name: file for name, (_, file) in _found(group).items()}


def _found(group: str) -> dict[str, tuple[str, Path]]:
    """Name to package and file; what the project has comes before what others add."""
    marked, found = f"\nclass {SETTINGS}", dict[str, tuple[str, Path]]()
    for package in (PACKAGES[group], *added(group)):
        folders = _imported(package, f"entry point of rmu_exp.{group}").__path__
        for file in sorted(file for folder in folders for file in Path(folder).glob("*.py")):
            if marked in file.read_text(encoding="utf-8"):
                found.setdefault(file.stem, (package, file))
    return dict(sorted(found.items()))


@cache
def added(group: str) -> list[str]:
    """The packages that other distributions name in an entry point of the group ``rmu_exp.GROUP``."""
    return sorted({point.value for point in entry_points(group=f"rmu_exp.{group}")})


def added_folders(group: str) -> list[Path]:
    """Where those packages lie. Raises UserError: one cannot be imported."""
    return [Path(path) for name in added(group) for path in _imported(name, f"entry point of rmu_exp.{group}").__path__]


def _imported(name: str, whose: str) -> Any:
    """A package or module. Raises UserError: it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        if name.startswith("rmu_exp."):
            raise
        raise UserError(f"{whose}: {name} cannot be imported ({type(error).__name__}: {first_line(error)})") from error


def module(group: str, name: str) -> Any:
    """A method's or an attack's module. Raises UserError: there is none of this name."""
    known = _found(group)
    if name not in known:
        key = "method.name" if group == METHODS else group
        raise UserError(f"{key}: got {name!r}, allowed is {', '.join(known)}")
    return _imported(f"{known[name][0]}.{name}", f"{group}={name}")


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
