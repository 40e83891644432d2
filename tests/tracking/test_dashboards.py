"""The W&B workspace and report, built offline: their panels ask for keys that runs log."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import program
import pytest

pytest.importorskip("wandb_workspaces")

from sweep_rows import RUN, attack, results, row
from wandb_server import GONE, KEY, WandbServer

from rmu_exp.settings import Tracking
from rmu_exp.tracking import dashboards, open_tracker
from rmu_exp.tracking.dashboards import DashboardSpec

SHOWN = DashboardSpec("someone", "somewhere", attacks=["relearn"])
STEP = {f"norm_{role}_{state}": 1.0 for role in ("forget", "retain") for state in ("updated", "frozen")}
STEP |= {"cos_forget": 0.3, "cos_retain": 0.9, "loss": 1.0, "forget_loss": 0.5, "retain_loss": 0.1}


def keys(text: str) -> set[str]:
    """Metrics named anywhere in a specification."""
    pattern = r'"(?:summary:|keys:)?((?:qa|setting|norm|cosine|train|attacks|tables|plots|sweep)/[^".]+)'
    return set(re.findall(pattern, text))


class Logged:
    """In place of W&B's run: keeps the keys that a tracker logs."""

    def __init__(self, folder: Path) -> None:
        self.keys: set[str] = set()
        self.dir = str(folder / "wandb" / "files")
        self.id, self.summary, self.config = "x", self, self

    def update(self, values, allow_val_change=False) -> None:
        self.keys |= set(values)

    log = update

    def define_metric(self, name, step_metric) -> None: ...

    def finish(self) -> None: ...


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """The keys of a run with two topics, questions and an attack."""
    run = Logged(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", lambda **given: run)
    tracker = open_tracker(Tracking("wandb"), tmp_path, {}, "x", [])
    for step, topic in enumerate(("hexes", "wards")):
        tracker.log(STEP | {"topic": topic, "step": step}, step)
    qa = {name: row(5, 10) | {"tasks": []} for name in ("lore_forget", "lore_general")}
    about = RUN | {"steer": [6.5, 6.5], "alpha": [15, 15], "topics": ["hexes", "wards"]}
    plot = tmp_path / "accuracy.png"
    from PIL import Image

    Image.new("RGB", (2, 2)).save(plot)
    tracker.finish(results(run=about, qa=qa, attacks={"relearn": attack(0.3, 0.6)}), [plot], tmp_path / "none")
    return run.keys


def test_panels_ask_for_what_runs_log(logged):
    specification = dashboards.workspace(SHOWN)._to_model().model_dump_json()
    asked = keys(specification)
    from_sweeps = {"sweep/trials", "sweep/plots/front"}
    assert asked - from_sweeps <= logged, asked - from_sweeps - logged
    assert {
        "qa/lore_forget/unlearned",
        "qa/lore_general/unlearned",
        "setting/steer",
        "norm/wards/retain_frozen",
    } <= asked
    assert {"attacks/relearn/after", "train/loss", "cosine/hexes/forget", "tables/accuracy"} | from_sweeps <= asked


def test_the_report_has_the_same_panels():
    specification = dashboards.report(SHOWN)._to_model().model_dump_json()
    assert keys(specification) == keys(dashboards.workspace(SHOWN)._to_model().model_dump_json())
    assert json.loads(specification)["display_name"] == dashboards.NAME


def test_the_second_call_updates_what_the_first_made(tmp_path, monkeypatch):
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports import v2

    server = {}

    def save(made):
        url = next((url for url, there in server.items() if there is made), f"https://w/{len(server)}")
        server[url] = made
        return SimpleNamespace(url=url)

    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path))
    monkeypatch.setattr("wandb.login", lambda prompt: True)
    for kind in (workspaces.Workspace, v2.Report):
        monkeypatch.setattr(kind, "save", save)
        monkeypatch.setattr(kind, "from_url", server.__getitem__)
    first = dashboards.publish(DashboardSpec("someone", "somewhere"))
    assert dashboards.publish(DashboardSpec("someone", "somewhere", forget="another")) == first
    assert "qa/another/unlearned" in keys(server[first["report"]]._to_model().model_dump_json())
    assert dashboards.publish(DashboardSpec("someone", "elsewhere")) != first
    assert len(server) == 4


@pytest.mark.parametrize("fault", [GONE, 401])
def test_a_server_that_does_not_answer_well_is_one_line(fault, tmp_path):
    """With a key in the environment, which is not in the line; and W&B's service has ended soon after it."""
    with WandbServer() as server:
        server.fail(fault)
        env = server.env() | {"HOME": str(tmp_path), "RMU_EXP_CACHE": str(tmp_path / "cache")}
        status, line = dashboard(["someone/somewhere"], env)
    assert status == 1
    assert re.fullmatch(r"rmu_exp: W&B refused, or cannot be reached \(.*\); .*", line)
    assert KEY not in line


def dashboard(words, env):
    """Exit status and standard error of the command."""
    done = program.run("src/rmu_exp/__main__.py", "dashboard", *words, env=env, timeout=60)
    return done.returncode, done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["someone/somewhere"], "rmu_exp: dashboard: no W&B login; run `wandb login`, or set WANDB_API_KEY"),
        (["somewhere"], "rmu_exp: dashboard: got 'somewhere', allowed is ENTITY/PROJECT"),
    ],
)
def test_refusals_are_one_line(words, line, tmp_path):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RMU_EXP_CACHE": str(tmp_path / "cache")}
    assert dashboard(words, env) == (2, line)
