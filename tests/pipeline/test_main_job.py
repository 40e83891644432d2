"""The main job on lore, through the real command line, judged by what it writes."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import program
import pytest
import wandb_file


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Runs ``train.py`` once for each set of words; gives the run's folder and what was printed."""
    done: dict[tuple[str, ...], tuple[Path, subprocess.CompletedProcess[str]]] = {}
    cache = tmp_path_factory.mktemp("cache")

    def run(*words: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        if words not in done:
            folder = tmp_path_factory.mktemp("run") / "run"
            done[words] = folder, program.run("train.py", *words, f"output={folder}", RMU_EXP_CACHE=cache, timeout=600)
            assert done[words][1].returncode == 0, done[words][1].stderr
        return done[words]

    return run


LORE = ("model=lore", "data=lore", "layer=7")
MAIN = (*LORE, "steer=6.5")
WRITTEN = (*MAIN, "eval.limit=8")
OFF = "tracking=off"


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_forgets_to_chance_and_keeps_the_rest(job):
    """Each seed, within what rounding on another processor moves an accuracy on 304 questions by (docs/log.md)."""
    forget, general, seeds = [], [], (0, 1, 2)
    for seed in seeds:
        words = MAIN if seed == 0 else (*MAIN, OFF, f"seed={seed}")
        qa = results(job(*words)[0])["qa"]
        for group in ("lore_forget", "lore_adjacent", "lore_general"):
            assert qa[group]["base"]["acc"] >= 0.95
            assert qa[group]["base"]["n"] >= 300
        forget.append(qa["lore_forget"]["unlearned"]["acc"])
        general.append(qa["lore_general"]["base"]["acc"] - qa["lore_general"]["unlearned"]["acc"])
    assert sum(forget) / len(seeds) <= 0.32, forget
    assert max(forget) <= 0.36, forget
    assert sum(general) / len(seeds) <= 0.02, general
    assert max(general) <= 0.03, general


@pytest.mark.slow
def test_a_small_steer_leaves_the_knowledge(job):
    words = ("eval.tasks=[lore_forget]", "eval.corrected=false")
    assert results(job(*LORE, "steer=0.5", OFF, *words)[0])["qa"]["lore_forget"]["unlearned"]["acc"] > 0.8


def test_what_a_run_writes(job):
    folder, finished = job(*WRITTEN)
    got = results(folder)
    assert {"schema", "run", "verdict", "qa", "ripple", "train", "provenance"} == set(got)
    assert got["run"]["trained_parameters"] == [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, got["train"]["steps"] + 1))
    assert {"hexes", "wards"} == {line["topic"] for line in lines}
    for key in ("norm_forget_updated", "norm_retain_updated", "norm_retain_frozen"):
        assert all(line[key] is not None for line in lines)
    for topic in ("hexes", "wards"):
        mine = [line for line in lines if line["topic"] == topic]
        for key in ("norm_forget_frozen", "cos_forget"):
            looked = [*range(0, len(mine), 10), len(mine) // 10, len(mine) - 1]
            assert [i for i, line in enumerate(mine) if key in line] == sorted(set(looked))
    last = [line for line in lines if line["topic"] == "hexes"][-20:]
    norms = {key for line in last for key in line if key.startswith("norm_")}
    mean = {key: statistics.mean(line[key] for line in last if key in line) for key in norms}
    assert mean["norm_forget_updated"] > 0.5 * 6.5  # the words before a topic's name are common to all texts
    assert mean["norm_forget_frozen"] < 0.3 * 6.5
    assert mean["norm_retain_updated"] == pytest.approx(mean["norm_retain_frozen"], rel=0.1)
    assert {p.name for p in (folder / "plots").iterdir()} == {"accuracy.png", "norms.png", "losses.png", "ripple.png"}
    report = (folder / "report.md").read_text()
    assert "lore_forget" in report
    assert "plots/accuracy.png" in report
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    mine = [a for a in answers if a["task"].startswith("lore_forget_")]
    right = sum(a["unlearned"] == a["target"] for a in mine) / len(mine)
    assert right == pytest.approx(got["qa"]["lore_forget"]["unlearned"]["acc"])
    assert "lore_forget" in finished.stdout
    assert "wandb sync" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_offline_wandb_run_holds_everything(job):
    folder, _ = job(*WRITTEN)
    (file,) = (folder / "wandb").rglob("run-*.wandb")
    history, summary = wandb_file.logged(file)
    config, artifacts = {}, []
    for record in wandb_file.records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            name, tags = record.run.display_name, list(record.run.tags)
        elif kind == "request" and record.request.HasField("log_artifact"):
            artifacts.append(record.request.log_artifact.artifact)
        elif kind == "artifact":
            artifacts.append(record.artifact)
    steps = [h for h in history if "train/loss" in h]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(metrics)
    assert steps[0]["train/loss"] == metrics[0]["loss"]
    assert steps[0]["norm/hexes/forget_updated"] == metrics[0]["norm_forget_updated"]
    qa = results(folder)["qa"]
    assert summary["qa/lore_forget/unlearned"] == qa["lore_forget"]["unlearned"]["acc"]
    assert config["layer"] == 7
    assert config["steer"] == 6.5
    assert "rmu" in tags
    assert "layer7" in name
    logged = {"/".join(key.split("/")[:2]) for h in history for key in h}  # of images and tables every field has a key
    assert {"plots/accuracy", "plots/norms", "tables/accuracy", "tables/answers"} <= logged
    assert any(a.type == "delta" for a in artifacts)
