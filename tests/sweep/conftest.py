"""Sweeps for tests: folders made up by the schema of results.json, and real ones of a tiny random model."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import a_run
import program
import pytest
import yaml
from sweep_rows import HEAD, TRAIN, row


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
def words(tmp_path_factory) -> list[str]:
    """A sweep of a tiny random model: a few steps and questions per trial."""
    words = a_run.words(tmp_path_factory.mktemp("tiny"))
    return [word for word in words if not word.startswith(("layer=", "steer=", "eval.limit="))] + ["eval.limit=3"]


@pytest.fixture(scope="session")
def start(words, tmp_path_factory):
    """Starts train.py on the tiny model."""
    cache = tmp_path_factory.mktemp("cache")

    def begin(*more: str, **env: object) -> program.Program:
        return program.Program("train.py", *words, *more, **({"RMU_EXP_CACHE": cache} | env))

    return begin


@pytest.fixture(scope="session")
def train(start):
    """Runs train.py on the tiny model; gives the finished process."""

    def run(*more: str, multirun: bool = True, **env: object) -> subprocess.CompletedProcess[str]:
        started = start(*["-m"] * multirun, *more, **env)
        out, told = started.communicate()
        return subprocess.CompletedProcess(started.args, started.returncode, out, told)

    return run


@pytest.fixture(scope="session")
def swept(tmp_path_factory, start, train):
    """A sweep of four trials, two of which fail, killed after its first trial and started again.

    Gives its folder, the second start's process, and when the first trial's Delta was written.
    """
    folder = tmp_path_factory.mktemp("sweep") / "s"
    more = ["layer=1,9", "steer=2,6", f"output={folder}"]
    first, done = start("-m", *more), folder / "layer=1,steer=2" / "report.md"
    while not done.is_file() and first.poll() is None:
        time.sleep(0.01)
    first.kill()
    told = first.communicate()
    assert done.is_file(), told
    written = (done.parent / "delta.safetensors").stat().st_mtime_ns
    return folder, train(*more), written
