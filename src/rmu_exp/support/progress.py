"""Progress of a long stage: a bar in a terminal, a line every tenth in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """What a stage tells: one metrics line at a time."""

    def __init__(self, console: Console, total: int, progress: Progress | None) -> None:
        self.console, self.total, self.progress, self.done = console, total, progress, 0
        self.task = progress.add_task("", total=total) if progress else None

    def update(self, metrics: dict[str, Any]) -> None:
        """Show a step's losses and norms."""
        self.done += 1
        text = describe(metrics)
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=1, description=text)
        elif self.done == self.total or self.done % max(1, self.total // 10) == 0:
            self.console.print(f"step {self.done}/{self.total}  {text}", highlight=False, soft_wrap=True)


def describe(metrics: dict[str, Any]) -> str:
    """Losses and norms in one line: ``forget 0.53  retain 0.002  norm 1.2 → 6.5``."""
    parts = [
        f"{key.removesuffix('_loss')} {metrics[key]:.4f}" for key in ("forget_loss", "retain_loss") if key in metrics
    ]
    if "norm_forget_updated" in metrics:
        parts.append(f"norm {metrics['norm_forget_updated']:.2f} → {metrics['steer']:g}")
    return "  ".join(parts)


@contextmanager
def asking_progress() -> Iterator[Callable[[int], None]]:
    """A count of answered questions, in a terminal only; gives the function that adds to it."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("questions"), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.advance(task, count)


@contextmanager
def training_progress(total: int) -> Iterator[Bar]:
    """A bar over ``total`` steps."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(console, total, None)
        return
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        yield Bar(console, total, progress)
