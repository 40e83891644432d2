"""Clocks that stand still and jump, and a folder that two runs want."""

from __future__ import annotations

import json
from pathlib import Path

from program import ROOT, Program

WORDS = ["model=lore", "data=lore", "layer=7", "train.max_batches=2", "train.batch_size=4", "eval=none", "tracking=off"]
JUMPING = """
import datetime, runpy, sys, time

real, calls = time.time, iter(range(10**9))
time.time = lambda: real() + (3600 if next(calls) % 2 else -3600)  # forwards and backwards with every look

class Standing(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 29, 2, 30, 0, tzinfo=tz)

for module in list(sys.modules.values()):
    if getattr(module, "datetime", None) is Standing.__base__:
        module.datetime = Standing
runpy.run_path(TRAIN, run_name="__main__")
""".replace("TRAIN", repr(str(ROOT / "train.py")))


def start(cwd: Path, *words: str) -> Program:
    program = cwd / "train.py"
    program.write_text(JUMPING)
    return Program(program, *WORDS, *words, cwd=cwd, RMU_EXP_CACHE=cwd / ".cache")


def test_runs_of_the_same_second_have_folders_of_their_own_whatever_the_clock_does(tmp_path):
    first, second = start(tmp_path), start(tmp_path, "seed=1")
    for process in (first, second):
        _, told = process.communicate()
        assert process.returncode == 0, told
    folders = sorted((tmp_path / "outputs" / "2026-03-29").iterdir())
    assert [f.name for f in folders] == ["02-30-00", "02-30-00-2"]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert {found["run"]["seed"] for found in results} == {0, 1}
    assert len({(folder / "delta.safetensors").read_bytes() for folder in folders}) == 2
    for folder, found in zip(folders, results, strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(0 < line["seconds"] < 240 for line in lines)
        assert 0 < found["train"]["seconds"] < 240
