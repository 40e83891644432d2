"""What W&B gets of a judgement, which has no layer, steer or alpha; and WANDB_MODE, which wins over tracking.mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb_file

from rmu_exp.sweep.summary import Summary
from rmu_exp.sweep.wandb_report import log_sweep
from rmu_exp.tracking import Tracker, open_tracker, switched
from rmu_exp.tracking.weights_and_biases import WandbTracker

KEY = "local-" + "0123456789" * 4


def tracker(folder: Path, mode: str = "auto") -> Tracker:
    return open_tracker("wandb", folder, {}, "judge-x", None, [], "rmu_exp", None, mode, 60.0)


def test_a_judgement_has_its_tables_and_plots(tmp_path, monkeypatch, capsys):
    import wandb
    from PIL import Image

    monkeypatch.setenv("WANDB_MODE", "offline")
    who = {"acc": 0.5, "ci95": [0.4, 0.6], "n": 10}
    about = {"model": "lore", "unlearned": "x", "seed": 0, "topics": ["hexes"], "changed_tensors": []}
    results = {"run": about, "qa": {"lore_forget": {"base": who, "unlearned": who, "chance": 0.25}}}
    results["attacks"] = {"relearn": {"forget_acc": {"before": 0.3, "after": 0.6}}}
    (tmp_path / "answers.jsonl").write_text('{"task": "lore_forget", "base": 0}\n')
    plot, delta = tmp_path / "accuracy.png", tmp_path / "delta.safetensors"
    Image.new("RGB", (2, 2)).save(plot)
    delta.write_bytes(b"changed tensors")
    tracker(tmp_path).finish(results, [plot], delta)
    wandb.teardown()  # only now is all of it on the disk
    assert "W&B failed" not in capsys.readouterr().err
    (file,) = (tmp_path / "wandb").rglob("run-*.wandb")
    logged, summary = set(), {}
    for record in wandb_file.records(file):
        logged |= {".".join(i.nested_key) or i.key for i in record.history.item}
        for i in record.summary.update:
            summary[i.key or "/".join(i.nested_key)] = json.loads(i.value_json)
    assert {"tables/accuracy.nrows", "tables/answers.nrows", "plots/accuracy.path"} <= logged
    assert summary["qa/lore_forget/unlearned"] == 0.5
    assert summary["attacks/relearn/after"] == 0.6
    assert not any(key.startswith("setting/") for key in summary)


@pytest.mark.parametrize(
    ("said", "wanted", "is_"),
    [
        ("disabled", "online", "off"),
        ("dryrun", "online", "offline"),
        ("offline", "online", "offline"),
        ("online", "offline", "online"),
        ("", "online", "online"),
        (None, "auto", "auto"),
    ],
)
def test_wandb_mode_wins(said, wanted, is_, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    assert switched(wanted) == is_


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_disabled_is_no_tracker_even_with_a_key(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(WandbTracker, "_init", lambda *_: pytest.fail("W&B was started"))
    assert type(tracker(tmp_path, mode)) is Tracker
    log_sweep(Summary(tmp_path, [], [], [], None, []), {"kind": "wandb", "mode": mode})
    assert not list(tmp_path.iterdir())


def test_dryrun_is_offline_even_with_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    begun = []
    monkeypatch.setattr(WandbTracker, "_init", lambda self, given: begun.append(self.mode) or 1 / 0)
    tracker(tmp_path, "online")
    assert begun == ["offline"]
