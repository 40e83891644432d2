"""What W&B gets of a judgement, which has no layer, steer or alpha; and WANDB_MODE, which wins over tracking.mode."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wandb_file
from sweep_rows import HEAD, RUN, attack, results, row

from rmu_exp.record import results as results_json
from rmu_exp.record.results import Results
from rmu_exp.settings import Tracking
from rmu_exp.support.errors import UserError
from rmu_exp.sweep.report import Summary, log_sweep
from rmu_exp.tracking import Tracker, open_tracker, refuse
from rmu_exp.tracking.logged import summary
from rmu_exp.tracking.weights_and_biases import switched

KEY = "local-" + "0123456789" * 4


def tracker(folder: Path, mode: str = "auto") -> Tracker:
    return open_tracker(Tracking("wandb", mode=mode), folder, {}, "judge-x", [])


def test_a_judgement_has_its_tables_and_plots(tmp_path, monkeypatch, capsys):
    import wandb
    from PIL import Image

    monkeypatch.setenv("WANDB_MODE", "offline")
    about = {"model": "lore", "unlearned": "x", "seed": 0, "topics": ["hexes"], "changed_tensors": []}
    qa, attacks = {"lore_forget": row(5, 10)}, {"relearn": attack(0.3, 0.6)}
    made = Results.model_validate({"schema": 1, "run": about, "qa": qa, "attacks": attacks})
    (tmp_path / "answers.jsonl").write_text('{"task": "lore_forget", "base": 0}\n')
    plot = tmp_path / "accuracy.png"
    Image.new("RGB", (2, 2)).save(plot)
    (tmp_path / "delta.safetensors").write_bytes(b"changed tensors")
    tracker(tmp_path).finish(made, [plot], tmp_path)
    wandb.teardown()  # only now is all of it on the disk
    assert "W&B failed" not in capsys.readouterr().err
    (file,) = (tmp_path / "wandb").rglob("run-*.wandb")
    history, summary = wandb_file.logged(file)
    logged = {key for line in history for key in line}
    assert {"tables/accuracy/nrows", "tables/answers/nrows", "plots/accuracy/path"} <= logged
    assert summary["qa/lore_forget/unlearned"] == 0.5
    assert summary["attacks/relearn/after"] == 0.6
    assert not any(key.startswith("setting/") for key in summary)


def test_what_was_seen_is_read_back_from_the_offline_file(tiny_seen, tmp_path, monkeypatch):
    """Samples, damage and ripple as results.json and samples.jsonl have them, and the page."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for file in ("samples.jsonl", "report.html"):
        (tmp_path / file).write_bytes((tiny_seen / file).read_bytes())
    found = results_json.load(tiny_seen / "results.json")
    tracker(tmp_path).finish(found, [], tmp_path)
    wandb.teardown()
    (file,) = (tmp_path / "wandb").rglob("run-*.wandb")
    history, summary = wandb_file.logged(file)
    paths = {key.removesuffix("/path"): file.parent / "files" / value for h in history for key, value in h.items()
             if key.endswith("/path")}  # fmt: skip
    lines = [json.loads(line) for line in (tiny_seen / "samples.jsonl").read_text().splitlines()]
    table = json.loads(paths["tables/samples"].read_text())
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == [
        {column: line.get(column) for column in table["columns"]} for line in lines
    ]
    assert {"prompt", "base", "unlearned", "unlearned_sampled"} <= set(table["columns"])
    ripple = json.loads(paths["tables/ripple"].read_text())
    lost = [dict(zip(ripple["columns"], row, strict=True))["lost"] for row in ripple["data"]]
    assert lost == [level.lost.mean for level in found.ripple.levels]
    for kind, kl in found.damage.kl.items():
        assert summary[f"damage/kl/{kind}"] == kl.mean
        assert summary[f"damage/agreement/{kind}"] == found.damage.agreement[kind].mean
    assert summary["samples/forget/nll/unlearned"] == found.samples["forget"].unlearned.nll
    assert "What they write" in paths["report"].read_text()


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
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B was started"))
    assert type(tracker(tmp_path, mode)) is Tracker
    log_sweep(Summary(tmp_path, [], [], [], None, []), [], Tracking("wandb", mode=mode))
    assert not list(tmp_path.iterdir())


def test_dryrun_is_offline_even_with_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    begun = []
    monkeypatch.setattr("wandb.init", lambda **given: begun.append(given["mode"]) or 1 / 0)
    tracker(tmp_path, "online")
    assert begun == ["offline"]


def test_a_folder_has_one_run_and_a_finished_one_is_not_sent_again(tmp_path, monkeypatch):
    """Each start opened another run of W&B's, and a finished one sent everything again."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    made = results(qa={"lore_forget": row(5, 10)})

    def ids() -> list[str]:
        # by the record's name: a second folder of the same second ends in "-1"
        return sorted(f.stem.removeprefix("run-") for f in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))

    first = tracker(tmp_path)
    first.log({"step": 1, "loss": 1.0}, 1)
    first.close()  # stopped
    tracker(tmp_path).finish(made, [], tmp_path / "none")
    assert len(set(ids())) == 1
    sent = ids()
    tracker(tmp_path).finish(made, [], tmp_path / "none")
    assert ids() == sent


def test_each_topics_settings_are_numbers_that_were_run():
    """Their mean was sent, which nobody ran."""
    run = Results.model_validate(HEAD | {"run": RUN | {"topics": ["a", "b"], "steer": [2, 20], "alpha": [5, 5]}})
    numbers = summary(run)
    assert (numbers["setting/steer/a"], numbers["setting/steer/b"], numbers["setting/alpha"]) == (2, 20, 5)
    assert "setting/steer" not in numbers


def test_wandbs_own_variables_name_the_run_and_its_columns_are_numbers(tmp_path, monkeypatch):
    """They were ignored in silence; steer was a list, which no column can sort."""
    import wandb

    given = {"MODE": "offline", "PROJECT": "mine", "NAME": "n", "TAGS": "a,b", "JOB_TYPE": "try", "DIR": str(tmp_path)}
    for key, value in given.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    config = {"layer": 7, "steer": [6.5, 6.5], "alpha": [1.0, 2.0], "data": {"topics": ["x", "y"]}}
    settings = Tracking("wandb", tags=["own"])
    open_tracker(settings, tmp_path / "run", config, "made", ["rmu"]).finish(Results(run=RUN), [], tmp_path / "none")
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    (run,) = (record.run for record in wandb_file.records(file) if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.job_type, sorted(run.tags)) == (
        "mine",
        "n",
        "try",
        ["a", "b", "own", "rmu"],
    )
    columns = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (columns["layer"], columns["steer"], columns["alpha"]) == (7, 6.5, {"x": 1.0, "y": 2.0})


@pytest.mark.parametrize(
    ("given", "sweep", "said"),
    [
        ({"WANDB_MODE": "onlin"}, False, "WANDB_MODE: got 'onlin', allowed is"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, False, "WANDB_DISABLED: contradicts"),
        ({"WANDB_RUN_ID": "abc"}, True, "WANDB_RUN_ID: one run"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(given, sweep, said, monkeypatch):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=said):
        refuse(Tracking("wandb"), sweep)
    refuse(Tracking("off"), sweep)
