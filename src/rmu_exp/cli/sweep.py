"""``sweep``: the report of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

AXES = "what to compare by: forget, general, worst (the accuracy after the worst attack)"


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "sweep",
        help="the report of a sweep, or of any folder of runs",
        description="Write report.md, plots/ and report.html over the trials in a folder, as a sweep does at its end.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="a sweep's folder, or one that holds runs' folders")
    one.add_argument("--objectives", nargs="+", default=["forget", "general"], metavar="AXIS", help=AXES)
    one.add_argument("--forget", nargs="+", metavar="TASK", help="what is to be forgotten; found by name if not given")
    one.add_argument("--general", nargs="+", metavar="TASK", help="what is to be kept; found by name if not given")
    one.add_argument("--wandb", metavar="[ENTITY/]PROJECT", help="send tables and plots to this W&B project too")
    one.set_defaults(run=sweep)


def sweep(args: argparse.Namespace) -> None:
    """The report of a sweep."""
    from rmu_exp.settings import Tracking
    from rmu_exp.sweep.report import write

    tracking = None
    if args.wandb is not None:
        entity, _, project = args.wandb.rpartition("/")
        tracking = Tracking(project=project, entity=entity or None)
    asked = {"forget": args.forget or [], "general": args.general or []}
    write(args.folder, args.objectives, asked, tracking)
