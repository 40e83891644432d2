"""The report against the numbers that it is made from."""

from __future__ import annotations

import json
import re

import pytest
from omegaconf import OmegaConf
from sweep_rows import results, row

from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError
from rmu_exp.sweep import report, trials
from rmu_exp.sweep.trial import early_stop

AXES = ("forget", "general")


@pytest.fixture
def grid(make_trial, tmp_path):
    counts = {(3, 2): (70, 99), (3, 6.5): (40, 90), (7, 2): (60, 98), (7, 6.5): (28, 97)}
    for (layer, steer), (forget, general) in counts.items():
        make_trial({"layer": layer, "steer": steer}, forget, general)
    (make_trial({"layer": 9, "steer": 2}) / "error.txt").write_text("layer: got 9, allowed is 0 to 3\n")
    make_trial({"layer": 9, "steer": 6.5})
    return tmp_path


def cells(text: str, start: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines]


def test_numbers_are_those_of_the_trials_and_the_page_has_them_without_a_network(grid):
    report.write(grid, AXES)
    text, html = (grid / "report.md").read_text(), (grid / "report.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', html, re.S)[1])
    by_name = {t["name"]: t for t in data["trials"]}
    for trial in trials.read(grid):
        if trial.state == "done":
            ((_, _, _, forget, general, _),) = cells(text, f"| {trial.settings['layer']} | {trial.settings['steer']} |")
            for cell, axis in ((forget, "forget"), (general, "general")):
                measured = trial.results.qa[f"lore_{axis}"].unlearned
                numbers = [float(n) / 100 for n in re.findall(r"[\d.]+", cell)]
                assert numbers == pytest.approx([measured.acc, *measured.ci95], abs=6e-4)
                assert by_name[trial.name]["axes"][axis] == [measured.acc, *measured.ci95]
    assert not re.search(r'(src|href|url)\s*[=(]\s*["\']?(https?:)?//', html)


def test_settings_that_are_lists_stand_beside_many_values(make_trial, tmp_path):
    """As a search for the worst attack has them: samples=[8], one rate a trial."""
    for n in range(10):
        make_trial(
            {"samples": [8 if n % 2 else 32], "sources": ["forget", "benign"][: 1 + n % 2], "lr": 1e-5 * 2**n}, 50, 90
        )
    report.write(tmp_path, AXES)
    figures = report.figures(trials.read(tmp_path))
    (points,) = figures["map-samples-lr"].axes[0].collections
    assert sorted(points.get_offsets()[:, 0].tolist()) == [8] * 5 + [32] * 5
    assert [text.get_text() for text in figures["map-sources-lr"].axes[0].get_xticklabels()] == [
        "forget",
        "forget,benign",
    ]
    assert (tmp_path / "report.html").is_file()


def test_states_reasons_front_and_choice(grid):
    listed = report.write(grid, AXES)
    assert [t.state for t in listed] == ["done"] * 4 + ["failed", "unfinished"]
    text = (grid / "report.md").read_text()
    assert "6 trials: 4 done, 1 failed, 1 unfinished; chosen: layer=7,steer=6.5 (forget 28.0 %, general 97.0 %)" in text
    assert "| layer=9,steer=2 | failed | layer: got 9, allowed is 0 to 3 |" in text
    assert "| layer=9,steer=6.5 | unfinished | not started, or cut off |" in text
    front = text.split("## The front")[1].split("## Trials")[0]
    assert re.findall(r"^\| \d \| (layer\S+)", front, re.M) == [
        "layer=7,steer=6.5",
        "layer=7,steer=2",
        "layer=3,steer=2",
    ]
    assert {p.name for p in (grid / "plots").iterdir()} == {"front.png", "map-layer-steer.png"}


def test_a_name_cannot_end_the_script(make_trial, tmp_path):
    make_trial({"steer": 1}, 30, 99)
    make_trial({"steer": 2})
    (tmp_path / "steer=2" / "error.txt").write_text("</script><b>oh")
    report.write(tmp_path, AXES)
    assert "</script><b>" not in (tmp_path / "report.html").read_text()


def test_a_folder_of_runs_that_nobody_swept(make_trial, tmp_path):
    for steer in (2, 10, 9):
        (make_trial({"steer": steer}, 100 - steer, 99) / "trial.json").unlink()
    listed = report.write(tmp_path, AXES)
    assert [t.settings for t in listed] == [{"steer": 2}, {"steer": 9}, {"steer": 10}]
    assert (tmp_path / "plots" / "curve-steer.png").is_file()


def test_questions_that_were_not_asked(make_trial, tmp_path):
    make_trial({"steer": 1}, 30, 99)
    with pytest.raises(UserError, match=r"forget: the trials were not asked 'wmdp_bio'; they were asked lore_forget"):
        report.write(tmp_path, AXES, {"forget": ["wmdp_bio"]})
    with pytest.raises(UserError, match="no trials in it"):
        report.write(tmp_path / "steer=1", AXES)


def test_given_up_only_when_beaten_beyond_doubt(make_trial, tmp_path):
    make_trial({"steer": 1}, 30, 99)
    asked = {"prune_on": 40, "objectives": AXES, "forget": [], "general": []}
    rule = early_stop(tmp_path, OmegaConf.create(asked)).because

    def part(forget: int, general: int):
        qa = {"lore_forget": row(forget, 40), "lore_general": row(general, 40)}
        qa = {name: {"tasks": []} | measured for name, measured in qa.items()}
        return results(pruned={"questions": 40, "because": "", "qa": qa})

    assert rule(part(36, 20)) == "on 40 questions per task clearly beaten by steer=1"
    assert rule(part(36, 40)) is None  # general may be better
    assert rule(part(13, 20)) is None  # forget may be better: its interval goes below 30 %


def test_the_same_in_wandb(grid, monkeypatch):
    """Offline: tables of all trials and of the front, plots, page and the chosen trial, in the sweep's group."""
    import wandb
    import wandb_file

    monkeypatch.setenv("WANDB_MODE", "offline")
    report.write(grid, AXES, tracking=Tracking(kind="wandb", project="p"))
    wandb.teardown()  # only now is all of it on the disk
    (file,) = (grid / "wandb").rglob("run-*.wandb")
    (group,) = {r.run.run_group for r in wandb_file.records(file) if r.WhichOneof("record_type") == "run"}
    assert group == grid.name
    (logged,), _ = wandb_file.logged(file)
    assert {"sweep/page/path", "sweep/plots/front/path", "sweep/plots/map-layer-steer/path"} <= set(logged)
    assert logged["sweep/chosen/trial"] == "layer=7,steer=6.5"
    assert logged["sweep/trials/nrows"] == 6
    table = json.loads((file.parent / "files" / logged["sweep/front/path"]).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    measured = trials.read(grid)[3].results.qa["lore_forget"].unlearned
    assert [row["forget"], row["forget_low"], row["forget_high"]] == [measured.acc, *measured.ci95]
