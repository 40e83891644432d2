"""A run that is killed, stopped or started twice: nothing is lost, and the end is the one of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from program import Program

from rmu_exp.cli import job
from rmu_exp.settings import Run
from rmu_exp.support.signals import Stopped

SMALL = """model=lore data=lore layer=7 steer=6.5 tracking=off model.threads=1 train.max_batches=16 train.save_every=0
    eval.tasks=[lore_forget,lore_general] eval.limit=8 eval.perplexity=lore:herbs attacks=[relearn,quantise]
    attacks.relearn.samples=[4] attacks.relearn.steps=4 attacks.quantise.bits=[4]"""
ASIDE = ("seconds", "seconds_saving", "seconds_measuring", "seconds_per_step")
ASIDE += ("peak_memory_bytes", "command", "save_every")


def start(folder: Path, *words: str) -> Program:
    return Program("train.py", *(words or (*SMALL.split(), f"output={folder}")))


def resume(folder: Path) -> Program:
    """As a user would: by resume=, or by the same command where nothing had been written yet."""
    return start(folder, f"resume={folder}") if (folder / "config.yaml").is_file() else start(folder)


def finish(process: Program) -> None:
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ASIDE}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def outcome(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that is neither a timing nor how it was started."""
    results = json.dumps(timeless(json.loads((folder / "results.json").read_text()))).replace(str(folder), "")
    metrics = [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = {"results": results, "metrics": metrics, "answers": (folder / "answers.jsonl").read_bytes()}
    return kept | {"delta": (folder / "delta.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own, so that the base is asked anew under interruption as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["RMU_EXP_CACHE"])


@pytest.fixture(scope="module")
def undisturbed(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    finish(start(folder))
    return outcome(folder), time.monotonic() - began


def wait_for(file: Path, process: Program) -> None:
    """Until there is something in a file."""
    deadline = time.monotonic() + 120
    while not (file.is_file() and file.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_each_stage(undisturbed, cache, tmp_path):
    """SIGKILL while training and inside of an attack."""
    folder = tmp_path / "run"
    for file in cache.glob("base_answers/*"):
        file.unlink()
    for name in ("training.safetensors", "attack-relearn.jsonl"):
        process = resume(folder)
        wait_for(folder / "state" / name, process)
        process.kill()
        process.communicate()
    assert "relearn" not in json.loads((folder / "results.json").read_text()).get("attacks", {})
    finish(resume(folder))
    assert outcome(folder) == undisturbed[0]
    assert not (folder / "state").exists()
    log = (folder / "run.log").read_text()
    assert "resuming after step" in log


def refuse_second(folder: Path) -> None:
    """A run into a folder that another one is at."""
    second = start(folder)
    out, errors = second.communicate(timeout=60)
    assert second.returncode == 2, out
    assert len(errors.splitlines()) == 1
    assert "another process works in" in errors


@pytest.mark.parametrize(
    ("number", "sign"),
    [
        (signal.SIGTERM, "metrics.jsonl"),
        pytest.param(signal.SIGINT, "state/questions-unlearned.jsonl", marks=pytest.mark.slow),
    ],
)
def test_a_stop_that_is_asked_for(undisturbed, tmp_path, number, sign):
    """What is done is kept, one line says how to go on, and the end is that of an undisturbed run."""
    folder = tmp_path / "run"
    words = [*SMALL.split(), "train.save_every=null", f"output={folder}"]
    process = start(folder, *words)
    wait_for(folder / "metrics.jsonl", process)
    if number == signal.SIGTERM:
        refuse_second(folder)
    wait_for(folder / sign, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].endswith(f"resume={folder} resumes")
    assert "Traceback" not in errors
    assert (folder / "state").is_dir()
    finish(resume(folder))
    assert outcome(folder) == undisturbed[0]


def test_a_stop_before_there_is_anything_to_go_on_with(tmp_path, capsys):
    """``resume=`` would find nothing there."""

    def asked() -> Run:
        raise Stopped

    folder = tmp_path / "run"
    folder.mkdir()
    assert job.execute(asked, folder) == 1
    assert capsys.readouterr().err == "rmu_exp: stopped before anything was done; the same command starts it\n"
    (folder / "config.yaml").touch()
    assert job.execute(asked, folder) == 1
    assert capsys.readouterr().err.endswith(f"resume={folder} resumes\n")


@pytest.mark.parametrize(("more", "why"), [([], "no run's folder"), (["layer=3"], "goes alone")])
def test_resume_is_refused_in_one_line(more, why, capsys):
    assert job.resume(["resume=nowhere", *more], judging=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line


@pytest.mark.slow
def test_killed_fifty_times_at_random(undisturbed, cache, tmp_path):
    """SIGKILL at 50 random moments, resumed each time; every run that comes to its end is the undisturbed one."""
    expected, seconds = undisturbed
    chance, kills, ends = random.Random(0), 0, 0
    while kills < 50:
        folder = tmp_path / f"run{ends}"
        for file in cache.glob("base_answers/*"):
            file.unlink()
        began = time.monotonic()
        while kills < 50:
            process = resume(folder)
            try:
                process.communicate(timeout=chance.uniform(0, seconds))
                seconds = min(seconds, time.monotonic() - began)  # kills are to hit runs, not their ends
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        finish(resume(folder))
        ends += 1
        assert outcome(folder) == expected, f"after {kills} kills"
        print(f"{kills} kills, {ends} runs", flush=True)
