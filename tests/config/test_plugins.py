"""Methods of other distributions: entry points name the packages of their modules and of their configurations."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POINTS = "[rmu_exp.method]\nother = other_pkg.methods\n\n[rmu_exp.conf]\nother = other_pkg.conf\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with one that adds CONTRIBUTING.md's example under another name."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    module, conf = (
        re.search(rf"`{kind}/\S*rmu_norm\.{suffix}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
        for kind, suffix in (("src", "py"), ("conf", "yaml"))
    )
    files = {
        "other_pkg/__init__.py": "",
        "other_pkg/methods/__init__.py": "",
        "other_pkg/methods/other_norm.py": module,
        "other_pkg/conf/__init__.py": "",
        "other_pkg/conf/method/other_norm.yaml": conf.replace("rmu_norm", "other_norm"),
        "other_pkg-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: other-pkg\nVersion: 1.0\n",
        "other_pkg-1.0.dist-info/entry_points.txt": POINTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def program(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(site), str(ROOT / "src")])
    line = [sys.executable, "-m", "rmu_exp", *words]
    env = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(line, env=env, cwd=site, capture_output=True, text=True, timeout=240)


def train(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = ["train", "model=lore", "data=lore", "method=other_norm", "eval=none", "tracking=off", "train.max_batches=2"]
    return program(site, *line, f"output={site / 'run'}", *words)


def test_a_method_of_another_package_runs_from_any_folder(site):
    done = train(site, "method.power=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("other_norm on lore, layer 7, steer 6.5, data lore; results in ")
    run = json.loads((site / "run/results.json").read_text())["run"]
    assert (run["method"], run["settings"]) == ("other_norm", {"power": 1})


def test_help_lists_its_choices_and_settings(site):
    overview = program(site, "train", "--help").stdout
    assert re.search(r"^method=… .*\bother_norm\b.* rmu\b", overview, re.MULTILINE | re.DOTALL)
    one = program(site, "train", "--help", "method").stdout
    assert "method=other_norm                       RMU without a direction (an example): forget" in one
    assert "  method.power=2                        The power of the distance. [1 or more]" in one


def test_one_that_cannot_be_imported_is_one_line(site):
    (site / "other_pkg/methods/__init__.py").write_text("import nowhere_to_be_found\n")
    done = train(site)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "other_pkg.methods cannot be imported (ModuleNotFoundError: No module named 'nowhere_to_be_found')" in line
    assert not (site / "run").exists()
