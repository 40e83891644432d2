"""What a sweep says after each trial."""

from __future__ import annotations

import os
from pathlib import Path

from sweep_rows import results, row

from rmu_exp.sweep import trials
from rmu_exp.sweep.trial import so_far


def finish(folder: Path, right: int, when: float) -> None:
    qa = {"f": row(right, 100) | {"role": "forget"}, "g": row(90, 100) | {"role": "general"}}
    results(qa=qa).save(folder / "results.json")
    (folder / "report.md").write_text("")
    os.utime(folder / "results.json", (when, when))


def test_how_many_are_over_time_left_and_the_best(tmp_path):
    for number, name in enumerate("abcdef"):
        (tmp_path / name).mkdir()
        trials.plan(tmp_path / name, number, {"layer": number})
    finish(tmp_path / "a", 60, 1000)
    best = "best so far {} (forget lost less general lost: {} points)"
    assert so_far(tmp_path / "a", 300) == f"trial a: 1 of 6 are over; about 25 min left; {best.format('a', '30.0')}"
    finish(tmp_path / "b", 40, 1120)
    finish(tmp_path / "c", 80, 1240)  # two minutes apart, however long each takes
    assert so_far(tmp_path / "c", 300) == f"trial c: 3 of 6 are over; about 6 min left; {best.format('b', '50.0')}"
    assert "3 of 20 are over; about 34 min left" in so_far(tmp_path / "c", 300, 20)
