"""Write a result file: what the runs of a sweep measured, small enough to be committed.

From the finished runs below folders such as that of train.py experiment=leaderboard, and the judgements and searches of
judge.py on their models: DIR … FILE.json. A result file among them brings the runs it has. Tables and figures are made
from such files (rmu-exp table FILE.json; in this project's docs, make docs-results).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rmu_exp.record import result_file
from rmu_exp.record.result_file import ResultFile
from rmu_exp.support.errors import UserError
from rmu_exp.sweep import trials


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a folder of runs, judgements or searches, or a result file",
    )
    parser.add_argument("file", type=Path, metavar="FILE.json", help="what is written")
    parser.add_argument(
        "--norms",
        action="store_true",
        help="with activation norms at 26 steps of each topic, of the runs below the folders",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file. Returns 1 when a trial has no results."""
    if args.file.suffix != ".json" or args.file.is_dir():
        raise UserError(f"{args.file}: got no name for the file; give it last, as in docs/results/NAME.json")
    if missing := next((folder for folder in args.folders if not folder.exists()), None):
        raise UserError(f"{missing}: no such folder; give the folder of a sweep")
    before = [result_file.read(file) for file in args.folders if file.is_file()]
    folders = [folder for folder in args.folders if folder.is_dir()]
    runs = result_file.collect(folders, [run for content in before for run in content.runs])
    notes = [f.parent for folder in folders for f in sorted(folder.resolve().rglob(trials.TRIAL))]
    planned = {f"{note.parent.name}/{note.name}": trials.read_one(note, {}) for note in notes}
    failed = {name: why for content in before for name, why in content.failed.items() if name not in planned}
    failed |= {name: t.reason or t.state for name, t in planned.items() if t.state not in ("done", "pruned")}
    norms = {name: lines for content in before for name, lines in content.norms.items()}
    norms |= result_file.norms(folders) if args.norms else {}
    there = {r.provenance.delta_digest for r in runs if r.provenance}
    content = ResultFile(runs, failed, {name: lines for name, lines in norms.items() if name in there})
    result_file.write(content, args.file)
    print(f"{args.file}: {len(runs)} runs, {args.file.stat().st_size / 1000:.1f} kB")
    for name, why in failed.items():
        print(f"rmu_exp: {name} is not among them: {why}", file=sys.stderr)
    return int(bool(failed))
