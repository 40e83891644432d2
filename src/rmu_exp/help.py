"""The help page, made from what is there: conf/'s files and the sentences under the Run's fields."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path

from rmu_exp import run
from rmu_exp.unlearn import catalog

HEAD = """\
Unlearn hazardous knowledge from a language model by RMU, and judge what is left.

  python train.py layer=7 steer=6.5                   the small model that ships, offline
  python train.py model=zephyr_7b data=wmdp           the paper's run
  python train.py -m layer=3,5,7 steer=2,6.5,20       a sweep: every combination
  python train.py … --cfg job                         show the composed run, do nothing
"""


@cache
def sentences(schema: type) -> dict[str, str]:
    """The string under each field of a dataclass of :mod:`rmu_exp.run`."""
    tree = ast.parse(inspect.getsource(schema)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return catalog.documented(tree)


def groups(conf: Path) -> dict[str, dict[str, str]]:
    """Config group to choice to the comment line that the choice's file opens with."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        if group != ".":
            head = file.read_text(encoding="utf-8").splitlines()[:2]
            first = next((line for line in head if not line.startswith("# @package")), "")
            found.setdefault(group, {})[file.stem] = first.removeprefix("#").strip()
    return found


def schemas() -> dict[str, type]:
    """Name of a group of keys (empty for the top level) to its dataclass."""
    found: dict[str, type] = {"": run.Run}
    for f in dataclasses.fields(run.Run):
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            found[f.name] = f.default_factory
    return found


def page(conf: Path) -> str:
    """What ``--help`` prints."""
    lines = [*HEAD.splitlines(), "", "Keys"]
    nested = schemas()
    top = {k: v for k, v in sentences(run.Run).items() if k not in nested and k != "method"}
    lines += [f"  {key:<10} {text}" for key, text in top.items()]
    lines += ["", "Config groups (GROUP=CHOICE), and the keys inside them (GROUP.KEY=VALUE)"]
    for group, choices in groups(conf).items():
        lines.append(f"  {group}")
        for name, text in choices.items():
            lines.append(f"    {group}={name:<22} {text}")
            if group == "method":
                lines += [f"      .{key:<18} {text}" for key, text in catalog.sentences(name).items()]
        if group in nested:
            lines += [f"      .{key:<18} {text}" for key, text in sentences(nested[group]).items()]
    for group, schema in (("train", run.Train), ("share", run.Share)):
        lines.append(f"  {group}")
        lines += [f"      .{key:<18} {text}" for key, text in sentences(schema).items()]
    lines += ["", "Hydra's own options: python train.py --hydra-help", ""]
    return "\n".join(part for line in lines for part in _wrapped(line))


def _wrapped(line: str, width: int = 120) -> list[str]:
    """A long line broken, with what follows under the last column."""
    if len(line) <= width:
        return [line]
    column = max((at.end() for at in re.finditer(r" {2,}", line[:40])), default=0)
    return textwrap.wrap(line, width, subsequent_indent=" " * column, break_on_hyphens=False)


def reference(conf: Path) -> str:
    """docs/configuration.md: every group, choice and key, from the same sources as the help page."""
    nested = schemas()
    lines = [
        "# Configuration",
        "",
        "Made by `python -m rmu_exp.help conf > docs/configuration.md`; a test keeps it so.",
        "`python train.py … --cfg job` shows what a command line composes to.",
        "",
        "## Top level",
        "",
        "| key | what |",
        "|---|---|",
        *(f"| `{key}` | {text} |" for key, text in sentences(run.Run).items() if key not in {*nested, "method"}),
    ]
    for group, choices in groups(conf).items():
        lines += ["", f"## {group}", "", "| choice | what |", "|---|---|"]
        lines += [f"| `{group}={name}` | {text} |" for name, text in choices.items()]
        if group == "method":
            lines += ["", "| method | key | what |", "|---|---|---|"]
            for name in choices:
                lines += [f"| {name} | `method.{key}` | {text} |" for key, text in catalog.sentences(name).items()]
        if group in nested:
            lines += ["", "| key | what |", "|---|---|"]
            lines += [f"| `{group}.{key}` | {text} |" for key, text in sentences(nested[group]).items()]
    for group, schema in (("train", run.Train), ("share", run.Share), ("model.preset", run.Preset)):
        lines += ["", f"## {group}", "", "| key | what |", "|---|---|"]
        lines += [f"| `{group}.{key}` | {text} |" for key, text in sentences(schema).items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference(Path(sys.argv[1])))
