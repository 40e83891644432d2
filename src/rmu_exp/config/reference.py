"""The help pages and docs/configuration.md: what the files of ``conf/`` and the declarations of settings say.

Reads sources and YAML only; imports no method, no attack and nothing heavy.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from rmu_exp import settings
from rmu_exp.config.plugins import ATTACKS, PACKAGES, Declared, added_folders, declarations, declared
from rmu_exp.support.errors import UserError
from rmu_exp.support.program import command
from rmu_exp.support.setting import groups_of

WIDTH = 120
PAIRS = ("preset", "method_model")  # chosen by the model and the method
IN_FULL = ("hydra", "model.published", "model.published_settings")  # for who reads a whole group
TRAIN_HEAD = """\
Unlearn hazardous knowledge from a language model by RMU, and measure what is left.

  {0} layer=7 steer=6.5                   the small model that is a package, offline
  {0} model=zephyr_7b data=wmdp           the paper's run
  {0} 'attacks=[probe,relearn]'           does the knowledge survive? attacks=all: every attack
  {0} -m layer=3,5,7 steer=2,6.5,20       a sweep: every combination
"""
JUDGE_HEAD = """\
Judge a model that exists: questions, probes and attacks, beside the model that it was made from.

  {0} unlearned=outputs/mine attacks=all                           a run's folder
  {0} base=DIR unlearned=DIR data=lore 'attacks=[probe,relearn]'   two checkpoints
  {0} model=zephyr_7b unlearned=cais/Zephyr_RMU data=wmdp attacks=all
"""
TAIL = """\
Defaults are those of `{0}` alone; presets of the model and the method change them.
One group, with keys and ranges: {0} --help GROUP. Composed settings: --cfg job. Hydra's: --hydra-help
"""
REFERENCE_HEAD = """\
# Configuration

Made by `python -m rmu_exp.config.reference conf > docs/configuration.md`; a test keeps it so.
`python train.py … --cfg job` shows what a command line composes to. Defaults are those of
`python train.py` alone; presets of the model and the method change them."""


class Row(NamedTuple):
    """One key of the help: its default as it is typed, its choices or range (empty: any value of its type)."""

    key: str
    default: str
    allowed: str
    sentence: str

    @property
    def setting(self) -> str:
        """As it stands on a command line, without the group."""
        return f"{self.key}={self.default}"


def page(conf: Path, program: str, group: str | None = None) -> str:
    """What ``--help`` of ``train`` or ``judge`` prints, or ``--help GROUP``, with what other packages add.

    Raises:
        UserError: no such group, or a package that cannot be imported.
    """
    confs = [conf, *added_folders("conf")]
    pages = _groups(confs, program)
    if group is not None:
        if group not in pages:
            raise UserError(f"--help {group}: no such group, allowed is {', '.join(filter(None, pages))}")
        return "\n".join(_group_page(confs, group, *pages[group])) + "\n"
    typed = command(program)
    lines = [(JUDGE_HEAD if program == "judge" else TRAIN_HEAD).format(typed)]
    for name, (choices, rows) in pages.items():
        if name and name not in (*PAIRS, *IN_FULL):
            listed = f"{name}=… " + " ".join(choices) if choices else name
            lines += textwrap.wrap(listed, WIDTH, subsequent_indent=" " * (len(name) + 3), break_on_hyphens=False)
        rows = [row for row in rows if f"{name}.{row.key}" not in IN_FULL]
        heads = [_cut(f"  {'.' * bool(name)}{row.setting}", 44) for row in rows]
        lines += [_cut(f"{head:<30} {row.sentence}", WIDTH) for head, row in zip(heads, rows, strict=True)]
    return "\n".join([*lines, "", TAIL.format(typed)])


def reference(conf: Path) -> str:
    """docs/configuration.md: every group, choice and key, from the same sources as the help pages."""
    lines = [REFERENCE_HEAD]
    for group, (choices, rows) in _groups([conf], "train").items():
        lines += ["", f"## {group or 'Top level'}"]
        lines += _choice_table(group, choices) if choices else []
        lines += _table(f"{group}." if group else "", rows)
        for name in choices if group in PACKAGES else ():
            prefix, own = _plugin([conf], group, name)
            lines += ["", f"### {group}={name}", *_table(prefix, own)] if own else []
    lines += ["", "## judge.py", "", "The groups data, eval, attacks, model and tracking are those of train.py."]
    pages = _groups([conf], "judge")
    for group in ("", *_only_judged()):
        choices, rows = pages[group]
        lines += ["", f"### {group}"] if group else []
        lines += _choice_table(group, choices) if choices else []
        lines += _table(f"{group}." if group else "", rows)
    return "\n".join(lines) + "\n"


def _only_judged() -> list[str]:
    """The groups that train.py does not have."""
    return [name for name in groups_of(settings.Judge) if name not in groups_of(settings.Run)]


def _choice_table(group: str, choices: Mapping[str, str]) -> list[str]:
    rows = [f"| `{group}={name}` | {text} |" for name, text in choices.items()]
    return ["", "| choice | what |", "|---|---|", *rows]


def _groups(confs: Sequence[Path], program: str) -> dict[str, tuple[dict[str, str], list[Row]]]:
    """Each group's choices with what they are, and its keys; the empty name is the top level.

    Args:
        confs: the project's folder of configurations, and those that others add.
    """
    schema = settings.Judge if program == "judge" else settings.Run
    file, defaults = Path(settings.__file__), _defaults(confs[0], program)
    top = {k: v for k, v in declarations(file, schema.__name__).items() if k not in PACKAGES}
    pages = {"": (dict[str, str](), _rows(top, defaults))}
    for name, inside in groups_of(schema).items():
        values = defaults.get(name)
        pages[name] = (_choices(confs, name), _rows(declarations(file, inside.__name__), values))
        for group, deeper in groups_of(inside).items():
            own = values.get(group) if isinstance(values, dict) else None
            rows = _rows(declarations(file, deeper.__name__), own)
            pages[name][1].extend(row._replace(key=f"{group}.{row.key}") for row in rows)
    folders = {file.parent.relative_to(conf).as_posix() for conf in confs for file in conf.rglob("*.yaml")}
    for name in sorted(folders - {"."}):
        known = program == "train" and name not in _only_judged()
        if name not in pages and (known or name in (ATTACKS, "experiment")):
            pages[name] = (_choices(confs, name), [])
    return pages


def _choices(confs: Sequence[Path], group: str) -> dict[str, str]:
    """Choice to the comment line that its file opens with, if it does."""
    found = {}
    for file in (file for conf in reversed(confs) for file in (conf / group).glob("*.yaml")):
        head = [x for x in file.read_text(encoding="utf-8").splitlines()[:2] if not x.startswith("# @package")]
        found[file.stem] = head[0].removeprefix("#").strip() if head and head[0].startswith("#") else ""
    return dict(sorted(found.items()))


def _defaults(conf: Path, name: str) -> dict[str, object]:
    """The values that the files of the defaults list give, as Hydra composes them; those of ``name`` come last."""
    values: dict[str, object] = {}
    chosen: dict[str, str] = {}
    entries = _yaml(conf / f"{name}.yaml")["defaults"]
    for entry in entries if isinstance(entries, list) else ():
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            group = group.removeprefix("optional ")
            chosen[group] = re.sub(r"\$\{(\w+)\}", lambda found: chosen[found[1]], str(choice))
            file = conf / group / f"{chosen[group]}.yaml"
            if group != "hydra" and file.is_file():
                _merge(values, _unpacked(file, group))
    own = {key: value for key, value in _yaml(conf / f"{name}.yaml").items() if key not in ("defaults", "hydra")}
    return _merge(values, own)


def _unpacked(file: Path, group: str) -> dict[str, object]:
    everywhere = file.read_text(encoding="utf-8").startswith("# @package _global_")
    return _yaml(file) if everywhere else {group: _yaml(file)}


def _merge(values: dict[str, object], more: Mapping[str, object]) -> dict[str, object]:
    for key, value in more.items():
        mine = values.get(key)
        values[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return values


def _yaml(file: Path) -> dict[str, object]:
    return yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def _rows(keys: Mapping[str, Declared], given: object) -> list[Row]:
    """The keys with a sentence of their own; groups have none."""
    found, values = [], given if isinstance(given, dict) else {}
    for key, setting in keys.items():
        default = values.get(key, setting.default)
        allowed = "true, false" if setting.kind.startswith("bool") else str(setting.allowed)
        typed = "" if default is dataclasses.MISSING else _typed(default)
        found.append(Row(key, typed, "" if allowed == "a number" else allowed, setting.sentence))
    return found


def _typed(value: object) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(_typed, value))}]"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _plugin(confs: Sequence[Path], group: str, name: str) -> tuple[str, list[Row]]:
    """The keys of a method or an attack, with the values of its file, and what stands before them."""
    file = next(file for conf in confs if (file := conf / group / f"{name}.yaml").is_file())
    values = _unpacked(file, group).get(group)
    if group == ATTACKS:
        values = values.get(name) if isinstance(values, dict) else {}
    return (f"{group}.{name}." if group == ATTACKS else f"{group}."), _rows(declared(group, name), values)


def _group_page(confs: Sequence[Path], group: str, choices: Mapping[str, str], rows: list[Row]) -> Iterator[str]:
    """Every choice and key of one group."""
    for name, text in choices.items():
        yield from _wrapped(f"{group}={name}", text)
        if group in PACKAGES:
            yield from _explained(*_plugin(confs, group, name))
    yield from [""] if choices and rows else []
    yield from _explained(f"{group}.", rows)


def _explained(prefix: str, rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield from _wrapped(f"  {prefix}{row.setting}", row.sentence + f" [{row.allowed}]" * bool(row.allowed))


def _wrapped(head: str, text: str) -> list[str]:
    """A head and its text, broken at the width, with the text in a column of its own."""
    lines = [" " * 40 + line for line in textwrap.wrap(text, WIDTH - 40, break_on_hyphens=False)] or [""]
    return [head, *lines] if len(head) > 38 else [f"{head:<40}{lines[0].lstrip()}", *lines[1:]]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _table(prefix: str, rows: list[Row]) -> list[str]:
    lines = ["", "| key | default | allowed | what |", "|---|---|---|---|"] if rows else []
    return lines + [
        f"| `{prefix}{row.key}` | {f'`{row.default}`' if row.default else ''} | {row.allowed} | {row.sentence} |"
        for row in rows
    ]


if __name__ == "__main__":
    sys.stdout.write(reference(Path(sys.argv[1])))
