"""``table``: methods compared over a folder of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add to the parser of ``python -m rmu_exp``."""
    one = commands.add_parser(
        "table",
        help="the paper's table: methods compared over the runs in a folder",
        description="Write methods.md (a table, seeds together) and methods.png (forget against general) from the runs "
        "below a folder, such as that of train.py -m experiment=paper_table.",
    )
    one.add_argument("folder", type=Path, metavar="DIR", help="a folder of runs")
    one.set_defaults(run=table)


def table(args: argparse.Namespace) -> None:
    """The paper's table over a folder of runs."""
    from rmu_exp.report import methods

    page, picture = methods.write(args.folder)
    print(page.read_text(encoding="utf-8"), end="")
    print(f"{page}, {picture}")
