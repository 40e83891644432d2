"""``verify``: recompute what a run's folder says."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rmu_exp.support.redaction import redact


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "verify",
        help="recompute what a run's folder says",
        description="Recompute what can be of a run's or a judgement's folder (settings, hashes of data and weights, "
        "numbers from answers), and say line by line what agrees, differs, or cannot be checked here. Changes nothing.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="the folder of a run or a judgement")
    one.add_argument("--answers", action="store_true", help="put the questions again, to base and base with Delta")
    one.add_argument("--training", action="store_true", help="train again, and compare the Delta byte for byte")
    one.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> int:
    """Whether a run's folder still says what was measured. Returns 1 when something differs."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    from rmu_exp.cli.verify import DIFFERS, verify

    states = []
    for check in verify(args.folder, args.answers, args.training):
        states.append(check.state)
        print(redact(f"{check.state:<9}  {check.what}: {check.detail}"), flush=True)
    told = {state: states.count(state) for state in dict.fromkeys(states)}
    print("; ".join(f"{count} {state}" for state, count in told.items()))
    return int(DIFFERS in states)
