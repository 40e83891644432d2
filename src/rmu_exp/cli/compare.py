"""Compare two runs: what was set, where they were made, what came out, how far apart their weights are.

``python -m rmu_exp compare DIR1 DIR2``. Questions that both answered are compared one by one (McNemar's exact test);
nothing is computed anew but that.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rmu_exp.attacks.runner import worst
from rmu_exp.cli.verify import distances
from rmu_exp.evaluate import statistics
from rmu_exp.record.rundir import RunDir, flat, read
from rmu_exp.report.tables import percent, rows
from rmu_exp.settings import result_settings

ORIGIN = ("versions", "git", "hardware", "data_hashes", "model_revision", "model_digest")
WIDE = 100


def compare(first: Path, second: Path) -> dict[str, Any]:
    """What differs between two runs, and what both measured.

    Returns:
        ``runs``; ``settings`` and ``provenance``, key to the two values where they differ; ``qa``, name to both
        accuracies, ``mcnemar`` over the questions that both answered, and ``whole`` unless it is a task of a
        group; ``perplexity``; ``delta``, tensor to
        relative L2 distance; ``only``, tensors and questions of one alone; ``worst``, the worst attack of each.

    Raises:
        UserError: one of them is not the folder of a run with results.
    """
    a, b = read(first), read(second)
    return {
        "runs": [str(first), str(second)],
        "settings": _differing(
            *(flat(result_settings(r.config) | {"attacks": r.config.get("attacks")}) for r in (a, b))
        ),
        "provenance": _origins(a, b),
        "qa": {name: _questions(name, a, b) | {"whole": not depth} for depth, name in rows(_both(a, b, "qa"))},
        "perplexity": {source: _perplexity(source, a, b) for source in _both(a, b, "perplexity")},
        "delta": _deltas(a, b),
        "only": _only(a, b),
        "worst": [worst(r.results) for r in (a, b)],
    }


def _both(a: RunDir, b: RunDir, key: str) -> dict[str, Any]:
    theirs = b.results.get(key, {})
    return {name: row for name, row in a.results.get(key, {}).items() if name in theirs}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    keys = dict.fromkeys([*a, *b])
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}


def _origins(a: RunDir, b: RunDir) -> dict[str, list[Any]]:
    """What both recorded, and differs."""
    mine, theirs = (flat({k: r.provenance.get(k) for k in ORIGIN}) for r in (a, b))
    return {key: pair for key, pair in _differing(mine, theirs).items() if key in mine and key in theirs}


def _questions(name: str, a: RunDir, b: RunDir) -> dict[str, Any]:
    pair = [r.results["qa"][name] for r in (a, b)]
    found: dict[str, Any] = {"base": [_acc(row, "base") for row in pair]}
    found["unlearned"] = [_acc(row, "unlearned") for row in pair]
    shared = [_shared(task, a, b) for task in pair[0].get("tasks", [name])]
    first, second = ([c for part in shared for c in part[i]] for i in (0, 1))
    found["shared"] = len(first)
    if first:
        found["mcnemar"] = statistics.mcnemar(first, second)
    return found


def _acc(row: dict[str, Any], who: str) -> float | None:
    return row[who]["acc"] if who in row else None


def _shared(task: str, a: RunDir, b: RunDir) -> tuple[list[int], list[int]]:
    """What the unlearned models of both answered to a task's questions that both were asked."""
    if task not in a.answers or task not in b.answers:
        return [], []
    mine, theirs = a.answers[task], b.answers[task]
    n = min(len(mine.target), len(theirs.target))
    if mine.target[:n] != theirs.target[:n]:  # other questions under the same name
        return [], []
    return mine.correct("unlearned")[:n], theirs.correct("unlearned")[:n]


def _perplexity(source: str, a: RunDir, b: RunDir) -> list[float | None]:
    return [r.results["perplexity"][source].get("unlearned", {}).get("perplexity") for r in (a, b)]


def _deltas(a: RunDir, b: RunDir) -> dict[str, float]:
    return distances(a.delta, b.delta) if not (a.judged or b.judged) else {}


def _only(a: RunDir, b: RunDir) -> dict[str, list[list[str]]]:
    """Tensors and questions that one has and the other has not."""
    qa = [set(r.results.get("qa", {})) for r in (a, b)]
    tensors = [set() if r.judged else set(r.delta.tensors) for r in (a, b)]
    both = {"qa": qa, "tensors": tensors}
    return {key: [sorted(x - y), sorted(y - x)] for key, (x, y) in both.items() if x != y}


def show(found: dict[str, Any], console: Console | None = None) -> None:
    """The comparison on the screen."""
    import sys

    console = console or Console(width=None if sys.stdout.isatty() else WIDE)
    a, b = found["runs"]
    parts: list[Any] = [Text(f"A  {a}\nB  {b}")]
    parts += [_values("settings", found["settings"]), _values("made with", found["provenance"])]
    parts += [_qa(found["qa"]), _read(found["perplexity"]), _distances(found["delta"]), _worst(found["worst"])]
    for key, (mine, theirs) in found["only"].items():
        parts += [
            Text(f"{key} of {who} alone: {', '.join(names)}") for who, names in (("A", mine), ("B", theirs)) if names
        ]
    for part in parts:
        if part is not None:
            console.print(Group(part, ""), highlight=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _values(title: str, differing: dict[str, list[Any]]) -> Any:
    if not differing:
        return Text(f"{title}: nothing differs")
    table = _table(title, "", "A", "B")
    for key, values in differing.items():
        table.add_row(Text(key), *(Text(_show(value)) for value in values))
    return table


def _show(value: Any) -> str:
    if value is None:
        return "–"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _qa(qa: dict[str, Any]) -> Any:
    if not qa:
        return None
    table = _table("questions answered right", "", "base A", "base B", "A", "B", "lost / gained", "of", "B − A", "p")
    for name, row in qa.items():
        if not row["whole"]:
            continue  # a task of a group; --json has it
        a, b = row["unlearned"]
        test = row.get("mcnemar")
        tested = [""] * 4
        if test:
            change = 100 * (test["gained"] - test["lost"]) / row["shared"]
            tested = [f"{test['lost']} / {test['gained']}", str(row["shared"]), f"{change:+.1f}", f"{test['p']:.2g}"]
        cells = [percent(v) if v is not None else "" for v in (*row["base"], a, b)]
        table.add_row(Text(name), *cells, *tested)
    return Group(
        table,
        Text(
            "lost: right in A and wrong in B, of the questions that both were asked; p: McNemar's exact test",
            style="dim",
        ),
    )


def _read(read_by: dict[str, list[float | None]]) -> Any:
    if not read_by:
        return None
    table = _table("perplexity", "", "A", "B")
    for source, values in read_by.items():
        table.add_row(Text(source), *("–" if v is None else f"{v:.3f}" for v in values))
    return table


def _distances(delta: dict[str, float]) -> Any:
    if not delta:
        return None
    if not any(delta.values()):
        return Text(f"Delta: the same {len(delta)} tensors, bit for bit")
    table = _table("Delta", "tensor", "‖B − A‖ / ‖A‖")
    for name, distance in delta.items():
        table.add_row(Text(name), "not finite" if math.isnan(distance) else f"{distance:.3g}")
    return table


def _worst(pair: list[dict[str, Any] | None]) -> Any:
    if not any(pair):
        return None
    table = _table("worst attack", "", "attack", "right under it", "n", "of so many attacks")
    for name, row in zip("AB", pair, strict=True):
        table.add_row(
            name, *((row["attack"], percent(row["acc"]), str(row["n"]), str(row["attacks"])) if row else ["none"])
        )
    return table


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "What differs between two runs or judgements: settings, versions, hardware, answers (McNemar's test on the "
        "questions that both were asked), tensors, worst attack."
    )
    parser.add_argument("first", type=Path, metavar="DIR1", help="the folder of a run or a judgement")
    parser.add_argument("second", type=Path, metavar="DIR2", help="another")
    parser.add_argument("--json", action="store_true", help="as JSON, in place of tables")


def run(args: argparse.Namespace) -> int:
    """Compare two runs."""
    found = compare(args.first, args.second)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0
