"""A table, in Markdown, CSV, LaTeX and on the screen, and how numbers are written. Knows nothing of what it shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import table as rich_table
from rich.text import Text

TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "→": r"$\to$", "±": r"$\pm$", "·": r"$\cdot$",
    "−": "$-$", "≤": r"$\le$", "≥": r"$\ge$", "\N{NO-BREAK SPACE}": "~", "…": r"\dots{}", "‖": r"$\Vert$",
}  # fmt: skip


class Number(str):
    """The name of a column of numbers, which stand at its right."""


@dataclass(frozen=True)
class Table:
    """A table of text; cells missing at a row's end are empty, ``dim`` rows (by index) stand back on the screen."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    dim: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def markdown(self) -> str:
        """In Markdown, without a line break at its end."""
        marks = ["--:" if isinstance(name, Number) else "---" for name in self.columns]
        return "\n".join("| " + " | ".join(self._row(cells)) + " |" for cells in (self.columns, marks, *self.rows))

    def csv(self) -> str:
        """As comma-separated values, with the names of the columns first."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(map(_plain, [self.columns, *map(self._row, self.rows)]))
        return out.getvalue().rstrip("\n")

    def latex(self) -> str:
        """A ``tabular`` with the rules of LaTeX's package booktabs."""
        columns = "".join("r" if isinstance(name, Number) else "l" for name in self.columns)
        head, *body = (" & ".join(map(_tex, row)) + r" \\" for row in [self.columns, *map(self._row, self.rows)])
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([*lines, r"\end{tabular}"])

    def written(self, kind: str) -> str:
        """As the ending of a file says: md, csv or tex."""
        return {"md": self.markdown, "csv": self.csv, "tex": self.latex}[kind]()

    def rich(self, title: str, gap: int = 1) -> rich_table.Table:
        """For the screen, with ``gap`` spaces between columns."""
        made = rich_table.Table(
            title=title, title_justify="left", title_style="bold", header_style="bold", box=None,
            padding=(0, gap, 0, 0),
        )  # fmt: skip
        for name in self.columns:
            made.add_column(name, justify="right" if isinstance(name, Number) else "left", overflow="fold")
        for i, cells in enumerate(self.rows):
            made.add_row(*map(Text, self._row(cells)), style="dim" if i in self.dim else None)
        return made

    def _row(self, cells: Sequence[str]) -> list[str]:
        return [*cells, *[""] * (len(self.columns) - len(cells))]


def _plain(cells: Sequence[str]) -> list[str]:
    """Cells without what is there for Markdown alone: code marks, spaces that stay, escaped bars."""
    return [cell.replace("&nbsp;", " ").replace("`", "").replace("\\|", "|") for cell in cells]


def _tex(cell: str) -> str:
    """A cell for LaTeX: its signs escaped, its spaces and symbols as LaTeX has them."""
    (text,) = _plain([cell.replace("&nbsp;", "\N{NO-BREAK SPACE}")])
    return "".join(TEX.get(sign, sign) for sign in text)


def numbers(*names: str) -> list[str]:
    """Columns of numbers."""
    return list(map(Number, names))


def percent(value: float | None) -> str:
    """0.2632 as ``26.3 %``; None as nothing."""
    return "" if value is None else f"{100 * value:.1f} %"


def interval(bounds: Iterable[float] | None) -> str:
    """An interval of accuracies as ``21.7–31.5``, in per cent; None as nothing."""
    return "" if bounds is None else "–".join(f"{100 * bound:.1f}" for bound in bounds)
