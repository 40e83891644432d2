"""``fetch``: what a run needs from the hub, into a folder for a machine without a network."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmu_exp.support.errors import RunError, UserError


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "fetch",
        help="bring all that a run needs from the hub into a folder",
        description="Bring all that a run needs from the hub (model, tokenizer, corpora, questions) into a folder that "
        "a machine without a network runs from. Name the run as for train.py, or what is wanted one by one.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="made when missing; what it holds is not fetched again")
    one.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py: model=zephyr_7b data=wmdp …")
    one.add_argument("--model", action="append", default=[], metavar="ORG/NAME[@REVISION]", help="a model; repeatable")
    one.add_argument("--corpus", action="append", default=[], metavar="SOURCE", help="ORG/NAME[:CONFIG[:SPLIT]]")
    one.add_argument("--task", action="append", default=[], metavar="TASK", help="an lm-eval task or group")
    one.add_argument("--layers", type=int, metavar="N", help="only the weight files that hold the first N layers")
    one.set_defaults(run=fetch)


def fetch(args: argparse.Namespace) -> None:
    """Bring what a run needs into a folder, and say how to use it."""
    given = args.model or args.corpus or args.task
    if given and args.overrides:
        raise UserError("fetch: give KEY=VALUE as for train.py, or --model, --corpus and --task, not both")
    if given:
        if args.layers is not None and args.layers < 1:
            raise UserError(f"--layers: got {args.layers}, allowed is 1 or more")
        named = {"models": args.model, "corpora": args.corpus, "tasks": args.task, "depth": args.layers}
        command = "python train.py …"
    else:
        if args.layers is not None:
            raise UserError("--layers: belongs to --model; a run says itself how many layers it needs")
        named, command = _needs(args.overrides, args.folder)
    from rmu_exp.cli.fetch import fetch as bring

    was_there = args.folder.exists()
    try:
        for line in bring(args.folder, **named):
            print(line, flush=True)
    except (UserError, RunError):
        if not was_there:
            _remove_if_empty(args.folder)
        raise
    folder = shlex.quote(str(args.folder.absolute()))
    print(f"\nOn a machine without a network:\n  HF_HOME={folder} HF_HUB_OFFLINE=1 {command}")


def _needs(overrides: Sequence[str], folder: Path) -> tuple[dict[str, Any], str]:
    """What the run (or the sweep) of these overrides takes from the hub, and the command that starts it."""
    conf = Path(__file__).parents[3] / "conf"
    if not conf.is_dir():
        raise UserError("conf: not beside the package; install from a checkout, or use --model, --corpus and --task")
    from rmu_exp.cli.fetch import caches_in
    from rmu_exp.config.compose import composed

    with caches_in(folder):  # what attacks and methods import
        runs = composed(overrides, conf, multirun=True)
        from rmu_exp.pipeline import needs

        found = needs.of(runs)
    if not (found.models or found.corpora or found.tasks):
        raise UserError("fetch: this run needs nothing from the hub; name one that does, such as model=zephyr_7b")
    return vars(found), shlex.join(["python", "train.py", *["-m"] * (len(runs) > 1), *overrides])


def _remove_if_empty(folder: Path) -> None:
    """Leave no new folder behind in which there is no file."""
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)
