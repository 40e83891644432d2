"""Compare two runs: what was set, where they were made, what came out, how far apart their weights are.

Questions that both answered are compared one by one (McNemar's exact test); nothing else is computed anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from rmu_exp.evaluate import statistics
from rmu_exp.model.delta import Delta
from rmu_exp.model.diff import distances
from rmu_exp.record.results import McNemar
from rmu_exp.record.rundir import DELTA, RunDir, flat, read
from rmu_exp.report.objectives import Worst, worst
from rmu_exp.report.table import Table, numbers, percent
from rmu_exp.report.tables import rows
from rmu_exp.settings import result_settings

ORIGIN = {"versions", "git", "hardware", "data_hashes", "model_revision", "model_digest"}
WIDE = 100
Pair = list[float | None]
Differing = dict[str, list[object]]


@dataclass(frozen=True)
class Questions:
    """A group's or a task's questions in both runs.

    Attributes:
        base, unlearned: the two accuracies.
        shared: questions that both answered.
        mcnemar: over these, from A to B.
        whole: whether it stands for itself, and is not a task of a group.
    """

    base: Pair
    unlearned: Pair
    shared: int
    mcnemar: McNemar | None
    whole: bool


@dataclass(frozen=True)
class Comparison:
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

    def content(self) -> dict[str, object]:
        """For JSON; a test that was not made is left out."""
        made = dataclasses.asdict(self)
        for name, row in self.qa.items():
            if row.mcnemar is None:
                del made["qa"][name]["mcnemar"]
            else:
                made["qa"][name]["mcnemar"] = row.mcnemar.model_dump()
        return made


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
        qa={name: _questions(name, a, b, whole=not depth) for depth, name in rows(qa)},
        perplexity={
            source: [row.unlearned.perplexity if row.unlearned else None for row in (mine, read_by[1][source])]
            for source, mine in read_by[0].items()
            if source in read_by[1]
        },
        delta={} if a.judged or b.judged else distances(*(Delta.load(r.folder / DELTA) for r in (a, b))),
        only=_only(a, b),
        worst=[worst(r.results) for r in both],
    )


def _differing(a: Mapping[str, object], b: Mapping[str, object]) -> Differing:
    keys = dict.fromkeys([*a, *b])
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


def _origins(a: RunDir, b: RunDir) -> Differing:
    """What both recorded, and differs."""
    parts = [r.results.provenance for r in (a, b)]
    mine, theirs = (flat(part.model_dump(include=ORIGIN)) if part else {} for part in parts)
    return {key: pair for key, pair in _differing(mine, theirs).items() if key in mine and key in theirs}


def _questions(name: str, a: RunDir, b: RunDir, whole: bool) -> Questions:
    pair = [r.results.qa[name] for r in (a, b)]
    tasks = [name] if pair[0].tasks is None else pair[0].tasks
    shared = [_shared(task, a, b) for task in tasks]
    first, second = ([c for part in shared for c in part[i]] for i in (0, 1))
    return Questions(
        base=[row.base.acc for row in pair],
        unlearned=[row.unlearned.acc if row.unlearned else None for row in pair],
        shared=len(first),
        mcnemar=statistics.mcnemar(first, second) if first else None,
        whole=whole,
    )


def _shared(task: str, a: RunDir, b: RunDir) -> tuple[list[int], list[int]]:
    """What the unlearned models of both answered to a task's questions that both were asked."""
    if task not in a.answers or task not in b.answers:
        return [], []
    mine, theirs = a.answers[task], b.answers[task]
    n = min(len(mine.target), len(theirs.target))
    if mine.target[:n] != theirs.target[:n]:  # other questions under the same name
        return [], []
    return mine.correct("unlearned")[:n], theirs.correct("unlearned")[:n]


def _only(a: RunDir, b: RunDir) -> dict[str, list[list[str]]]:
    qa = [set(r.results.qa) for r in (a, b)]
    tensors = [set() if r.judged else set(Delta.load(r.folder / DELTA).tensors) for r in (a, b)]
    both = {"qa": qa, "tensors": tensors}
    return {key: [sorted(x - y), sorted(y - x)] for key, (x, y) in both.items() if x != y}


def show(found: Comparison, console: Console | None = None) -> None:
    """The comparison on the screen."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    a, b = found.runs
    parts: list[RenderableType | None] = [
        Text(f"A  {a}\nB  {b}"),
        _values("settings", found.settings),
        _values("made with", found.provenance),
    ]
    parts += [_qa(found.qa), _perplexities(found.perplexity), _distances(found.delta), _worst(found.worst)]
    for key, alone in found.only.items():
        told = [(who, ", ".join(names)) for who, names in zip("AB", alone, strict=True) if names]
        parts += [Text(f"{key} of {who} alone: {names}") for who, names in told]
    for part in parts:
        if part is not None:
            console.print(Group(part, ""), highlight=False)


def _values(title: str, differing: Differing) -> RenderableType:
    if not differing:
        return Text(f"{title}: nothing differs")
    return _table(title, ["", *numbers("A", "B")], [[key, *map(_short, values)] for key, values in differing.items()])


def _table(title: str, columns: Sequence[str], body: Sequence[Sequence[str]]) -> RenderableType:
    return Table(columns, body).rich(title, gap=2)


def _short(value: object) -> str:
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _qa(qa: Mapping[str, Questions]) -> RenderableType | None:
    if not qa:
        return None
    body = []
    for name, row in qa.items():
        if not row.whole:
            continue  # a task of a group; --json has it
        cells = [name, *map(percent, (*row.base, *row.unlearned))]
        if test := row.mcnemar:
            change = 100 * (test.gained - test.lost) / row.shared
            cells += [f"{test.lost} / {test.gained}", str(row.shared), f"{change:+.1f}", f"{test.p:.2g}"]
        body.append(cells)
    columns = ["", *numbers("base A", "base B", "A", "B", "lost / gained", "of", "B − A", "p")]
    note = "lost: correct in A and wrong in B, of the questions that both were asked; p: McNemar's exact test"
    return Group(_table("questions answered correctly", columns, body), Text(note, style="dim"))


def _perplexities(measured: Mapping[str, Pair]) -> RenderableType | None:
    body = [[source, *("–" if v is None else f"{v:.3f}" for v in values)] for source, values in measured.items()]
    return _table("perplexity", ["", *numbers("A", "B")], body) if body else None


def _distances(delta: Mapping[str, float]) -> RenderableType | None:
    if not delta:
        return None
    if not any(delta.values()):
        return Text(f"Delta: the same {len(delta)} tensors, bit for bit")
    body = [[name, "not finite" if math.isnan(value) else f"{value:.3g}"] for name, value in delta.items()]
    return _table("Delta", ["tensor", *numbers("‖B − A‖ / ‖A‖")], body)


def _worst(pair: Sequence[Worst | None]) -> RenderableType | None:
    if not any(pair):
        return None
    body = [
        [name, row.attack, percent(row.acc), str(row.n), str(row.attacks)] if row else [name, "none"]
        for name, row in zip("AB", pair, strict=True)
    ]
    return _table("worst attack", ["", *numbers("attack", "accuracy under it", "n", "of so many attacks")], body)


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("first", type=Path, metavar="DIR1", help="the folder of a run or a judgement")
    parser.add_argument("second", type=Path, metavar="DIR2", help="another")
    parser.add_argument("--json", action="store_true", help="as JSON, in place of tables")


def run(args: argparse.Namespace) -> int:
    """Compare two runs."""
    found = compare(args.first, args.second)
    if args.json:
        print(json.dumps(found.content(), indent=2))
    else:
        show(found)
    return 0
