"""The help page, made from what is there: conf/'s files and the sentences under the Run's fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

from rmu_exp import settings
from rmu_exp.config import attacks, methods
from rmu_exp.config.docstrings import fields_of

OWN_KEYS = ("attacks", "method")  # their choices have keys of their own

HEAD = """\
Unlearn hazardous knowledge from a language model by RMU, and judge what is left.

  python train.py layer=7 steer=6.5                   the small model that ships, offline
  python train.py model=zephyr_7b data=wmdp           the paper's run
  python train.py 'attacks=[probe,relearn]'           does the knowledge survive? attacks=all: every attack
  python train.py -m layer=3,5,7 steer=2,6.5,20       a sweep: every combination
  python train.py … --cfg job                         show the composed run, do nothing
"""


@cache
def sentences(schema: type) -> dict[str, str]:
    """The string under each field of a dataclass of :mod:`rmu_exp.settings`."""
    return fields_of(inspect.getsource(schema), schema.__name__)


def attack_keys(group: str, name: str) -> dict[str, str]:
    """The keys of one attack with their sentences; empty for other groups, whose choices share their keys."""
    return attacks.sentences(name) if group == "attacks" else {}


def groups(conf: Path) -> dict[str, dict[str, str]]:
    """Config group to choice to the comment line that the choice's file opens with."""
    found: dict[str, dict[str, str]] = {}
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        if group != ".":
            head = file.read_text(encoding="utf-8").splitlines()[:2]
            first = next((line for line in head if not line.startswith("# @package")), "")
            found.setdefault(group, {})[file.stem] = first.removeprefix("#").strip()
    if "attacks" in found:
        found["attacks"][attacks.ALL] = "All of them, in this order."
    return found


JUDGE_HEAD = """\
Judge a model that exists: questions, probes and attacks, beside the model that it was made from.

  python judge.py unlearned=outputs/mine attacks=all                           a run's folder
  python judge.py base=DIR unlearned=DIR data=lore 'attacks=[probe,relearn]'   two checkpoints
  python judge.py model=zephyr_7b unlearned=cais/Zephyr_RMU data=wmdp attacks=all
"""
PROGRAMS: dict[str, tuple[str, str, Any]] = {
    "train": ("train.py", HEAD, settings.Run),
    "judge": ("judge.py", JUDGE_HEAD, settings.Judge),
}


def schemas(schema: Any = settings.Run) -> dict[str, type]:
    """Name of a group of keys (empty for the top level) to its dataclass."""
    found: dict[str, type] = {"": schema}
    for f in dataclasses.fields(schema):
        if isinstance(f.default_factory, type) and dataclasses.is_dataclass(f.default_factory):
            found[f.name] = f.default_factory
    return found


def page(conf: Path, name: str = "train") -> str:
    """What ``--help`` prints, for the program that composes the configuration ``name``."""
    program, head, schema = PROGRAMS[name]
    lines = [*head.splitlines(), "", "Keys"]
    nested = schemas(schema)
    top = {k: v for k, v in sentences(schema).items() if k not in {*nested, *OWN_KEYS}}
    lines += [f"  {key:<10} {text}" for key, text in top.items()]
    lines += ["", "Config groups (GROUP=CHOICE), and the keys inside them (GROUP.KEY=VALUE)"]
    for group, choices in groups(conf).items():
        if schema is not settings.Run and group not in {*nested, "attacks"}:
            continue
        lines.append(f"  {group}")
        for name, text in choices.items():
            lines.append(f"    {group}={name:<22} {text}")
            own = methods.sentences(name) if group == "method" else {}
            own |= {f"{name}.{key}": text for key, text in attack_keys(group, name).items()}
            lines += [f"      .{key:<18} {text}" for key, text in own.items()]
        if group in nested:
            lines += [f"      .{key:<18} {text}" for key, text in sentences(nested[group]).items()]
    for group in ("train", "share"):
        if group in nested:
            lines.append(f"  {group}")
            lines += [f"      .{key:<18} {text}" for key, text in sentences(nested[group]).items()]
    lines += ["", f"Hydra's own options: python {program} --hydra-help", ""]
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
        "Made by `python -m rmu_exp.config.reference conf > docs/configuration.md`; a test keeps it so.",
        "`python train.py … --cfg job` shows what a command line composes to.",
        "",
        "## Top level",
        "",
        "| key | what |",
        "|---|---|",
        *(f"| `{key}` | {text} |" for key, text in sentences(settings.Run).items() if key not in {*nested, *OWN_KEYS}),
    ]
    for group, choices in groups(conf).items():
        lines += ["", f"## {group}", "", "| choice | what |", "|---|---|"]
        lines += [f"| `{group}={name}` | {text} |" for name, text in choices.items()]
        if group == "method":
            lines += ["", "| method | key | what |", "|---|---|---|"]
            for name in choices:
                lines += [f"| {name} | `method.{key}` | {text} |" for key, text in methods.sentences(name).items()]
        if group in nested:
            lines += ["", "| key | what |", "|---|---|"]
            lines += [f"| `{group}.{key}` | {text} |" for key, text in sentences(nested[group]).items()]
        for name in choices:
            if keys := attack_keys(group, name):
                lines += ["", f"### {group}.{name}", "", "| key | what |", "|---|---|"]
                lines += [f"| `{group}.{name}.{key}` | {text} |" for key, text in keys.items()]
    for group, schema in (("train", settings.Train), ("share", settings.Share), ("model.preset", settings.Preset)):
        lines += ["", f"## {group}", "", "| key | what |", "|---|---|"]
        lines += [f"| `{group}.{key}` | {text} |" for key, text in sentences(schema).items()]
    lines += ["", "## judge.py", "", "The groups data, eval, attacks, model and tracking are those of train.py.", ""]
    own = {k: v for k, v in sentences(settings.Judge).items() if k not in {*schemas(settings.Judge), *OWN_KEYS}}
    lines += ["| key | what |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in own.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(reference(Path(sys.argv[1])))
