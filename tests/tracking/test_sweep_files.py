"""sweeps/*.yaml as W&B's agent reads them: its own code builds the command lines, and one of them is run."""

from __future__ import annotations

import json
import random
import sys

import program
import pytest
import yaml
from program import ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rmu_exp.cli import compose

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


def value(parameter: dict, draw: random.Random):
    """A value of a sweep's parameter, drawn as W&B's server would."""
    if "values" in parameter:
        return draw.choice(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    assert 0 < low < high
    return draw.randint(low, high) if parameter["distribution"] == "int_uniform" else draw.uniform(low, high)


def command(sweep: dict, draw: random.Random) -> list[str]:
    """As ``wandb.wandb_agent.Agent._command_run`` builds it."""
    args = {key: {"value": value(parameter, draw)} for key, parameter in sweep["parameters"].items()}
    given = create_sweep_command_args({"args": args})
    given |= {"program": [sweep["program"]], "interpreter": [sys.executable], "env": ["/usr/bin/env"]}
    line: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        macro = word[2:-1] if word.startswith("${") else None
        line += given[macro] if macro else [word]
    return line


def test_the_three_kinds_are_there():
    assert {yaml.safe_load(f.read_text())["method"] for f in FILES} == {"grid", "random", "bayes"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_command_lines_are_runs(file):
    sweep = yaml.safe_load(file.read_text())
    assert sweep["metric"] == {"name": "score", "goal": "maximize"}
    for seed in range(2):
        line = command(sweep, random.Random(seed))
        assert line[:3] == ["/usr/bin/env", sys.executable, "train.py"]
        (run,) = compose.composed(line[3:], ROOT / "conf")
        words = dict(word.split("=") for word in line[3:])
        assert run.layer == int(words["layer"])
        assert run.steer == [float(words["steer"])] * 2


def test_a_command_line_runs_and_logs_the_metric(tmp_path):
    """One of the grid's, cut short; W&B offline. The metric is in every step and, at the end, from the accuracies."""
    import wandb_file

    line = command(yaml.safe_load((ROOT / "sweeps/grid.yaml").read_text()), random.Random(0))
    short = ["model=lore", "data=lore", "train.max_batches=4", "eval.limit=2", "eval.tasks=[lore_forget,lore_general]"]
    short.append(f"output={tmp_path / 'run'}")
    done = program.run(*line[2:], *short, WANDB_MODE="offline", RMU_EXP_CACHE=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "wandb").rglob("run-*.wandb")
    history, summary = wandb_file.logged(file)
    scores = [line["score"] for line in history if "score" in line]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    qa = results["qa"]
    lost = {g: qa[g]["base"]["acc"] - qa[g]["unlearned"]["acc"] for g in ("lore_forget", "lore_general")}
    assert len(scores) == 5, "the first and the last batch of each topic are measured, and the end"
    assert scores[-1] == pytest.approx(lost["lore_forget"] - lost["lore_general"])
    assert summary["setting/layer"] == results["run"]["layer"]
    assert summary["qa/lore_forget/unlearned"] == qa["lore_forget"]["unlearned"]["acc"]
