"""Which methods there are, and what settings each knows: read from their files, without importing them.

A method's file imports torch; a command line with a mistyped setting is refused before that. So the ``Settings``
dataclass is taken out of the file's source and made here; besides the built-in names it may use ``dataclass``,
``field``, ``Any`` and this module's checks. Light to import.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import UserError

FOLDER = Path(__file__).parents[1] / "unlearn" / "methods"
SETTINGS = "Settings"


def names() -> list[str]:
    """The methods' names: their files'."""
    return sorted(file.stem for file in FOLDER.glob("[!_]*.py"))


@cache
def settings(name: str) -> type:
    """The dataclass of a method's settings, with the method's ``name`` as one more field."""
    scope: dict[str, Any] = {"__name__": __name__, "dataclass": dataclass, "field": field, "Any": Any}
    scope |= {check.__name__: check for check in (at_least, above, one_of)}
    exec(compile(ast.Module([_class(name)], []), str(FOLDER / f"{name}.py"), "exec"), scope)
    own = scope[SETTINGS]
    # ``name`` would follow fields with defaults, so it has one; the file gives the values, conf/ overrides them.
    return make_dataclass("Method", [("name", str, field(default=name))], bases=(own,))


@cache
def sentences(name: str) -> dict[str, str]:
    """The string under each setting of a method."""
    return documented(_class(name))


def documented(node: ast.ClassDef) -> dict[str, str]:
    """The string under each field of a class."""
    found: dict[str, str] = {}
    for item, after in zip(node.body, node.body[1:], strict=False):
        match item, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = text
    return found


def _class(name: str) -> ast.ClassDef:
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == SETTINGS)


def at_least(settings: Any, **least: float) -> None:
    """Refuse a setting below its least value, or one in a list."""
    for key, bound in least.items():
        value = getattr(settings, key)
        if any(not v >= bound for v in (value if isinstance(value, list) else [value])):
            raise UserError(f"method.{key}: got {value}, allowed is {bound} or more")


def above(settings: Any, **floor: float) -> None:
    """Refuse a setting that is not above a value."""
    for key, bound in floor.items():
        if not getattr(settings, key) > bound:
            raise UserError(f"method.{key}: got {getattr(settings, key)}, allowed is a number > {bound}")


def one_of(settings: Any, **allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the allowed words."""
    for key, words in allowed.items():
        if getattr(settings, key) not in words:
            raise UserError(f"method.{key}: got {getattr(settings, key)!r}, allowed is {', '.join(words)}")
