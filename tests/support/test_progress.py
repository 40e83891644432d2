"""Stages: what a log gets, what a terminal gets."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rmu_exp.support import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> list:
    """The clock, which a test moves, and what is written where no terminal is."""
    clock, out = [1000.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=out, width=200, force_terminal=terminal[0]))
    terminal = [False]
    monkeypatch.setattr(progress, "_board", progress.Board())
    return [clock, out, terminal]


def test_a_log_gets_a_line_in_half_a_minute_and_no_control_characters(screen):
    clock, out, _ = screen
    with progress.attack_progress(2) as show:
        show("gcg", False)
        for _ in progress.each("search steps", range(20)):
            clock[0] += 10
        show("gcg: 20.0 → 30.0 %", True)
    lines = out.getvalue().splitlines()
    assert lines[:2] == [
        "attacks 0/2 gcg · search steps 3/20, 2:50 left",
        "attacks 0/2 gcg · search steps 6/20, 2:20 left",
    ]
    assert len(lines) == 6 + 1
    assert lines[-1] == "attack 1/2  gcg: 20.0 → 30.0 %"
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_training_leaves_its_last_step(screen):
    _, out, _ = screen
    metrics = {"forget_loss": 1.5, "norm_forget_updated": 2.0, "steer": 6.5}
    with progress.training_progress(3) as show:
        for _ in range(3):
            show(metrics)
    assert out.getvalue() == "step 3/3  forget 1.5000  norm 2.00 of 6.5\n"


def test_a_terminal_gets_a_bar_per_open_stage_with_its_total(screen):
    clock, out, terminal = screen
    terminal[0] = True
    with progress.stage("attacks", 3) as outer:
        outer.advance(1, "relearn [8]")
        with progress.stage("questions", 500) as inner:
            clock[0] += 2
            inner.advance(120)
            progress._board.bars.refresh()
        shown = out.getvalue()
    for part in ("attacks", "1/3", "relearn [8]", "questions", "120/500"):
        assert part in shown
    assert progress._board.bars is None


def test_a_stage_that_fails_is_left(screen):
    with pytest.raises(ValueError, match="x"), progress.stage("a", 1):
        raise ValueError("x")
    assert not progress._board.open
