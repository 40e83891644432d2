"""Runs tracked by trackio, read back from its store; and what is refused when it is not there."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import a_run
import pytest
from sweep_rows import HEAD, row

from rmu_exp.cli import compose, job
from rmu_exp.record import results as results_json
from rmu_exp.record.results import Results
from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError
from rmu_exp.sweep.report import Row, Summary, log_sweep
from rmu_exp.tracking import Tracker, open_tracker, refuse, sweep_line, trackio

installed = pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed")
MADE = Results.model_validate(HEAD | {"qa": {"lore_forget": row(5, 10)}})


def test_without_the_package_it_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackio, "find_spec", lambda name: None)
    words = [*a_run.words(tmp_path), "tracking=trackio", f"output={tmp_path / 'run'}"]
    capsys.readouterr()  # of making the model
    assert job.execute(lambda: compose.composed(words, a_run.CONF)[0], tmp_path / "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "rmu_exp: tracking: trackio is not installed; pip install 'rmu_exp[trackio]'"
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("settings", "given", "said"),
    [
        ({"mode": "online"}, {}, "tracking.mode=online: trackio keeps runs on this machine"),
        ({"entity": "me"}, {}, "tracking.entity=me: trackio keeps"),
        ({}, {"TRACKIO_SPACE_ID": "me/it"}, "TRACKIO_SPACE_ID: runs are tracked on this machine"),
        ({}, {"TRACKIO_SERVER_URL": "http://x"}, "TRACKIO_SERVER_URL: runs"),
    ],
)
def test_what_would_leave_the_machine_is_refused(settings, given, said, monkeypatch):
    monkeypatch.setattr(trackio, "find_spec", lambda name: "there")
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=said):
        refuse(Tracking("trackio", **settings))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    """trackio's storage in a folder of its own, which it reads when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        patch.setenv("WANDB_MODE", "disabled")  # W&B's own, which says nothing about trackio
        from trackio.sqlite_storage import SQLiteStorage

        yield SQLiteStorage


def tracker(folder: Path, project: str) -> Tracker:
    folder.mkdir(exist_ok=True)
    config = {"layer": 7, "steer": [6.5, 6.5], "alpha": [1.0, 2.0], "data": {"topics": ["x", "y"]}}
    return open_tracker(Tracking("trackio", project=project, group="g", tags=["own"]), folder, config, "name", ["rmu"])


@installed
def test_curves_tables_pictures_settings_and_numbers_are_read_back(store, tiny_seen, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.whoami", lambda **_: pytest.fail("the hub was asked"))
    found = results_json.load(tiny_seen / "results.json")
    following = tracker(tmp_path, "all")
    for step in (1, 2):
        following.log({"step": step, "topic": "x", "loss": 1 / step, "cos_forget": 0.5}, step)
    following.finish(found, [plot := next((tiny_seen / "plots").glob("*.png"))], tiny_seen)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{sweep_line(Tracking('trackio', project='all'), tmp_path)}\n")
    *steps, end = store.get_logs("all", "name")
    assert [(line["step"], line["train/loss"], line["cosine/x/forget"]) for line in steps] == [
        (1, 1, 0.5),
        (2, 0.5, 0.5),
    ]
    tables = {key: end[f"tables/{key}"]["_value"] for key in ("accuracy", "samples", "ripple", "answers")}
    lines = [json.loads(line) for line in (tiny_seen / "samples.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if v is not None} for row in tables["samples"]] == lines
    assert [level["lost"] for level in tables["ripple"]] == [level.lost.mean for level in found.ripple.levels]
    assert end["qa/lore_forget/unlearned"] == found.qa["lore_forget"].unlearned.acc
    assert (end["verdict"], end["setting/layer"]) == (found.verdict.word, 1)
    from trackio.utils import MEDIA_DIR

    assert (MEDIA_DIR / end[f"plots/{plot.stem}"]["file_path"]).read_bytes() == plot.read_bytes()
    assert "What they write" in (MEDIA_DIR / end["report"]["file_path"]).read_text()
    config = store.get_run_config("all", "name")
    assert (config["layer"], config["steer"], config["alpha"]) == (7, 6.5, {"x": 1.0, "y": 2.0})
    assert (config["tags"], config["job_type"], config["_Group"]) == (["own", "rmu"], "train", "g")
    assert config["delta"] == found.provenance.delta_digest
    (artifact,) = store.get_artifacts("all")
    assert (artifact["type"], artifact["size_bytes"]) == ("delta", (tiny_seen / "delta.safetensors").stat().st_size)


@installed
def test_a_folder_has_one_run_and_another_folder_another(store, tmp_path):
    first = tracker(tmp_path / "a", "names")
    first.log({"step": 1, "loss": 1.0}, 1)
    assert first.close()  # stopped
    for _ in range(2):  # a finished run started again sends nothing
        tracker(tmp_path / "a", "names").finish(MADE, [], tmp_path / "none")
    tracker(tmp_path / "b", "names").finish(MADE, [], tmp_path / "none")
    assert sorted(store.get_runs("names")) == ["name", "name-2"]
    assert [line["step"] for line in store.get_logs("names", "name")] == [1, 2]


@installed
def test_a_sweeps_report_is_one_more_run_of_its_group(store, tmp_path, capsys):
    (tmp_path / "report.html").write_text("<p>front</p>")
    row = Row("steer=2", "done", "", {"steer": 2}, {"forget": (0.5, 0.4, 0.6)}, {}, 1.0, front=True, chosen=True)
    trial = SimpleNamespace(name="steer=2")
    summary = Summary(tmp_path, [trial], [], [trial], trial, [])
    log_sweep(summary, [row], Tracking("trackio", project="sweeps"))
    assert capsys.readouterr() == ("", "")  # the sweep says it, once
    (line,) = store.get_logs("sweeps", f"report-{tmp_path.name}")
    assert (line["sweep/chosen/steer"], line["sweep/trials"]["_value"][0]["forget_low"]) == (2, 0.4)
    assert line["sweep/front"]["_value"] == line["sweep/trials"]["_value"]
    config = store.get_run_config("sweeps", f"report-{tmp_path.name}")
    assert (config["_Group"], config["job_type"]) == (tmp_path.name, "report")


@installed
def test_a_store_that_cannot_be_written_is_one_line(store, tmp_path, monkeypatch, capsys, recwarn):
    following = tracker(tmp_path, "full")
    capsys.readouterr()

    def full(**_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(store, "bulk_log", full)
    following.log({"step": 1, "loss": 1.0}, 1)
    following.finish(MADE, [], tmp_path / "none")
    assert capsys.readouterr().err == "trackio failed (it could not write everything); the run goes on without it\n"
    assert not json.loads((tmp_path / "trackio.json").read_text())["finished"]
    assert not recwarn.list
