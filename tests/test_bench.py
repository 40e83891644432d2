"""The programs behind docs/performance.md, at a size that says nothing about speed: like is compared with like."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCH = Path(__file__).parents[1] / "bench"
TINY = "--hidden 64 --vocab 200 --layers 9 --length 12 --rounds 1"
Program = Callable[..., str]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs a program in this process, and gives what it prints."""

    def run(program: str, words: str) -> str:
        monkeypatch.syspath_prepend(str(BENCH))
        monkeypatch.setattr(sys, "argv", [str(BENCH / program), *words.split()])
        runpy.run_path(str(BENCH / program), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("lengths", ["equal", "paragraphs"])
def test_step(lengths: str, bench: Program) -> None:
    out = bench("step.py", f"{TINY} --lengths {lengths}")
    ours, theirs = map(float, re.findall(r"counted.* ours ([\d.]+) GFLOP, theirs ([\d.]+)", out)[0])
    assert 0 < ours < theirs
    assert re.search(r"ratio +[\d.]+x on the clock, [\d.]+x of CPU time", out)
    assert "s by its operations" in out


def test_a_step_whose_attention_torch_cannot_count(bench: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: FlopCounterMode) -> int:
        raise AssertionError("8 heads, 32 heads")  # as older versions do of grouped attention

    monkeypatch.setattr(FlopCounterMode, "get_total_flops", refuse)
    out = bench("step.py", TINY)
    assert "not counted: FlopCounterMode" in out
    assert re.search(r"ratio +[\d.]+x on the clock", out)


def test_peak_memory() -> None:
    """In processes of their own: a child's largest resident set counts what its parent held when it began."""
    words = [*TINY.split(), "--memory"]
    done = subprocess.run([sys.executable, str(BENCH / "step.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(n.replace(",", "")) > 0 for n in re.findall(r"(?:ours|theirs) +([\d,]+) MB", done.stdout))


def test_one_loop_of_a_mixture_alone(bench: Program) -> None:
    assert re.search(r"ours: \d+ bytes", bench("step.py", f"{TINY} --experts 4 --only ours"))


def test_trials(bench: Program) -> None:
    assert "equal bit for bit" in bench("trials.py", f"{TINY} --steps 2")


def test_questions(bench: Program) -> None:
    out = bench("questions.py", "--hidden 64 --layers 2 --vocab 500 --questions 6 --subjects 2 --repeats 1")
    assert out.count("same choices: yes") == 2
    assert all(float(apart) < 1e-4 for apart in re.findall(r"differ by at most (\S+);", out))


def test_questions_to_a_real_model(bench: Program) -> None:
    out = bench("questions.py", "--model lore --questions 4 --repeats 1")
    assert "zero-shot, without letters: 28 questions" in out
    assert "same choices: yes" in out


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "chat"])
def test_a_run_prints_what_lm_eval_prints(way: str, tmp_path: Path) -> None:
    """On two tasks of the model with a chat template; the program without --tasks compares every kind."""
    words = [str(tmp_path), "--way", way, "--limit", "4", "--tasks", "local_nq_open,local_group"]
    done = subprocess.run([sys.executable, str(BENCH / "as_lm_eval.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "; 0 things differ" in done.stdout


@pytest.mark.slow
def test_what_a_gpu_would_be_asked_runs(tmp_path: Path) -> None:
    """At sizes that say nothing, on the CPU; without a GPU the whole is refused in one line."""
    file = tmp_path / "gpu.json"
    words = [sys.executable, str(BENCH / "gpu.py"), str(file)]
    done = subprocess.run([*words, "--tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["status"] for row in rows.values()] == [0] * 7
    said = {name: "\n".join(row["printed"]) for name, row in rows.items()}
    *programs, whole = said.values()
    assert all("a step" in text or "engine" in text or "MB" in text for text in programs)
    assert re.search(r"kl: [\d.e-]+\n.*relearn seconds: [\d.]+", whole, re.DOTALL)
    if not torch.cuda.is_available():
        refused = subprocess.run(words, capture_output=True, text=True)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
