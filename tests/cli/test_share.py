"""push and pull over the hub's protocol: what arrives is what was sent, and every refusal is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from hub import Hub
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from sweep_rows import TRAIN, row

from rmu_exp.__main__ import main
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export

NAME = "model.layers.3.mlp.down_proj.weight"
CALLS = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
from rmu_exp.__main__ import main
for token, words in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = main(words)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as hub:
        base = tiny.mistral(tmp_path_factory.mktemp("base") / "mine")
        commit = hub.add("org/base", base)
        hub.tokens = {"hf_mine": set(), "hf_other": set()}
        hub.writers = {"hf_mine": "me", "hf_other": "other"}
        hub.base, hub.commit_of_base = base, commit
        yield hub


@pytest.fixture(scope="module")
def run(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, with an export: one tensor of the hub's model set to ones."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = locate(None, str(hub.base))
    about = checkpoint.about() | {"name": "org/base", "revision": hub.commit_of_base}
    delta = Delta({NAME: torch.ones(32, 64)}, torch.ones(1, 32), ["hexes"], about)
    delta.save(folder / "delta.safetensors")
    export(checkpoint, delta, folder / "model", "an old card")
    (folder / "model/notes.pt").write_bytes(b"what export did not write")
    (folder / "config.yaml").write_text("{}")
    ran = {"model": "org/base", "layer": 5, "steer": [6.5], "alpha": [1.0], "method": "rmu", "seed": 0}
    ran |= {"topics": ["hexes"], "trained_parameters": [NAME]}
    origin = {"versions": {}, "command": "c", "config_hash": "", "model_revision": hub.commit_of_base}
    results = {"schema": 2, "run": ran, "train": TRAIN, "qa": {"hexes": row(30, 100, 80)}, "provenance": origin}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def call(hub: Hub, home: Path, *calls: tuple[str, list[object]]) -> list[list]:
    """Exit status, output and errors of each command, with a token."""
    given = json.dumps([[token, list(map(str, words))] for token, words in calls])
    command = [sys.executable, "-c", CALLS, given]
    env = hub.env(home) | {"HF_HUB_ETAG_TIMEOUT": "2", "RMU_EXP_CACHE": str(home / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_what_was_pushed_can_be_pulled_applied_and_is_described(hub, run, tmp_path):
    answers = call(
        hub, tmp_path / "home",
        ("hf_mine", ["push", run, "me/whole", "--private"]),
        ("hf_mine", ["push", run, "me/delta", "--delta"]),
        ("hf_mine", ["push", run, "me/delta", "--delta"]),
        ("hf_mine", ["pull", "me/whole", tmp_path / "whole"]),
        ("", ["pull", "me/delta@main", tmp_path / "delta"]),
        ("", ["apply", f"org/base@{hub.commit_of_base}", tmp_path / "delta", tmp_path / "applied"]),
    )  # fmt: skip
    assert [status for status, _, _ in answers] == [0] * 6, json.dumps(answers, indent=0)
    assert hub.repos["model", "me/whole"].private
    assert not hub.repos["model", "me/delta"].private
    assert f"apply org/base@{hub.commit_of_base} {tmp_path / 'delta'} OUT" in answers[4][1]

    for name in ("whole", "applied"):
        weights, before = load_file(tmp_path / name / "model.safetensors"), load_file(hub.base / "model.safetensors")
        assert [key for key, value in weights.items() if not torch.equal(value, before[key])] == [NAME]
        assert bool((weights[NAME] == 1).all())
    held = {file.name for file in (tmp_path / "whole").iterdir()}
    assert held == {file.name for file in hub.base.iterdir()} | {"README.md"}
    assert {file.name for file in (tmp_path / "delta").iterdir()} == {"README.md", "delta.safetensors", "results.json"}

    for name, relation in (("whole", "finetune"), ("delta", "adapter")):
        data = ModelCard.load(tmp_path / name / "README.md").data
        assert (data.base_model, data.base_model_relation) == ("org/base", relation)
        assert [(r.dataset_name, r.metric_name, r.metric_value) for r in data.eval_results] == [
            ("hexes", "accuracy", 0.3),
            ("hexes", "accuracy of the base model", 0.8),
        ]
    assert "rmu-exp apply" in (tmp_path / "delta/README.md").read_text()


def test_every_refusal_is_one_line_and_nothing_large_is_sent_or_kept(hub, run, tmp_path):
    for name, files in (("public", {"a.txt": b""}), ("full", {"other.safetensors": b"weights"})):
        folder = tmp_path / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        hub.add(f"me/{name}", folder)
    out = tmp_path / "out"
    cases = {
        "is not yours": ("hf_other", ["push", run, "me/public"]),
        "or its name is not yours": ("hf_other", ["push", run, "me/new"]),
        "refuses the token": ("hf_wrong", ["push", run, "me/new"]),
        "and public": ("hf_mine", ["push", run, "me/public", "--private"]),
        "holds other.safetensors": ("hf_mine", ["push", run, "me/full"]),
        "no such model": ("hf_mine", ["pull", "me/nothing", out]),
        "no revision 'v9'": ("hf_mine", ["pull", "org/base@v9", out]),
        "holds neither": ("hf_mine", ["pull", "me/public", out]),
    }
    asked = len(hub.requests)
    for (part, (_, words)), (status, said, err) in zip(
        cases.items(), call(hub, tmp_path / "home", *cases.values()), strict=True
    ):
        assert (status, said if words[0] == "pull" else "") == (2, ""), (words, said, err)
        assert err.startswith("rmu_exp: "), err
        assert len(err.splitlines()) == 1, err
        assert part in err
    assert not [request for request in hub.requests[asked:] if request.startswith("PUT") or "/commit/" in request]
    assert ("model", "me/new") not in hub.repos
    assert not out.exists()

    hub.damage("model.safetensors", times=1)
    ((status, _, err),) = call(hub, tmp_path / "home", ("", ["pull", "org/base", out]))
    assert (status, "arrived damaged" in err, out.exists()) == (1, True, False)
    hub.refuse("/api/models/me/public", 0, times=1)
    ((status, _, err),) = call(hub, tmp_path / "home", ("hf_mine", ["push", run, "me/public"]))
    assert (status, len(err.splitlines())) == (1, 1), err


@pytest.mark.parametrize(
    ("words", "named", "token", "offline"),
    [
        (["push", "RUN", "just-a-name"], "ORG/NAME", "t", False),
        (["push", "RUN", "me/x@v1"], "ORG/NAME", "t", False),
        (["push", "EMPTY", "me/x"], "give a run's folder", "t", False),
        (["push", "RUN", "me/x"], "no token", "", False),
        (["push", "RUN", "me/x"], "switched off", "t", True),
        (["pull", "me/x", "EMPTY"], "exists already", "t", False),
        (["pull", "me/x", "OUT"], "switched off", "t", True),
    ],
)
def test_what_is_refused_without_asking(words, named, token, offline, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run), "EMPTY": str(tmp_path / "empty"), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines()), named in err) == ("", 1, True), err
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_makes_no_repository(hub, run, tmp_path):
    (tmp_path / "delta.safetensors").write_bytes((run / "delta.safetensors").read_bytes()[:-9])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({}))
    ((status, _, err),) = call(hub, tmp_path / "home", ("hf_mine", ["push", tmp_path, "me/broken"]))
    assert (status, "damaged" in err, ("model", "me/broken") in hub.repos) == (2, True, False)
