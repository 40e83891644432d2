"""Write the full checkpoint of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from rmu_exp.cli.apply import base_of, write
from rmu_exp.model.checkpoint import Checkpoint, locate
from rmu_exp.model.delta import Delta
from rmu_exp.record import rundir
from rmu_exp.settings import Model
from rmu_exp.support.errors import UserError


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = "Write the full Hugging Face checkpoint of a run that was made without export=true."
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="a run's folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument("--base", metavar="BASE", help="where the base is now, when it is not where the run found it")


def run(args: argparse.Namespace) -> int:
    """Write the full checkpoint of a run."""
    config = args.folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{args.folder}: no config.yaml in it; give the folder of a run")
    delta = Delta.load(args.folder / "delta.safetensors")
    checkpoint = _stored_base(config, delta) if args.base is None else base_of(args.base, delta)
    write(checkpoint, delta, args.folder, args.out)
    return 0


def _stored_base(config: Path, delta: Delta) -> Checkpoint:
    """The base that a run's settings name."""
    model = rundir.of(config).part("model", Model)
    revision = delta.base.get("revision") or model.revision
    return locate(model.name, model.path, revision, model.trust_remote_code)
