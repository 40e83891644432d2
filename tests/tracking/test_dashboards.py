"""The W&B workspace and report, built offline: their panels ask for keys that runs log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

pytest.importorskip("wandb_workspaces")

from sweep_rows import RUN, attack, results, row

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
        self.id, self.summary = "x", self

    def update(self, values) -> None:
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
    from_sweeps = {"sweep/trials", "sweep/front"}
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


class Kept:
    """In place of W&B's classes: what is saved lies in a dictionary by its address."""

    server: ClassVar[dict[str, list]] = {}

    def __init__(self, parts: list, url: str = "") -> None:
        self.sections = self.blocks = parts
        self.url = url

    @classmethod
    def from_url(cls, url: str) -> Kept:
        return cls(list(cls.server[url]), url)

    def save(self) -> Kept:
        self.url = self.url or f"https://w/{len(self.server)}"
        self.server[self.url] = self.sections
        return self


def test_the_second_call_updates_what_the_first_made(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path))
    monkeypatch.setattr(wandb, "login", lambda prompt: True)
    monkeypatch.setattr(dashboards, "_library", lambda: (SimpleNamespace(Workspace=Kept), SimpleNamespace(Report=Kept)))
    monkeypatch.setattr(dashboards, "workspace", lambda shown: Kept(["w", shown.forget]))
    monkeypatch.setattr(dashboards, "report", lambda shown: Kept(["r", shown.forget]))
    first = dashboards.publish(DashboardSpec("someone", "somewhere"))
    assert dashboards.publish(DashboardSpec("someone", "somewhere")) == first
    assert dashboards.publish(DashboardSpec("someone", "elsewhere")) != first
    assert list(Kept.server.values()) == [["w", "lore_forget"], ["r", "lore_forget"]] * 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["someone/somewhere"], "rmu_exp: dashboard: no W&B login; run `wandb login`, or set WANDB_API_KEY"),
        (["somewhere"], "rmu_exp: dashboard: got 'somewhere', allowed is ENTITY/PROJECT"),
    ],
)
def test_refusals_are_one_line(words, line, tmp_path):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RMU_EXP_CACHE": str(tmp_path / "cache")}
    code = f"import sys; sys.path[:] = {sys.path!r}; from rmu_exp.__main__ import main; "
    code += f"sys.exit(main({['dashboard', *words]!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (2, line)
