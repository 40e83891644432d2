"""W&B's client against real servers that are broken: the run has its results, in bounded time, and one line tells."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import program
import pytest
import wandb_file
from wandb_server import GONE, KEY, SILENT, SLOW, WandbServer

INIT, WAIT = 8, 20  # seconds, in place of the usual 30 and 60
SLACK = 45  # importing, and all others at the same time on one core; unbounded would be hours
TRACK = """
import json, sys, time
from pathlib import Path
from rmu_exp.record.results import Results, RunInfo
from rmu_exp.settings import Tracking
from rmu_exp.tracking import open_tracker, weights_and_biases
weights_and_biases.INIT_SECONDS = INIT
folder, began = Path(sys.argv[1]), time.perf_counter()
tracker = open_tracker(Tracking("wandb", wait=WAIT), folder, {"layer": 7}, "name", [])
begun = time.perf_counter()
for step in range(1, 21):
    tracker.log({"step": step, "loss": 1 / step}, step)
delta = folder / "delta.safetensors"
delta.write_bytes(b"changed tensors")
ran = RunInfo(model="m", topics=["a"], method="rmu", layer=7, steer=[6.5], alpha=[1], seed=0)
tracker.finish(Results(run=ran), [], folder)
print(json.dumps({"init": begun - began, "end": time.perf_counter() - begun, "mode": tracker.mode}))
""".replace("= INIT", f"= {INIT}").replace("=WAIT)", f"={WAIT})")
FAULTS: dict[str, tuple[int | str, str | None]] = {
    "not there": (GONE, None),
    "accepts and says nothing": (SILENT, None),
    "refuses the key": (401, None),
    "forbids": (403, None),
    "is broken": (500, None),
    "goes away": (GONE, "UpsertBucket"),
    "falls silent": (SILENT, "UpsertBucket"),
    "takes the key back": (401, "UpsertBucket"),
    "breaks down": (500, "UpsertBucket"),
    "gets slow": (SLOW, "UpsertBucket"),
}
QUICK = ("not there", "refuses the key", "goes away", "takes the key back")


@dataclass
class Tracked:
    """How a process that tracks a run ended."""

    folder: Path
    told: list[str]
    times: dict
    after: float  # seconds from the end of tracking to the end of the process
    server: WandbServer

    @property
    def steps(self) -> list[int]:
        """Steps in W&B's file in the folder that is to be synced."""
        (file,) = Path(self.told[0].split("wandb sync ")[1]).glob("run-*.wandb")
        return [line["step"] for line in wandb_file.logged(file)[0] if "train/loss" in line]


def tracking(folder: Path) -> Path:
    """The program, beside a folder that it tracks."""
    file = folder.with_suffix(".py")
    file.write_text(TRACK)
    return file


def track(folder: Path, fault: int | str | None, after: str | None) -> Tracked:
    folder.mkdir(parents=True)
    with WandbServer() as server:
        if fault is not None:
            server.fail(fault, after)
        began = time.perf_counter()
        done = program.run(tracking(folder), folder, env=server.env())
        took = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout.splitlines()[-1])
    told = [line for line in done.stderr.splitlines() if line.strip()]
    return Tracked(folder, told, times, took - times["init"] - times["end"], server)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Tracked]:
    """Each fault's run, four side by side: they wait more than they compute."""
    place = tmp_path_factory.mktemp("tracked")
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {given["fault"] for given in chosen if given.get("fault") in FAULTS}
    with ThreadPoolExecutor(4) as pool:
        runs = {f: pool.submit(track, place / f.replace(" ", "_"), *FAULTS[f]) for f in FAULTS if f in wanted}
        return {f: run.result() for f, run in runs.items()}


@pytest.mark.parametrize("fault", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAULTS])
def test_tracking_ends_in_time_with_all_steps_in_the_runs_folder(tracked: dict[str, Tracked], fault: str) -> None:
    found = tracked[fault]
    (line,) = found.told
    began_well = FAULTS[fault][1] is not None
    assert line.startswith("W&B failed (" if began_well else "W&B is offline (")
    assert "upload later with: wandb sync " in line
    assert (found.folder / "wandb") in Path(line.split("wandb sync ")[1]).parents
    assert KEY not in line
    assert found.times["mode"] == ("online" if began_well else "offline")
    assert found.times["init"] < INIT + SLACK
    assert found.times["end"] + found.after < WAIT + SLACK
    assert found.steps == list(range(1, 21))


def test_a_server_that_works_gets_every_step(tmp_path: Path) -> None:
    found = track(tmp_path / "run", None, None)
    assert found.told == []
    assert [line["step"] for line in found.server.history if "train/loss" in line] == list(range(1, 21))
    assert "CreateArtifact" in found.server.asked


def test_a_folder_that_wandb_cannot_use_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "wandb").write_text("a file where W&B wants a folder")
    done = program.run(tracking(tmp_path / "run"), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B")
