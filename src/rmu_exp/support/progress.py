"""Progress of whatever takes long: in a terminal a bar for each stage that is open, elsewhere a line now and then.

Stages open inside of stages, such as the questions of a part of an attack; each knows its total. Elsewhere than in a
terminal there is at most a line in half a minute, with nothing that a terminal would obey, and what a stage came to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)  # fmt: skip

EVERY = 30.0  # seconds between lines elsewhere than in a terminal
SOON = 1.0  # seconds until a stage inside another has a bar of its own
T = TypeVar("T")


class Stage:
    """An open stage: how much of it is done, and in words what it is at."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.note = what, total, 0.0, ""
        self.began = time.monotonic()
        self.bar = TaskID(0)

    def advance(self, count: float = 1, note: str | None = None) -> None:
        """So much more is done; ``note``: what it is at, if that has changed."""
        self.done, self.note = self.done + count, self.note if note is None else note
        _board.show(self)

    def line(self) -> str:
        """``questions 120/800, 0:42 left``."""
        rest = (time.monotonic() - self.began) * (self.total - self.done) / self.done if self.done else None
        left = "" if rest is None else f", {int(rest) // 60}:{int(rest) % 60:02d} left"
        return f"{self.what} {int(self.done):,}/{self.total:,}{f' {self.note}' if self.note else ''}{left}"


class Board:
    """The stages that are open in this process, outermost first, and where they are shown."""

    def __init__(self) -> None:
        self.open: list[Stage] = []
        self.bars: Progress | None = None
        self.said = time.monotonic()  # when a line was last written

    def enter(self, stage: Stage) -> None:
        """Show a stage from here on."""
        if not self.open:
            console = Console(stderr=True)
            columns = (
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self.bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self.bars.start()
        assert self.bars is not None
        stage.bar = self.bars.add_task(stage.what, total=stage.total, note="", visible=not self.open)
        self.open.append(stage)

    def leave(self, stage: Stage) -> None:
        """Show it no more."""
        self.open.remove(stage)
        if self.bars is not None:
            self.bars.remove_task(stage.bar)
            if not self.open:
                self.bars.stop()
                self.bars = None

    def show(self, stage: Stage) -> None:
        """A stage that has come further."""
        if self.bars is None:
            return
        now = time.monotonic()
        if not self.bars.disable:
            shown = stage is self.open[0] or now - stage.began > SOON
            self.bars.update(stage.bar, completed=stage.done, note=escape(stage.note), visible=shown)
        elif now - self.said >= EVERY:
            self.say(" · ".join(each.line() for each in self.open))

    def say(self, line: str) -> None:
        """Write a line that stays, above the bars."""
        self.said = time.monotonic()
        console = Console(stderr=True) if self.bars is None else self.bars.console
        console.print(line, highlight=False, markup=False, soft_wrap=True)


_board = Board()


@contextmanager
def stage(what: str, total: int) -> Iterator[Stage]:
    """A stage of so many steps, questions, texts; ``what``: their name, in the plural."""
    opened = Stage(what, total)
    _board.enter(opened)
    try:
        yield opened
    finally:
        _board.leave(opened)


def each(what: str, steps: Sequence[T]) -> Iterator[T]:
    """The elements, one after the other, as a stage."""
    with stage(what, len(steps)) as opened:
        for step in steps:
            yield step
            opened.advance()


def describe(metrics: dict[str, Any]) -> str:
    """Losses and norms in one line: ``forget 0.53  retain 0.002  norm 1.2 of 6.5``."""
    parts = [
        f"{key.removesuffix('_loss')} {metrics[key]:.4f}" for key in ("forget_loss", "retain_loss") if key in metrics
    ]
    if "norm_forget_updated" in metrics:
        parts.append(f"norm {metrics['norm_forget_updated']:.2f} of {metrics['steer']:g}")
    return "  ".join(parts)


@contextmanager
def attack_progress(total: int) -> Iterator[Callable[[str, bool], None]]:
    """The attack at work, of ``total``; gives the function that shows it, or (True) its end, which stays on screen."""
    with stage("attacks", total) as opened:

        def show(what: str, ended: bool) -> None:
            opened.advance(int(ended), "" if ended else what)
            if ended:
                _board.say(f"attack {int(opened.done)}/{total}  {what}")

        yield show


@contextmanager
def training_progress(total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar over ``total`` steps; gives the function that shows a step's losses and norms, the last ones for good."""
    with stage("steps", total) as opened:

        def update(metrics: dict[str, Any]) -> None:
            opened.advance(note=describe(metrics))
            if opened.done == total:
                _board.say(f"step {total}/{total}  {opened.note}")

        yield update
