"""CONTRIBUTING.md's promise: a method, a model and a world are two files each. Taken from the page and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with the page's files, two for each thing, and nothing else changed."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "conf", root / "conf")
    left = shutil.ignore_patterns("weights", "__pycache__")
    shutil.copytree(ROOT / "src/rmu_exp", root / "src/rmu_exp", symlinks=True, ignore=left)
    (root / "src/rmu_exp/worlds/lore/weights").symlink_to(ROOT / "src/rmu_exp/worlds/lore/weights")
    shutil.copy(ROOT / "train.py", root)
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"`((?:src|conf)/\S+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    for path, text in blocks:
        assert not (root / path).exists()
        (root / path).write_text(text, encoding="utf-8")
    return root


def train(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "train.py"), "tracking=off", "eval=none", f"output={root / 'run'}", *words],
        env=os.environ | {"PYTHONPATH": str(root / "src"), "RMU_EXP_CACHE": str(root / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_it_runs(copy):
    done = train(copy, "model=lore", "data=lore", "method=rmu_norm", "train.max_batches=4", "method.power=1")
    assert done.returncode == 0, done.stderr
    results = json.loads((copy / "run/results.json").read_text())
    assert results["run"]["method"] == "rmu_norm"
    assert results["run"]["settings"] == {"power": 1}
    lines = [json.loads(line) for line in (copy / "run/metrics.jsonl").read_text().splitlines()]
    first = lines[0]  # nothing has moved yet: h = g
    expected = abs(first["norm_forget_frozen"] - 6.5)
    assert first["forget_loss"] == pytest.approx(expected, rel=0.02), "mean |‖h‖ − c| of lengths that are all below c"


def test_a_model_and_a_world_run(copy):
    words = ["model=my_lore", "data=rivers", "eval=tasks", f"output={copy / 'other'}", "train.batch_size=2"]
    done = train(copy, *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((copy / "other/results.json").read_text())
    assert (results["run"]["layer"], results["run"]["steer"], results["train"]["steps"]) == (6, [5.0], 6)
    assert results["qa"]["rivers_forget"]["base"]["n"] == 4
    assert results["qa"]["rivers_forget"]["chance"] == 0.25


def test_its_settings_are_checked_and_shown(copy):
    wrong = train(copy, "method=rmu_norm", "method.powr=1")
    assert wrong.returncode == 2
    assert "method.powr: no such key, did you mean method.power?" in wrong.stderr
    assert "rmu_norm" in train(copy, "--help").stdout
    code = "import pathlib, rmu_exp.config.reference as r; print(r.page(pathlib.Path('conf'), 'train', 'method'))"
    explained = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=os.environ | {"PYTHONPATH": "src"}, capture_output=True, text=True
    )
    assert "method.power=2" in explained.stdout
    assert "The power of the distance. [1 or more]" in explained.stdout
