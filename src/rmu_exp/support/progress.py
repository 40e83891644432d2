"""Progress of a long stage: a bar in a terminal, a line every tenth in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def describe(metrics: dict[str, Any]) -> str:
    """Losses and norms in one line: ``forget 0.53  retain 0.002  norm 1.2 of 6.5``."""
    parts = [
        f"{key.removesuffix('_loss')} {metrics[key]:.4f}" for key in ("forget_loss", "retain_loss") if key in metrics
    ]
    if "norm_forget_updated" in metrics:
        parts.append(f"norm {metrics['norm_forget_updated']:.2f} of {metrics['steer']:g}")
    return "  ".join(parts)


@contextmanager
def asking_progress() -> Iterator[Callable[[int], None]]:
    """A count of answered questions, in a terminal only; gives the function that adds to it."""
    console = Console(stderr=True)
    columns = (TextColumn("questions"), TextColumn("{task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda count: progress.advance(task, count)


@contextmanager
def attack_progress(total: int) -> Iterator[Callable[[str, bool], None]]:
    """The attack at work, of ``total``; gives the function that shows it, or (True) its end, which stays on screen."""
    console = Console(stderr=True)
    columns = (TextColumn("attack"), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def show(what: str, ended: bool) -> None:
            if ended:
                progress.update(task, advance=1)
                console.print(f"attack {int(progress.tasks[task].completed)}/{total}  {what}", highlight=False)
            else:
                progress.update(task, description=what)

        yield show


@contextmanager
def training_progress(total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar over ``total`` steps; gives the function that shows a step's losses and norms."""
    console = Console(stderr=True)
    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def update(metrics: dict[str, Any]) -> None:
            progress.update(task, advance=1, description=describe(metrics))
            done = int(progress.tasks[task].completed)
            if progress.disable and (done == total or done % max(1, total // 10) == 0):
                console.print(f"step {done}/{total}  {describe(metrics)}", highlight=False, soft_wrap=True)

        yield update
