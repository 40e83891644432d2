"""A HOME and XDG folders that cannot be written to (cases 53): what is moved, and a whole run under it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from rmu_exp.support.files import moved_homes

ROOT = Path(__file__).parents[2]
BELOW_A_FILE = "/dev/null/home"  # cannot be made, not even by root


def test_only_what_cannot_be_written_to_is_moved(tmp_path, monkeypatch):
    for key in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HF_HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert moved_homes() == {}
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", BELOW_A_FILE)
    root = tmp_path / f"rmu_exp-{os.getuid()}"
    assert moved_homes() == {"XDG_CACHE_HOME": f"{root}/.cache"}
    monkeypatch.setenv("HOME", BELOW_A_FILE)
    assert moved_homes()["XDG_DATA_HOME"] == f"{root}/.local/share"
    assert root.stat().st_mode & 0o77 == 0

    monkeypatch.setattr(os, "getuid", lambda: 12345)  # somebody else has made a folder by that name
    (tmp_path / "rmu_exp-12345").mkdir()
    assert not moved_homes()["XDG_CACHE_HOME"].startswith(str(tmp_path / "rmu_exp-12345/"))


def test_a_run_with_tracking_and_figures_works_without_a_home(tmp_path):
    pytest.importorskip("wandb")
    tiny.mistral(tmp_path / "model", layers=2)
    for name, seed in (("forget", 1), ("retain", 2)):
        (tmp_path / f"{name}.txt").write_text("\n".join(tiny.texts(12, seed)))
    words = ["model=local", f"model.path={tmp_path / 'model'}", "data=local", "layer=0", "steer=6", "alpha=10"]
    words += [f"data.forget=[{tmp_path / 'forget.txt'}]", f"data.retain=[{tmp_path / 'retain.txt'}]", "model.threads=1"]
    words += ["train.max_batches=1", "eval.tasks=[lore_forget]", "eval.limit=2", "tracking.mode=offline"]
    ours = ("XDG_", "HF_", "WANDB_", "MPL", "RMU_EXP_", "TMPDIR")
    env = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    env |= {"HOME": BELOW_A_FILE, "XDG_CACHE_HOME": BELOW_A_FILE, "PYTHONPATH": str(ROOT / "src")}
    env |= {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *words, f"output={tmp_path / 'run'}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "cannot be written" in line or "W&B failed" in line]
    assert said == [done.stderr.splitlines()[0]], done.stderr
    assert said[0].startswith("rmu_exp: your folders for XDG_CACHE_HOME, XDG_CONFIG_HOME, XDG_DATA_HOME")
    assert (tmp_path / "run/plots/accuracy.png").is_file()
    (tracked,) = (tmp_path / "run/wandb").glob("offline-run-*/*.wandb")
    content = tracked.read_bytes()
    for part in (b"tables/accuracy", b"plots/accuracy"):
        assert part in content
    assert json.loads((tmp_path / "run/results.json").read_text())["qa"]
