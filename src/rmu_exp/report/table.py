"""A table, in Markdown and on the screen, and how its numbers are written. Knows nothing of what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import table as rich_table
from rich.text import Text


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


def numbers(*names: str) -> list[str]:
    """Columns of numbers."""
    return list(map(Number, names))


def percent(value: float | None) -> str:
    """0.2632 as ``26.3 %``; None as nothing."""
    return "" if value is None else f"{100 * value:.1f} %"


def interval(bounds: Iterable[float] | None) -> str:
    """An interval of accuracies as ``21.7–31.5``, in per cent; None as nothing."""
    return "" if bounds is None else "–".join(f"{100 * bound:.1f}" for bound in bounds)
