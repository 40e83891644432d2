"""Write the figures and tables of a run, of a sweep, or of several runs for a paper.

Figures as PDF, SVG or PNG, as wide as a column and without titles, which belong into captions; tables as LaTeX (for the
package booktabs), CSV or Markdown. A run's folder gives its accuracies, norms, losses, attacks, perplexities; a sweep's
the front, maps, curves, and a row for each of its settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from rmu_exp.record import results as results_json
from rmu_exp.report import methods, plots, style, tables
from rmu_exp.report.table import Table
from rmu_exp.support.errors import UserError
from rmu_exp.support.files import write_atomic
from rmu_exp.sweep import report, trials

FIGURES, TABLES = ("pdf", "svg", "png"), ("tex", "csv", "md")
COLUMN = 3.3  # inches


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run's or a sweep's folder, or one that holds runs'")
    parser.add_argument("--out", type=Path, metavar="OUT", help="folder to write to; DIR/paper if not given")
    kinds = (*FIGURES, *TABLES)
    parser.add_argument("--format", nargs="+", choices=kinds, default=["pdf", "tex"], help="of figures and tables")
    parser.add_argument("--width", type=float, default=COLUMN, metavar="INCHES", help="of a column; 3.3 if not given")


def run(args: argparse.Namespace) -> int:
    """Write figures and tables; prints each file."""
    if not 1.5 <= args.width <= 30:
        raise UserError(f"--width: got {args.width:g}, allowed is 1.5 to 30 inches")
    if (args.folder / results_json.NAME).is_file():
        figures, found = _run(args.folder)
    else:
        listed = methods.rows(methods.read([args.folder]))
        figures = {"methods": methods.draw(listed)} | report.figures(trials.read(args.folder))
        found = {"methods": methods.table(listed)}
    out = args.out or args.folder / "paper"
    wanted: list[tuple[str, Figure | Table]] = []
    wanted += [(f"{name}.{kind}", fig) for name, fig in figures.items() for kind in FIGURES if kind in args.format]
    wanted += [(f"{name}.{kind}", tab) for name, tab in found.items() if tab for kind in TABLES if kind in args.format]
    for figure in figures.values():
        style.narrow(figure, args.width)
    for name, part in wanted:
        if isinstance(part, Table):
            write_atomic(out / name, part.written(name.rpartition(".")[2]) + "\n")
        else:
            style.write(part, out / name)
        print(out / name)
    return 0


def _run(folder: Path) -> tuple[Mapping[str, Figure], dict[str, Table]]:
    """The figures and tables of a run or a judgement."""
    results = results_json.load(folder / results_json.NAME)
    found = {
        "accuracies": tables.accuracies(results.qa),
        "probabilities": tables.answer_probabilities(results.qa),
        "details": tables.details(results.qa),
        "perplexities": tables.perplexities(results),
        "attack_results": tables.attacks(results),
    }
    return plots.figures(folder), found
