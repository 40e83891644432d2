"""A hub that refuses, falls silent or sends wrong bytes: one line each, nothing half-kept, the next start goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import standins
import tiny
from hub import Hub
from small_disk import mounted, remount

ROOT = Path(__file__).parent.parent
RUN = ["model=hf", "data=local", "data.forget=[a.txt]", "data.retain=[a.txt]", "layer=2", "steer=1", "alpha=1"]
RUN += ["train.max_batches=2", "train.batch_size=2", "eval=none", "tracking=off", "output=run"]
ASK = """
import json, sys, time
from rmu_exp.data import sources
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.evaluation.catalogue import find, loading
from rmu_exp.model.checkpoint import locate

def model(name):
    checkpoint = locate(name)
    checkpoint.fetch()
    return checkpoint.digest()

def corpus(name):
    return len(sources.read(name).texts)

def questions(name):
    with loading([name]):
        return len(find([name]).load([name])["tasks"])

for what, name in json.loads(sys.argv[1]):
    began = time.perf_counter()
    try:
        answer = {"gave": {"model": model, "corpus": corpus, "questions": questions}[what](name)}
    except (UserError, RunError) as error:
        answer = {type(error).__name__: str(error)}
    print(json.dumps(answer | {"seconds": time.perf_counter() - began}), flush=True)
"""
MODELS = ("busy", "broken", "hiccup", "silent", "stalls", "damaged")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = tmp_path_factory.mktemp("repositories")
    with Hub() as hub:
        for seed, name in enumerate(MODELS):
            hub.add(f"org/{name}", tiny.mistral(made / name, layers=3, seed=seed))
        for name in ("busy", "broken", "damaged"):
            rows = {"default": {"train": standins.texts([f"the river and {name} buttons"] * 4)}}
            hub.add(f"org/{name}-texts", standins.write(made / f"{name}-texts", rows), kind="dataset")
        hub.add(standins.WMDP, standins.question_sets(made)[standins.WMDP], kind="dataset")
        yield hub


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield hub.env(tmp_path / "home") | {"HF_HUB_ETAG_TIMEOUT": "2", "RMU_EXP_CACHE": str(tmp_path / "cache")}
    hub.faults.clear()
    hub.refusals.clear()
    hub.damaged.clear()


def ask(env: dict[str, str], *cases: tuple[str, str]) -> list[dict]:
    command = [sys.executable, "-c", ASK, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_errors_silence_and_wrong_bytes(hub, env, tmp_path):
    hub.refuse("org/busy", 429)
    hub.refuse("org/broken", 500)
    hub.refuse("org/hiccup/resolve", 503, times=1)
    hub.refuse("org/silent", 0, stall=30)
    hub.fail("org/stalls/model.safetensors", at=2000, stall=30)
    hub.damage("org/damaged/model.safetensors")
    cases = [("model", f"org/{name}") for name in MODELS]
    cases += [("corpus", "org/busy-texts"), ("corpus", "org/broken-texts")]
    busy, broken, hiccup, silent, stalls, damaged, busy_texts, broken_texts = found = ask(env, *cases)
    assert "org/busy: the hub answered 429" in busy["RunError"]
    assert "org/broken: the hub answered 500" in broken["RunError"]
    assert "org/busy-texts: the hub answered 429" in busy_texts["RunError"]
    assert "org/broken-texts: the hub answered 500" in broken_texts["RunError"]
    assert "org/hiccup: the hub answered 503" in hiccup["RunError"]
    assert "org/silent: the connection broke off" in silent["RunError"]
    assert "org/stalls: the connection broke off" in stalls["RunError"]
    assert "model.safetensors arrived damaged" in damaged["RunError"]
    assert not [line for answer in found for line in answer.values() if "\n" in str(line)]
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert max(answer["seconds"] for answer in found) < 60

    for broken_things in (hub.faults, hub.refusals, hub.damaged):
        broken_things.clear()
    again = ask(env, *cases)
    assert len({answer["gave"] for answer in again[: len(MODELS)]}) == len(MODELS)
    assert [answer["gave"] for answer in again[len(MODELS) :]] == [4, 4]


def test_questions_that_do_not_come(hub, env):
    hub.refuse("cais/wmdp/", 500)
    (refused,) = ask(env, ("questions", "wmdp_bio"))
    assert "cais/wmdp: the hub answered 500" in refused["RunError"]
    hub.refusals.clear()
    hub.fail("wmdp-bio/test-00000-of-00001.parquet", at=50)
    (broken,) = ask(env, ("questions", "wmdp_bio"))
    assert "RunError" in broken
    hub.faults.clear()
    (whole,) = ask(env, ("questions", "wmdp_bio"))
    assert whole["gave"] == 1


def train(env: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (cwd / "a.txt").write_text("the river\n\n" * 8)
    return subprocess.run(
        [sys.executable, ROOT / "train.py", *RUN, *words], env=env, cwd=cwd, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_a_run_whose_weights_break_off_goes_on_by_the_same_command(hub, env, tmp_path):
    hub.fail("org/stalls/model.safetensors", at=2000)
    began = time.perf_counter()
    done = train(env, tmp_path, "model.name=org/stalls")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "org/stalls: the connection broke off" in line
    assert time.perf_counter() - began < 60
    hub.faults.clear()
    done = train(env, tmp_path, "model.name=org/stalls")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("what", [("model.name=org/hiccup",), ("model.name=org/busy", "data.retain=[org/busy-texts]")])
def test_a_hub_cache_on_a_full_disk(hub, env, tmp_path, what):
    with mounted(tmp_path / "small", "36k" if len(what) == 1 else "100k") as place:
        env = env | {"HF_HOME": str(place)}
        done = train(env, tmp_path, *what)
        assert done.returncode == 1, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "no space left on" in done.stderr
        remount(place, "size=64m")
        done = train(env, tmp_path, *what)
        assert done.returncode == 0, done.stderr
