"""Write the full checkpoint of a run.

For a run that was made without export=true.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rmu_exp.cli.apply import base_of, write
from rmu_exp.model.delta import Delta
from rmu_exp.pipeline.models import Models
from rmu_exp.record import rundir
from rmu_exp.settings import Model
from rmu_exp.support.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="a run's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--base", metavar="BASE", help="where the base is now, when it is not where the run found it")


def run(args: argparse.Namespace) -> int:
    """Write the full checkpoint of a run."""
    config = args.folder / rundir.CONFIG
    if not config.is_file():
        raise UserError(f"{args.folder}: no config.yaml in it; give the folder of a run")
    delta = Delta.load(args.folder / rundir.DELTA)
    if args.base is not None:
        base = base_of(args.base, delta)
    else:
        model = rundir.of(config).part("model", Model)
        base = Models.find(model, None, delta.base.get("revision") or None).base
    write(base, delta, args.folder, args.out)
    return 0
