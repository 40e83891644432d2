"""Checkpoints from a hub: what is downloaded, what the cache is good for, and every refusal in one line.

The hub's clients read their settings when they are imported, so each test uses them in a process of its own.
Downloads that break off are in tests/test_fetch.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from families import make_checkpoint
from hub import Hub
from safetensors.torch import load_file, save_file

from rmu_exp.model import weight_files
from rmu_exp.model.checkpoint import locate

ASK = """
import json, os, sys
from pathlib import Path
import torch
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.model.export import export

def answer(name, revision=None, fetch=(), open=None, token=None, out=None):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    checkpoint = locate(name, None, revision)
    found = {"revision": checkpoint.revision, "depth": checkpoint.depth, "digest": checkpoint.digest()}
    for depth in fetch:
        checkpoint.fetch(depth)
    if open:
        model = checkpoint.open(open, torch.float32, torch.device("cpu"))
        found["sum"] = float(sum(p.double().sum() for p in model.parameters()))
        found["ids"] = checkpoint.tokenizer()("w1")["input_ids"]
    if out:
        name = "model.layers.0.mlp.down_proj.weight"
        export(checkpoint, Delta({name: torch.zeros(16, 24)}, None, [], checkpoint.about()), Path(out))
    return found

for question in json.loads(sys.argv[1]):
    try:
        print(json.dumps(answer(**question)))
    except (UserError, RunError) as error:
        print(json.dumps({type(error).__name__: str(error)}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("mistral", tmp_path_factory.mktemp("base"), shard="12KB")


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickled")
    extra = Path(shutil.copytree(folder, tmp_path / "extra"))
    (extra / "consolidated.safetensors").write_bytes(b"never wanted")
    (extra / "own.py").write_text("raise SystemExit")
    with Hub() as hub:
        hub.add("org/model", extra)
        hub.add("org/gated", tmp_path / "pickled", gated=True)
        hub.add("org/pickled", tmp_path / "pickled")
        hub.tokens = {"hf_reader": set()}
        yield hub


def ask(env: dict[str, str], *questions: dict) -> list[dict]:
    """Answers of one process, in one line each; nothing else is printed."""
    command = [sys.executable, "-c", ASK, json.dumps(questions)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def downloaded(hub: Hub, ending: str = ".safetensors") -> set[str]:
    """Files whose content was transferred, each of them once."""
    files = {key.removeprefix("org/model/"): n for key, n in hub.downloads.items() if key.endswith(ending)}
    assert set(files.values()) <= {1}
    return set(files)


def environment(hub: Hub, tmp_path: Path, **options: bool) -> dict[str, str]:
    return hub.env(tmp_path / "home", **options) | {"RMU_EXP_CACHE": str(tmp_path / "cache")}


def test_only_what_is_needed_is_downloaded_and_the_cache_is_enough_afterwards(hub, folder, tmp_path):
    local = locate(None, str(folder))
    shards = set(weight_files.weight_map(folder).values())
    lower = set(weight_files.needed(weight_files.weight_map(folder), 2).values())
    assert lower < shards
    here, away = environment(hub, tmp_path), environment(hub, tmp_path, offline=True)
    model = {"name": "org/model"}

    (online,) = ask(here, model | {"fetch": [2]})
    commit = hub.repos["model", "org/model"].refs["main"]
    assert online == {"revision": commit, "depth": 4, "digest": local.digest()}
    assert downloaded(hub) == lower
    assert not downloaded(hub, ".py")

    named = model | {"revision": commit}
    offline, by_commit, lacking, unknown = ask(
        away, model | {"open": 2}, named, model | {"fetch": [None]}, {"name": "org/nothing"}
    )
    digest = f"commit:{commit}"  # of shards that are not here, nobody can tell the digest
    opened = local.open(2, torch.float32, torch.device("cpu"))
    total = float(sum(p.double().sum() for p in opened.parameters()))
    assert offline == online | {"digest": digest, "sum": total, "ids": [4]}
    assert by_commit == online | {"digest": digest}
    assert all("switched off" in answer["UserError"] for answer in (lacking, unknown))

    ask(here, model | {"out": str(tmp_path / "out")})
    assert downloaded(hub) == shards
    assert ask(away, model) == [online]
    exported = {file.name for file in (tmp_path / "out").iterdir()}
    assert exported == {file.name for file in folder.iterdir()}
    assert sum((tmp_path / "out" / n).read_bytes() != (folder / n).read_bytes() for n in exported) == 1


def test_a_quantised_repository_is_fetched_whole_and_dequantised(hub, folder, tmp_path):
    place = Path(shutil.copytree(folder, tmp_path / "quantised"))
    name = "model.layers.0.mlp.down_proj.weight"
    file = weight_files.weight_map(place)[name]
    tensors = load_file(place / file)
    scale = tensors[name].abs().amax() / 127
    tensors |= {name: (tensors[name] / scale).round().to(torch.int8), f"{name}_scale": scale[None]}
    save_file(tensors, place / file, {"format": "pt"})
    index = json.loads((place / weight_files.INDEX).read_text())
    index["weight_map"][f"{name}_scale"] = file
    (place / weight_files.INDEX).write_text(json.dumps(index))
    raw = json.loads((place / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (place / "config.json").write_text(json.dumps(raw | {"dtype": "float32"}))
    hub.add("org/quantised", place)
    question = {"name": "org/quantised", "open": 2}
    (online,) = ask(environment(hub, tmp_path), question)
    (offline,) = ask(environment(hub, tmp_path, offline=True), question)
    opened = locate(None, str(folder)).open(2, torch.float32, torch.device("cpu"))
    total = float(sum(p.double().sum() for p in opened.parameters()))
    change = float((tensors[name].float() * scale - load_file(folder / file)[name]).double().sum())
    assert online["sum"] == pytest.approx(total + change, abs=1e-5)
    assert change != 0
    assert online == offline
    assert online["revision"] == hub.repos["model", "org/quantised"].refs["main"]
    (place / "config.json").write_text(json.dumps(raw | {"quantization_config": {"quant_method": "hqq"}}))
    hub.add("org/unknown", place)
    (unknown,) = ask(environment(hub, tmp_path), {"name": "org/unknown"})
    assert "org/unknown is quantised by hqq, which is not dequantised here" in unknown["UserError"]
    assert not [key for key in hub.downloads if key.startswith("org/unknown") and key.endswith(".safetensors")]


def test_a_cache_without_a_ref_or_with_a_line_end_in_it(hub, folder, tmp_path):
    away = environment(hub, tmp_path, offline=True)
    cache = Path(away["HF_HOME"]) / "hub" / "models--org--mine"
    one, other = "a" * 40, "b" * 40
    shutil.copytree(folder, cache / "snapshots" / one)
    assert ask(away, {"name": "org/mine"})[0]["revision"] == one
    shutil.copytree(folder, cache / "snapshots" / other)
    assert "2 versions, and refs/main names none" in ask(away, {"name": "org/mine"})[0]["UserError"]
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(f"{other}\n")
    assert ask(away, {"name": "org/mine"})[0]["revision"] == other


def test_revisions_and_refusals(hub, folder, tmp_path):
    first = hub.repos["model", "org/model"].refs["main"]
    small = make_checkpoint("mistral", tmp_path / "small", layers=3, seed=5)
    newest = make_checkpoint("mistral", tmp_path / "newest", seed=9, shard="12KB")
    commits = {"small": hub.add("org/model", small, revision="small"), None: hub.add("org/model", newest), first: first}
    names = [("org/model", revision) for revision in (*commits, "large")]
    names += [(name, None) for name in ("org/gated", "org/nothing", "org/pickled", "not a name")]
    questions = [{"name": name, "revision": revision} for name, revision in names]
    questions += [{"name": "org/gated", "token": "hf_reader"}, {"name": "org/model", "token": "hf_wrong"}]
    answers = ask(environment(hub, tmp_path), *questions)

    for (revision, commit), path, answer in zip(commits.items(), (small, newest, folder), answers, strict=False):
        expected = (commit, 3 if revision == "small" else 4, locate(None, str(path)).digest())
        assert (answer["revision"], answer["depth"], answer["digest"]) == expected
    large, gated, nothing, pickled, no_name, reader, wrong = (answer["UserError"] for answer in answers[3:])
    assert "no revision 'large'" in large
    assert all(part in gated for part in ("gated", "/org/gated", "`hf auth login`"))
    assert "no such model" in nothing
    assert "only pickled weights" in pickled
    assert "ORG/NAME" in no_name
    assert "may not read" in reader
    assert "refuses the token" in wrong
    assert not downloaded(hub)
