"""Write the paper's table: methods, and models that were judged, compared over the runs in some folders.

methods.md (a table, seeds together) and methods.png (forget against general), from the runs and judgements below
folders such as those of train.py experiment=leaderboard and of judge.py -m unlearned=A,B,C, or in result files;
written into the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rmu_exp.report import methods


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    about = "a folder of runs or judgements, or a result file"
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help=about)


def run(args: argparse.Namespace) -> int:
    """Write the table, and print it."""
    page, picture = methods.write(args.folders)
    print(page.read_text(encoding="utf-8"), end="")
    print(f"{page}, {picture}")
    return 0
