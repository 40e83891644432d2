"""Questions of one's own from a .csv, .jsonl or .parquet file, as a task of lm-eval: options scored by likelihood.

A row is a ``question``, its options and the right one. The options are a list ``choices`` (``options`` too), or columns
``option1``, ``option2``, … or ``A``, ``B``, …; the ``answer`` is an option's place counted from 0, its letter, its
column or its text. ``fact`` and ``topic`` may say what it asks about. What cannot be asked is refused by file and line.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import UserError, first_line

ENDINGS = (".csv", ".jsonl", ".parquet")
LISTS = ("choices", "options")
COLUMN = re.compile(r"(?:(?:option|choice)[ _]?)(\d+|[a-z])|([a-z])")
OPTIONAL = ("fact", "topic")
Row = dict[str, Any]


def is_file(entry: str) -> bool:
    """Whether an entry of eval.tasks is a file of questions."""
    return entry.lower().endswith(ENDINGS)


def task_name(entry: str) -> str:
    """What the task of a file is called: the file's name without its ending, in letters that lm-eval takes."""
    return re.sub(r"[^\w.-]", "_", Path(entry).stem)


def read(entry: str) -> list[Row]:
    """The questions of a file: ``question``, ``choices``, ``answer`` (a place), ``fact`` and ``topic`` where given.

    Raises UserError: the file cannot be read, has no questions, or a row that cannot be asked.
    """
    file = Path(entry).expanduser()
    try:
        lines = list(_lines(file))
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 (at byte {error.start}); save it as UTF-8") from error
    except Exception as error:  # csv, json, pyarrow and the file system have errors of their own
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{file}: cannot be read ({reason})") from error
    if not lines:
        raise UserError(f"{file}: no questions in it; give a row for each")
    lowered = [_lowered(f"{file}:{line}", values) for line, values in lines]
    rows = [_question(f"{file}:{line}", values) for (line, _), values in zip(lines, lowered, strict=True)]
    if all(_counts_from_1(values, row["choices"]) for values, row in zip(lowered, rows, strict=True)):
        raise UserError(
            f"{file}: every answer is a number and none is 0, but places count from 0 and columns from 1; "
            "give letters, texts, or columns such as option1"
        )
    given = {key for row in rows for key in row}
    return [{key: row.get(key, "") for key in row | dict.fromkeys(given)} for row in rows]


def _lines(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with their lines."""
    ending = file.suffix.lower()
    if ending == ".parquet":
        import pyarrow.parquet

        yield from enumerate(pyarrow.parquet.read_table(file).to_pylist(), 1)
    elif ending == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            try:
                names = [name for name in reader.fieldnames or () if name.strip()]
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise UserError(f"{file}:1: two columns are called {twice!r}; rename one")
                for values in reader:
                    if None in values:
                        raise UserError(
                            f"{file}:{reader.line_num}: more fields than the header; quote those with commas"
                        )
                    yield reader.line_num, values
            except csv.Error as error:
                raise UserError(f"{file}:{reader.line_num + 1}: not CSV ({first_line(error)})") from error
    else:
        for line, text in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            if text.strip():
                try:
                    values = json.loads(text)
                except ValueError as error:
                    raise UserError(f"{file}:{line}: not JSON ({first_line(error)})") from error
                if not isinstance(values, dict):
                    raise UserError(f"{file}:{line}: got {text.strip()[:40]!r}, allowed is an object per line")
                yield line, values


def _lowered(where: str, values: Mapping[str, Any]) -> Row:
    """A row by the names of its columns in small letters."""
    names = [str(key).strip().lower() for key in values]
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise UserError(f"{where}: two columns are called {twice!r}; rename one")
    if "question" not in names:
        given = ", ".join(names)[:80]
        raise UserError(f"{where}: no question among its columns ({given}); a row needs question, options and answer")
    return dict(zip(names, values.values(), strict=True))


def _counts_from_1(values: Row, options: list[str]) -> bool:
    """Whether a row's answer is a place above 0, and its columns of options count from 1."""
    answer, columns = str(values.get("answer")).strip(), _columns(values)
    return bool(columns) and columns[0].endswith("1") and answer.isdigit() and answer not in ("0", *options)


def _question(where: str, values: Mapping[str, Any]) -> Row:
    lowered = {key: "" if value is None else value for key, value in values.items()}
    question = lowered.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: no question; a row needs question, options and answer")
    names, options = _options(where, lowered)
    if len(options) < 2:
        raise UserError(
            f"{where}: {len(options)} options, two are needed; give choices=[…], or columns option1, option2, …"
        )
    if "" in options:
        after = f"; {names[options.index('')]} is empty, and a column after it is not" if names else ""
        raise UserError(f"{where}: an option without text{after}")
    if twice := next((option for option in options if options.count(option) > 1), None):
        raise UserError(f"{where}: the option {twice!r} is there twice")
    found = {"question": question.strip(), "choices": options, "answer": _answer(where, lowered, names, options)}
    return found | {key: str(lowered[key]) for key in OPTIONAL if lowered.get(key) not in (None, "")}


def _options(where: str, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The options, and the columns that they stand in (none for a list)."""
    for key in LISTS:
        if (listed := values.get(key, "")) != "":
            if isinstance(listed, str):
                try:
                    listed = json.loads(listed)
                except ValueError:
                    listed = listed.split("|")
            if not isinstance(listed, (list, tuple)) or not all(isinstance(o, (str, int, float)) for o in listed):
                raise UserError(f'{where}: {key} is {str(values[key])[:40]!r}, allowed is a list ["…", "…"], or …|…')
            return [], [str(option).strip() for option in listed]
    columns = _columns(values)
    options = [str(values[key]).strip() for key in columns]
    while options and not options[-1]:
        options.pop()
    return columns[: len(options)], options


def _columns(values: Mapping[str, Any]) -> list[str]:
    """The columns of options in their order: A, B, … as far as no letter is left out, or option1, option2, …"""
    marks = {key: match[1] or match[2] for key in values if (match := COLUMN.fullmatch(key))}
    numbered = sorted((int(mark), key) for key, mark in marks.items() if mark.isdigit())
    lettered = dict(sorted((mark, key) for key, mark in marks.items() if not mark.isdigit()))
    in_a_row = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(lettered, string.ascii_lowercase, strict=False))
    return [key for _, key in numbered] or [lettered[mark] for mark, _ in in_a_row]


def _answer(where: str, values: Mapping[str, Any], names: list[str], options: list[str]) -> int:
    """The place of the right option, given by its text, its place, its letter or its column."""
    given = values.get("answer", "")
    if given == "" or isinstance(given, bool):
        raise UserError(f"{where}: no answer; give an option's place (from 0), its letter or its text")
    text = str(given).strip()
    if isinstance(given, str) and text in options:
        return options.index(text)
    if re.fullmatch(r"\d+(\.0)?", text) and int(float(text)) < len(options):
        return int(float(text))
    if text.lower() in names:
        return names.index(text.lower())
    if len(text) == 1 and "A" <= text.upper() <= "Z" and ord(text.upper()) - ord("A") < len(options):
        return ord(text.upper()) - ord("A")
    raise UserError(
        f"{where}: the answer {text!r} is no option; allowed is 0 to {len(options) - 1}, A to "
        f"{chr(ord('A') + len(options) - 1)}, or one of {', '.join(map(repr, options))}"
    )
