"""The programs behind docs/performance.md, at a size that says nothing about speed: like is compared with like."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
TINY = ["--hidden", "64", "--vocab", "200", "--layers", "9", "--length", "12", "--rounds", "1"]


def bench(program: str, *words: str) -> str:
    done = subprocess.run([sys.executable, str(BENCH / program), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("lengths", ["equal", "paragraphs"])
def test_step(lengths: str) -> None:
    out = bench("step.py", *TINY, "--lengths", lengths)
    ours, theirs = map(float, re.findall(r"counted.* ours ([\d.]+) GFLOP, theirs ([\d.]+)", out)[0])
    assert 0 < ours < theirs
    assert re.search(r"ratio +[\d.]+x on the clock, [\d.]+x of CPU time", out)
    assert "floor of ours" in out


def test_peak_memory() -> None:
    out = bench("step.py", *TINY, "--memory")
    assert all(int(n.replace(",", "")) > 0 for n in re.findall(r"(?:ours|theirs) +([\d,]+) MB", out))


def test_one_loop_of_a_mixture_alone() -> None:
    assert re.search(r"ours: \d+ bytes", bench("step.py", *TINY, "--experts", "4", "--only", "ours"))


def test_trials() -> None:
    assert "equal bit for bit" in bench("trials.py", *TINY, "--steps", "2")


def test_questions() -> None:
    size = [
        "--hidden",
        "64",
        "--layers",
        "2",
        "--vocab",
        "500",
        "--questions",
        "6",
        "--subjects",
        "2",
        "--repeats",
        "1",
    ]
    out = bench("questions.py", *size)
    assert out.count("same choices: yes") == 2
    assert all(float(apart) < 1e-4 for apart in re.findall(r"differ by at most (\S+);", out))
