"""Real sweeps through the real command line: failing trials, continuing, engines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from program import ROOT

from rmu_exp.cli import entry
from rmu_exp.record import rundir
from rmu_exp.sweep import trial, trials

GOOD = "layer=1,steer=2"


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def same(a: Path, b: Path) -> None:
    assert (a / "delta.safetensors").read_bytes() == (b / "delta.safetensors").read_bytes()
    assert results(a)["qa"] == results(b)["qa"]


def test_killed_and_started_again(swept):
    folder, again, written = swept
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {
        *(GOOD, "layer=1,steer=6", "layer=9,steer=2", "layer=9,steer=6", "plots")
    }
    assert "4 trials (1 done before)" in again.stderr
    planned = ["layer=1,steer=2", "layer=1,steer=6", "layer=9,steer=2", "layer=9,steer=6"]
    assert [t.name for t in trials.read(folder)] == planned, "in the order of the command line"
    assert f"trial {GOOD}\n" not in again.stderr
    assert (folder / GOOD / "delta.safetensors").stat().st_mtime_ns == written


def test_a_failing_trial_ends_nothing_and_is_told(swept):
    folder, again, _ = swept
    assert again.returncode == 1
    reason = "layer: got 9, allowed is 0 to 3"
    assert f"rmu_exp: layer=9,steer=2: failed: {reason}" in again.stderr
    assert "2 of 4 trials did not finish; the same command with output=" in again.stderr
    assert "Traceback" not in again.stderr
    text = (folder / "report.md").read_text()
    assert f"| layer=9,steer=6 | failed | {reason}" in text
    assert "4 trials: 2 done, 2 failed" in text


def test_a_fault_of_the_report_does_not_look_like_success(tmp_path, monkeypatch, capsys):
    """Hydra swallows what callbacks raise."""

    def fault(folder, why):
        raise TypeError("a fault of the program")

    monkeypatch.setattr("rmu_exp.sweep.session.finish", fault)
    monkeypatch.setattr(entry, "BEGUN", [OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}})])
    callback = entry.Checks(["forget", "general"])
    with pytest.raises(SystemExit, match="1"):
        callback.on_multirun_end(OmegaConf.create({}))
    assert "TypeError: a fault of the program" in capsys.readouterr().err


def test_a_trial_is_the_run_alone(swept, train, tmp_path):
    alone = train("layer=1", "steer=2", f"output={tmp_path / 'alone'}", multirun=False)
    assert alone.returncode == 0, alone.stderr
    same(swept[0] / GOOD, tmp_path / "alone")


def test_a_finished_trial_has_what_is_asked_for(swept, tmp_path):
    """Other attacked questions leave the run as it is, and give other results."""
    folder = shutil.copytree(swept[0] / GOOD, tmp_path / "t")
    content = results(folder) | {"attacks": {"norms": {"budget": {}, "settings": {}}}}
    (folder / "results.json").write_text(json.dumps(content))
    run = rundir.of(folder / rundir.CONFIG).settings
    wanted = replace(run, attacks={"norms": {}})
    assert trial.is_finished(folder, wanted)
    assert not trial.is_finished(folder, replace(wanted, data=replace(run.data, attacked=8)))
    other = replace(run.data.questions, adjacent=["lore_general"])  # of which texts on neighbours are made
    assert not trial.is_finished(folder, replace(wanted, data=replace(run.data, questions=other)))


def test_the_folder_of_another_sweep(swept, train):
    folder = swept[0]
    before = sorted(p for p in folder.rglob("*"))
    done = train("layer=1,9", "steer=2,6", "seed=3", f"output={folder}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"rmu_exp: output: {folder} holds another sweep (seed: 0; now: 3)")
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(p for p in folder.rglob("*")) == before


def engine(train, folder: Path, *words: str, **env: object) -> subprocess.CompletedProcess[str]:
    done = train("layer=1", "steer=2,6", f"output={folder}", *words, **env)
    assert done.returncode == 0, done.stderr
    assert "2 trials: 2 done" in (folder / "report.md").read_text()
    return done


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="hydra-joblib-launcher is missing")
def test_joblib(swept, train, tmp_path):
    """Two processes at once on an empty cache: the base model is judged by one of them."""
    cache = tmp_path / "cache"
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    engine(train, tmp_path / "s", *words, RMU_EXP_CACHE=cache)
    same(swept[0] / GOOD, tmp_path / "s" / "steer=2")
    assert len(list((cache / "base_answers").glob("*.json"))) == 1


@pytest.mark.skipif(not find_spec("hydra_plugins.hydra_joblib_launcher"), reason="hydra-joblib-launcher is missing")
def test_joblib_with_one_job_runs_trials_in_this_process(train, tmp_path):
    """Which then has another HydraConfig than the sweep's."""
    engine(train, tmp_path / "s", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="ray is not installed")
def test_ray(swept, train, tmp_path):
    engine(train, tmp_path / "s", "hydra/launcher=ray")
    same(swept[0] / GOOD, tmp_path / "s" / "steer=2")


@pytest.fixture
def slurm(tmp_path):
    """A one-node Slurm on loopback; gives its environment."""
    if not all(shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin") for p in ("sbatch", "slurmctld", "munged")):
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    script, folder = str(ROOT / "tests/engines/slurm.sh"), str(tmp_path / "slurm")
    started = subprocess.run([script, "start", folder], capture_output=True, text=True)
    try:
        assert started.returncode == 0, started.stderr
        yield {"SLURM_CONF": f"{folder}/slurm.conf"}
    finally:
        subprocess.run([script, "stop", folder], check=True)


@pytest.mark.slow
def test_slurm(swept, train, slurm, tmp_path):
    engine(train, tmp_path / "s", "hydra/launcher=slurm", **slurm)
    same(swept[0] / GOOD, tmp_path / "s" / "steer=2")


def test_a_slurm_that_is_not_there(train, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    done = train("layer=1,2", "steer=3", "hydra/launcher=slurm", f"output={tmp_path / 's'}", PATH=str(bare))
    assert done.returncode == 2
    assert done.stderr.startswith("rmu_exp: hydra/launcher: no sbatch here;")
    assert not (tmp_path / "s").exists()
