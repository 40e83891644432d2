"""Compare two runs: what was set, where they were made, what came out, how far apart their weights are.

Questions that both answered are compared one by one (McNemar's exact test); nothing else is computed anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue
from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmu_exp.evaluation import statistics
from rmu_exp.model.delta import Delta
from rmu_exp.model.diff import distances
from rmu_exp.record.results import McNemar
from rmu_exp.record.rundir import DELTA, Object, RunDir, flat, read
from rmu_exp.report.objectives import Worst, worst
from rmu_exp.report.table import Table, numbers, percent
from rmu_exp.report.tables import rows as ordered
from rmu_exp.settings import result_settings

ORIGIN = {"versions", "git", "hardware", "data_hashes", "model_revision", "model_digest"}
WIDE = 100
NOTE = "lost: correct in A and wrong in B, of the questions that both were asked; p: McNemar's exact test"
Pair = list[float | None]
Differing = dict[str, list[JsonValue]]


class Questions(BaseModel):
    """A group's or a task's questions in both runs."""

    base: Pair
    unlearned: Pair
    shared: int  # questions that both answered
    mcnemar: McNemar | None  # over these, from A to B
    whole: bool  # whether it stands for itself, and is not a task of a group


class Comparison(BaseModel):
    """What differs between two runs A and B, and what both measured."""

    runs: list[str]  # their folders
    settings: Differing  # key to the two values
    provenance: Differing
    qa: dict[str, Questions]
    perplexity: dict[str, Pair]  # source to the two values after unlearning
    delta: dict[str, float]  # tensor to relative L2 distance
    only: dict[str, list[list[str]]]  # tensors and questions that one has and the other has not
    worst: list[Worst | None]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs or judgements. Raises UserError: one is not the folder of a run with results."""
    both = a, b = read(first), read(second)
    qa = {name: row for name, row in a.results.qa.items() if name in b.results.qa}
    settings = [flat(result_settings(r.config) | {"attacks": r.config.get("attacks")}) for r in both]
    made = [flat(p.model_dump(include=ORIGIN)) if (p := r.results.provenance) else {} for r in both]
    read_by: list[dict[str, float | None]] = [
        {source: row.unlearned.perplexity if row.unlearned else None for source, row in r.results.perplexity.items()}
        for r in both
    ]
    deltas = [] if a.judged or b.judged else [Delta.load(r.folder / DELTA) for r in both]
    have = {"qa": [set(r.results.qa) for r in both], "tensors": [set(delta.tensors) for delta in deltas]}
    return Comparison(
        runs=[str(first), str(second)],
        settings=_differing(settings[0], settings[1], settings[0] | settings[1]),
        provenance=_differing(made[0], made[1], [key for key in made[0] if key in made[1]]),
        qa={name: _questions(name, a, b, whole=not depth) for depth, name in ordered(qa)},
        perplexity={s: [read_by[0][s], read_by[1][s]] for s in read_by[0] if s in read_by[1]},
        delta=distances(*deltas) if deltas else {},
        only={key: [sorted(x - y), sorted(y - x)] for key, (x, y) in have.items() if x != y},
        worst=[worst(r.results) for r in both],
    )


def _differing(a: Object, b: Object, keys: Iterable[str]) -> Differing:
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


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


def _sections(found: Comparison) -> Iterator[RenderableType]:
    """The comparison, for the screen."""
    yield Text("A  {}\nB  {}".format(*found.runs))
    for title, differing in (("settings", found.settings), ("made with", found.provenance)):
        rows = [[key, *map(_short, values)] for key, values in differing.items()]
        yield _table(title, ["A", "B"], rows) if rows else Text(f"{title}: nothing differs")
    if rows := list(_answered(found.qa)):
        columns = ["base A", "base B", "A", "B", "lost / gained", "of", "B − A", "p"]
        yield Group(_table("questions answered correctly", columns, rows), Text(NOTE, style="dim"))
    if found.perplexity:
        read = [[s, *("–" if v is None else f"{v:.3f}" for v in values)] for s, values in found.perplexity.items()]
        yield _table("perplexity", ["A", "B"], read)
    if any(found.delta.values()):
        rows = [[name, "not finite" if math.isnan(v) else f"{v:.3g}"] for name, v in found.delta.items()]
        yield _table("Delta", ["‖B − A‖ / ‖A‖"], rows)
    elif found.delta:
        yield Text(f"Delta: the same {len(found.delta)} tensors, bit for bit")
    if any(found.worst):
        rows = [
            [name, row.attack, percent(row.acc), str(row.n), str(row.attacks)] if row else [name, "none"]
            for name, row in zip("AB", found.worst, strict=True)
        ]
        yield _table("worst attack", ["attack", "accuracy under it", "n", "of so many attacks"], rows)
    for key, alone in found.only.items():
        yield from (Text(f"{key} of {who} alone: {', '.join(n)}") for who, n in zip("AB", alone, strict=True) if n)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    return Table(["", *numbers(*columns)], rows).rich(title, gap=2)


def _short(value: object) -> str:
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _answered(qa: Mapping[str, Questions]) -> Iterator[list[str]]:
    for name, row in qa.items():
        cells = [name, *map(percent, (*row.base, *row.unlearned))]
        if test := row.mcnemar:
            change = 100 * (test.gained - test.lost) / row.shared
            cells += [f"{test.lost} / {test.gained}", str(row.shared), f"{change:+.1f}", f"{test.p:.2g}"]
        if row.whole:  # of the tasks of a group --json has it
            yield cells


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
        return 0
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    for section in _sections(found):
        console.print(Group(section, ""), highlight=False)
    return 0
