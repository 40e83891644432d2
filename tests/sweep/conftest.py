"""Sweeps for tests: folders made up by the schema of results.json, and real ones of a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import a_run
import pytest
import yaml
from sweep_rows import HEAD, TRAIN, row

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def make_trial(tmp_path):
    """Makes up one trial's folder in ``tmp_path``; gives it."""

    def make(settings: dict, forget: int | None = None, general: int | None = None, n: int = 100, **more) -> Path:
        folder = tmp_path / ",".join(f"{k}={v}" for k, v in settings.items())
        folder.mkdir()
        number = len(list(tmp_path.iterdir()))
        (folder / "trial.json").write_text(json.dumps({"number": number, "settings": settings}))
        (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"digest": folder.name, "seed": 0}))
        if forget is not None and general is not None:
            qa = {"lore_forget": row(forget, n), "lore_general": row(general, n)}
            qa = {name: {"tasks": [name + "_a"]} | measured for name, measured in qa.items()}
            results = HEAD | {"qa": qa, "train": TRAIN} | more
            (folder / "results.json").write_text(json.dumps(results))
            (folder / "report.md").write_text("")
        return folder

    return make


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """The words of a sweep of a tiny random model, a few steps and questions a trial, and its environment."""
    words = a_run.words(tmp_path_factory.mktemp("tiny"))
    words = [word for word in words if not word.startswith(("layer=", "steer=", "eval.limit="))] + ["eval.limit=3"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"RMU_EXP_CACHE": str(tmp_path_factory.mktemp("cache")), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(ROOT / "src")
    return words, env


@pytest.fixture(scope="session")
def train(command):
    """Runs train.py on the tiny model; gives the finished process."""
    words, env = command

    def run(*more: str, multirun: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        flag = ["-m"] if multirun else []
        line = [sys.executable, str(ROOT / "train.py"), *flag, *words, *more]
        return subprocess.run(line, env=env | extra, cwd=ROOT, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def swept(tmp_path_factory, command, train):
    """A sweep of four trials, two of which fail, killed after its first trial and started again.

    Gives its folder, the second start's process, and when the first trial's Delta was written.
    """
    folder = tmp_path_factory.mktemp("sweep") / "s"
    more = ["layer=1,9", "steer=2,6", f"output={folder}"]
    words, env = command
    log = folder.parent / "first.log"
    with log.open("w") as file:
        first = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "-m", *words, *more], env=env, stdout=file, stderr=file
        )
        done = folder / "layer=1,steer=2" / "report.md"
        while not done.is_file() and first.poll() is None:
            pass
        first.kill()
        first.wait()
    assert done.is_file(), log.read_text()
    written = (done.parent / "delta.safetensors").stat().st_mtime_ns
    return folder, train(*more), written
