"""Compare two runs: what was set, where they were made, what came out, how far apart their weights are.

Questions that both answered are compared one by one (McNemar's exact test); nothing else is computed anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmu_exp.evaluate import statistics
from rmu_exp.model.delta import Delta
from rmu_exp.model.diff import distances
from rmu_exp.record.results import McNemar
from rmu_exp.record.rundir import DELTA, RunDir, flat, read
from rmu_exp.report.objectives import Worst, worst
from rmu_exp.report.table import Table, numbers, percent
from rmu_exp.report.tables import rows as ordered
from rmu_exp.settings import result_settings

ORIGIN = {"versions", "git", "hardware", "data_hashes", "model_revision", "model_digest"}
WIDE = 100
Pair = list[float | None]
Differing = dict[str, list[JsonValue]]


class Questions(BaseModel):
    """A group's or a task's questions in both runs.

    Attributes:
        shared: questions that both answered; ``mcnemar`` is over these, from A to B.
        whole: whether it stands for itself, and is not a task of a group.
    """

    base: Pair
    unlearned: Pair
    shared: int
    mcnemar: McNemar | None
    whole: bool


class Comparison(BaseModel):
    """What differs between two runs A and B, and what both measured.

    Attributes:
        runs: their folders.
        settings, provenance: key to the two values where they differ.
        qa: name to accuracies and test.
        perplexity: source to the two values after unlearning.
        delta: tensor to relative L2 distance.
        only: tensors and questions that one has and the other has not.
        worst: the worst attack of each.
    """

    runs: list[str]
    settings: Differing
    provenance: Differing
    qa: dict[str, Questions]
    perplexity: dict[str, Pair]
    delta: dict[str, float]
    only: dict[str, list[list[str]]]
    worst: list[Worst | None]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs or judgements.

    Raises:
        UserError: one of them is not the folder of a run with results.
    """
    both = a, b = read(first), read(second)
    qa = {name: row for name, row in a.results.qa.items() if name in b.results.qa}
    read_by = [r.results.perplexity for r in both]
    return Comparison(
        runs=[str(first), str(second)],
        settings=_differing(*(flat(result_settings(r.config) | {"attacks": r.config.get("attacks")}) for r in both)),
        provenance=_origins(a, b),
        qa={name: _questions(name, a, b, whole=not depth) for depth, name in ordered(qa)},
        perplexity={
            source: [row.unlearned.perplexity if row.unlearned else None for row in (mine, read_by[1][source])]
            for source, mine in read_by[0].items()
            if source in read_by[1]
        },
        delta={} if a.judged or b.judged else distances(*(Delta.load(r.folder / DELTA) for r in (a, b))),
        only=_only(a, b),
        worst=[worst(r.results) for r in both],
    )


def _differing(a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> Differing:
    keys = dict.fromkeys([*a, *b])
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


def _origins(a: RunDir, b: RunDir) -> Differing:
    """What both recorded, and differs."""
    parts = [r.results.provenance for r in (a, b)]
    mine, theirs = (flat(part.model_dump(include=ORIGIN)) if part else {} for part in parts)
    return {key: pair for key, pair in _differing(mine, theirs).items() if key in mine and key in theirs}


def _questions(name: str, a: RunDir, b: RunDir, whole: bool) -> Questions:
    pair = [r.results.qa[name] for r in (a, b)]
    first, second = list[int](), list[int]()
    for task in [name] if pair[0].tasks is None else pair[0].tasks:
        if task in a.answers and task in b.answers:
            mine, theirs = a.answers[task], b.answers[task]
            n = min(len(mine.target), len(theirs.target))
            if mine.target[:n] == theirs.target[:n]:  # else other questions under the same name
                first += mine.correct("unlearned")[:n]
                second += theirs.correct("unlearned")[:n]
    return Questions(
        base=[row.base.acc for row in pair],
        unlearned=[row.unlearned.acc if row.unlearned else None for row in pair],
        shared=len(first),
        mcnemar=statistics.mcnemar(first, second) if first else None,
        whole=whole,
    )


def _only(a: RunDir, b: RunDir) -> dict[str, list[list[str]]]:
    qa = [set(r.results.qa) for r in (a, b)]
    tensors = [set() if r.judged else set(Delta.load(r.folder / DELTA).tensors) for r in (a, b)]
    both = {"qa": qa, "tensors": tensors}
    return {key: [sorted(x - y), sorted(y - x)] for key, (x, y) in both.items() if x != y}


def show(found: Comparison, console: Console | None = None) -> None:
    """The comparison on the screen."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    parts: list[RenderableType | None] = [Text("A  {}\nB  {}".format(*found.runs)), *_differences(found), _qa(found.qa)]
    read = [
        [source, *("–" if v is None else f"{v:.3f}" for v in values)] for source, values in found.perplexity.items()
    ]
    parts += [_table("perplexity", ["", *numbers("A", "B")], read), _distances(found.delta)]
    attacked = [
        [name, row.attack, percent(row.acc), str(row.n), str(row.attacks)] if row else [name, "none"]
        for name, row in zip("AB", found.worst, strict=True)
    ]
    columns = ["", *numbers("attack", "accuracy under it", "n", "of so many attacks")]
    parts += [_table("worst attack", columns, attacked if any(found.worst) else [])]
    for key, alone in found.only.items():
        parts += [Text(f"{key} of {who} alone: {', '.join(n)}") for who, n in zip("AB", alone, strict=True) if n]
    for part in parts:
        if part is not None:
            console.print(Group(part, ""), highlight=False)


def _table(title: str, columns: Sequence[str], body: Sequence[Sequence[str]]) -> RenderableType | None:
    return Table(columns, body).rich(title, gap=2) if body else None


def _differences(found: Comparison) -> Iterator[RenderableType | None]:
    for title, differing in (("settings", found.settings), ("made with", found.provenance)):
        body = [[key, *map(_short, values)] for key, values in differing.items()]
        yield _table(title, ["", *numbers("A", "B")], body) or Text(f"{title}: nothing differs")


def _short(value: object) -> str:
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _qa(qa: Mapping[str, Questions]) -> RenderableType | None:
    body = []
    for name, row in qa.items():
        if row.whole:  # of the tasks of a group --json has it
            cells = [name, *map(percent, (*row.base, *row.unlearned))]
            if test := row.mcnemar:
                change = 100 * (test.gained - test.lost) / row.shared
                cells += [f"{test.lost} / {test.gained}", str(row.shared), f"{change:+.1f}", f"{test.p:.2g}"]
            body.append(cells)
    columns = ["", *numbers("base A", "base B", "A", "B", "lost / gained", "of", "B − A", "p")]
    note = "lost: correct in A and wrong in B, of the questions that both were asked; p: McNemar's exact test"
    table = _table("questions answered correctly", columns, body)
    return Group(table, Text(note, style="dim")) if table else None


def _distances(delta: Mapping[str, float]) -> RenderableType | None:
    if delta and not any(delta.values()):
        return Text(f"Delta: the same {len(delta)} tensors, bit for bit")
    body = [[name, "not finite" if math.isnan(value) else f"{value:.3g}"] for name, value in delta.items()]
    return _table("Delta", ["tensor", *numbers("‖B − A‖ / ‖A‖")], body)


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("first", type=Path, metavar="DIR1", help="the folder of a run or a judgement")
    parser.add_argument("second", type=Path, metavar="DIR2", help="another")
    parser.add_argument("--json", action="store_true", help="as JSON, in place of tables")


def run(args: argparse.Namespace) -> int:
    """Compare two runs."""
    found = compare(args.first, args.second)
    if args.json:
        untested = {name: {"mcnemar"} for name, row in found.qa.items() if row.mcnemar is None}
        print(json.dumps(found.model_dump(mode="json", exclude={"qa": untested}), indent=2))
    else:
        show(found)
    return 0
