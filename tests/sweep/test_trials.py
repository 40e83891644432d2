"""What a trial's folder says while processes work in it, at the moments in which it changes."""

from __future__ import annotations

import threading
import time

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from rmu_exp.pipeline.session import claimed
from rmu_exp.record.results import load
from rmu_exp.support.errors import BusyError, UserError
from rmu_exp.support.files import LOCK
from rmu_exp.sweep import trial, trials


def test_what_is_noted_is_worked_on_and_what_failed_is_nobodys(tmp_path):
    """A search's trial is noted by who runs it; another process that ends in that moment must not call it cut off."""
    job = {"num": 0, "config": {"override_dirname": {"exclude_keys": []}}}
    hydra, seen = OmegaConf.create({"job": job, "overrides": {"task": ["layer=1"]}, "sweeper": {}}), []

    def asked():
        seen.append(trials.read_one(tmp_path / "t", {}).state)
        raise UserError("no")

    (tmp_path / "t").mkdir()
    trial.run(asked, tmp_path / "t", hydra)
    assert seen == ["running"]
    assert trials.read_one(tmp_path / "t", {}).state == "failed"


def test_a_trial_that_ends_while_it_is_read_is_done(make_trial, monkeypatch):
    folder = make_trial({"layer": 0}, forget=1, general=2)
    (folder / "report.md").unlink()
    final = (folder / "results.json").read_text()
    (folder / "results.json").unlink()

    def ends(_) -> bool:
        (folder / "results.json").write_text(final)
        (folder / "report.md").write_text("")
        return True

    monkeypatch.setattr(trials, "_is_worked_on", ends)
    read = trials.read_one(folder, {})
    assert read.state == "done"
    assert read.results == load(folder / "results.json")


def test_a_look_at_a_folder_does_not_keep_out_who_wants_to_work_in_it(tmp_path):
    looking = FileLock(tmp_path / LOCK, thread_local=False)
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with claimed(tmp_path), claimed(tmp_path):
        assert trials._is_worked_on(tmp_path)
    assert not trials._is_worked_on(tmp_path)
    with FileLock(tmp_path / LOCK):
        began = time.monotonic()
        with pytest.raises(BusyError), claimed(tmp_path):
            pass
        assert time.monotonic() - began < 5
