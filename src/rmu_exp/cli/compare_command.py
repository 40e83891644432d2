"""``compare``: two runs side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "compare",
        help="two runs side by side",
        description="What differs between two runs or judgements: settings, versions, hardware, answers (McNemar's "
        "test on the questions that both were asked), tensors, worst attack.",
    )
    one.add_argument("first", type=Path, metavar="DIR1", help="the folder of a run or a judgement")
    one.add_argument("second", type=Path, metavar="DIR2", help="another")
    one.add_argument("--json", action="store_true", help="as JSON, in place of tables")
    one.set_defaults(run=compare)


def compare(args: argparse.Namespace) -> None:
    """Two runs side by side."""
    from rmu_exp.cli import compare

    found = compare.compare(args.first, args.second)
    if args.json:
        print(json.dumps(found.content(), indent=2))
    else:
        compare.show(found)
