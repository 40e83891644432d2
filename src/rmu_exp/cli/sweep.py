"""Write the report of a sweep, or of any folder of runs.

report.md, plots/ and report.html over the trials in a folder, as a sweep does at its end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rmu_exp.record import rundir
from rmu_exp.settings import Tracking
from rmu_exp.sweep.report import write
from rmu_exp.sweep.session import Notes

AXES = "what to compare by: forget, general, worst (the accuracy after the worst attack); as the sweep did if not given"


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder, or one that holds runs' folders")
    parser.add_argument("--objectives", nargs="+", metavar="AXIS", help=AXES)
    parser.add_argument(
        "--forget",
        nargs="+",
        metavar="TASK",
        help="what is to be forgotten; as the sweep did, or by role, if not given",
    )
    parser.add_argument(
        "--general", nargs="+", metavar="TASK", help="what is to be kept; as the sweep did, or by role, if not given"
    )
    parser.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help="send tables and plots to this W&B project too")


def run(args: argparse.Namespace) -> int:
    """Write the report of a sweep."""
    tracking = None
    if args.wandb is not None:
        entity, _, project = args.wandb.rpartition("/")
        tracking = Tracking(kind="wandb", project=project, entity=entity or None)
    names, asked, bound = ["forget", "general"], dict[str, list[str]](), None
    if (args.folder / rundir.SWEEP).is_file():
        notes = Notes.read(args.folder)
        names, asked, bound = notes.objectives, notes.asked, notes.bound
    asked |= {axis: given for axis in ("forget", "general") if (given := getattr(args, axis))}
    write(args.folder, args.objectives or names, asked, tracking, bound)
    return 0
