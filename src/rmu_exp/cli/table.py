"""Write the paper's table: methods compared over the runs in a folder.

methods.md (a table, seeds together) and methods.png (forget against general), from the runs below a folder such as
that of train.py experiment=paper_table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rmu_exp.report import methods


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of runs")


def run(args: argparse.Namespace) -> int:
    """Write the table, and print it."""
    page, picture = methods.write(args.folder)
    print(page.read_text(encoding="utf-8"), end="")
    print(f"{page}, {picture}")
    return 0
