"""Clocks that stand still and jump, and folders that two runs want."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ["model=lore", "data=lore", "layer=7", "train.max_batches=2", "train.batch_size=4", "eval=none", "tracking=off"]
JUMPING = """
import datetime, runpy, sys, time

real, calls = time.time, iter(range(10**9))
time.time = lambda: real() + (3600 if next(calls) % 2 else -3600)  # forwards and backwards with every look

class Standing(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 29, 2, 30, 0, tzinfo=tz)

datetime.datetime = Standing
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path(TRAIN, run_name="__main__")
""".replace("TRAIN", repr(str(ROOT / "train.py")))


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    env = os.environ | {"RMU_EXP_CACHE": str(cwd / ".cache")}
    command = [sys.executable, "-c", JUMPING, *WORDS, *words]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_runs_of_the_same_second_have_folders_of_their_own_whatever_the_clock_does(tmp_path):
    first, second = start(tmp_path), start(tmp_path, "seed=1")
    for process in (first, second):
        _, told = process.communicate(timeout=240)
        assert process.returncode == 0, told
    folders = sorted((tmp_path / "outputs" / "2026-03-29").iterdir())
    assert [f.name for f in folders] == ["02-30-00", "02-30-00-2"]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert {found["run"]["seed"] for found in results} == {0, 1}
    for folder, found in zip(folders, results, strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(0 < line["seconds"] < 240 for line in lines)
        assert 0 < found["train"]["seconds"] < 240


@pytest.mark.slow
def test_a_second_start_in_one_folder_is_refused_and_the_first_is_unharmed(tmp_path):
    first = start(tmp_path, "output=run", "train.max_batches=400")
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = start(tmp_path, "output=run", "train.max_batches=400")
    out, told = second.communicate(timeout=120)
    assert (second.returncode, out) == (2, "")
    (line,) = told.splitlines()
    assert "another process works in run" in line or f"another process works in {tmp_path / 'run'}" in line
    _, told = first.communicate(timeout=400)
    assert first.returncode == 0, told
    alone = start(tmp_path, "output=alone", "train.max_batches=400")
    assert alone.wait(timeout=400) == 0
    assert (tmp_path / "run/delta.safetensors").read_bytes() == (tmp_path / "alone/delta.safetensors").read_bytes()
