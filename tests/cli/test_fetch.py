"""Everything into a folder, through the hub's protocol; then everything from the folder, without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import standins
import tiny
from hub import Hub

FETCH = """
import json, sys
from pathlib import Path
from rmu_exp.support.errors import RunError, UserError
from rmu_exp.cli.fetch import fetch
for wanted in json.loads(sys.argv[2]):
    try:
        for line in fetch(Path(sys.argv[1]), **wanted):
            print(line)
    except (UserError, RunError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
"""
USE = """
import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from rmu_exp.data import sources
from rmu_exp.evaluation.catalogue import find
from rmu_exp.model.checkpoint import locate
trunk = locate("org/model").open(2, torch.float32, torch.device("cpu"))
model = AutoModelForCausalLM.from_pretrained("org/model")
tokenizer = AutoTokenizer.from_pretrained("org/model")
tasks = ["wmdp_bio", "mmlu_virology"]
loaded = find(tasks).load(tasks)["tasks"]
virology = loaded["mmlu_virology"]
doc = next(iter(virology.test_docs()))
print(json.dumps({
    "layers": [len(trunk.layers), len(model.model.layers)],
    "ids": tokenizer("the river")["input_ids"],
    "bio": sources.read("BIO").texts,
    "questions": {name: len(task.test_docs()) for name, task in loaded.items()},
    "asked": virology.doc_to_text(doc),
    "target": virology.doc_to_target(doc),
    "shots": len(virology.fewshot_docs()),
}))
""".replace("BIO", standins.BIO)
WANTED = {
    "models": ["org/model"],
    "corpora": [standins.BIO, f"{standins.CORPORA}:{standins.CYBER_CONFIG}", "a/local/file.jsonl"],
    "tasks": ["wmdp_bio", "mmlu_virology"],
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = tmp_path_factory.mktemp("repositories")
    with Hub() as hub:
        for name, folder in (standins.corpora(made) | standins.question_sets(made)).items():
            hub.add(name, folder, kind="dataset", gated=name == standins.BIO)
        model = tiny.mistral(made / "model")
        shard(model)
        (model / "pytorch_model.bin").write_bytes(b"pickled weights, never wanted")
        hub.add("org/model", model)
        (made / "pickled").mkdir()
        (made / "pickled" / "config.json").write_text("{}")
        (made / "pickled" / "pytorch_model.bin").write_bytes(b"pickled")
        hub.add("org/pickled", made / "pickled")
        hub.tokens = {"hf_reader": {standins.BIO}}
        yield hub


def shard(folder: Path) -> None:
    """A checkpoint's one file as four: embedding with layers 0-1, 2-3, 4-5, and norm with head."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts: dict[str, dict] = {}
    for name, tensor in weights.items():
        number = int(name.split(".")[2]) // 2 if ".layers." in name else 0 if "embed" in name else 3
        parts.setdefault(f"model-0000{number + 1}-of-00004.safetensors", {})[name] = tensor
    for file, tensors in parts.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def fetch(env: dict[str, str], folder: Path, *wanted: dict) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FETCH, str(folder), json.dumps(wanted)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def weights(hub: Hub) -> dict[str, int]:
    """Shard number to how often its content was transferred; other weight files by their names."""
    found = {key.split("/")[-1]: n for key, n in hub.downloads.items() if key.startswith("org/model/")}
    return {name[10] if "-of-" in name else name: n for name, n in found.items() if not name.endswith("json")}


def test_a_fetched_folder_is_all_that_a_machine_without_network_needs(hub, tmp_path):
    hub.downloads.clear()
    done = fetch(hub.env(tmp_path / "home", token="hf_reader"), tmp_path / "fetched", WANTED)
    assert done.returncode == 0, done.stderr
    assert f"model org/model: all layers, at commit {hub.repos['model', 'org/model'].refs['main']}" in done.stdout
    assert f"corpus {standins.BIO}: 5 texts" in done.stdout
    assert weights(hub) == {"1": 1, "2": 1, "3": 1, "4": 1}

    again = fetch(hub.env(tmp_path / "home", token="hf_reader"), tmp_path / "fetched", WANTED)
    assert again.stdout == done.stdout
    assert weights(hub) == {"1": 1, "2": 1, "3": 1, "4": 1}
    files = [path for path in (tmp_path / "fetched").rglob("*") if path.is_file()]
    assert [path for path in files if b"hf_reader" in path.read_bytes()] == []

    moved, asked = tmp_path / "another machine", len(hub.requests)
    shutil.copytree(tmp_path / "fetched", moved, symlinks=True)
    shutil.rmtree(tmp_path / "fetched")
    env = hub.env(moved, offline=True)
    use = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert use.returncode == 0, use.stderr
    found = json.loads(use.stdout.splitlines()[-1])
    assert found["bio"] == [paper["text"] for paper in standins.papers()]
    assert found["questions"] == {"wmdp_bio": 8, "mmlu_virology": 5}
    assert found["asked"] == "What is 0 + 0?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer:"
    assert (found["target"], found["shots"]) == (0, 5)
    assert found["layers"] == [2, 6]
    assert len(found["ids"]) == 2
    assert len(hub.requests) == asked


def test_a_wanted_shard_that_breaks_off_is_not_there_and_the_next_fetch_brings_it(hub, tmp_path):
    hub.downloads.clear()
    hub.fail("00002-of-00004.safetensors", at=1000)
    env, wanted = hub.env(tmp_path / "home"), {"models": ["org/model@main"], "depth": 3}
    try:
        broken = fetch(env, tmp_path / "fetched", wanted)
    finally:
        hub.faults.clear()
    assert "RunError: org/model: the connection broke off" in broken.stderr.splitlines()[-1]
    shards = {path.name: path for path in (tmp_path / "fetched").rglob("*.safetensors")}
    assert "model-00002-of-00004.safetensors" not in shards
    done = fetch(env, tmp_path / "fetched", wanted)
    assert done.returncode == 0, done.stderr
    assert set(weights(hub)) == {"1", "2"}, "more than the layers that are wanted"
    commit = hub.repos["model", "org/model"].commits[hub.repos["model", "org/model"].refs["main"]]
    shards = {path.name: path for path in (tmp_path / "fetched").rglob("*.safetensors")}
    assert {path.read_bytes() == commit[name] for name, path in shards.items()} == {True}


REFUSED = [
    ({"models": ["org/nothing"]}, "UserError: org/nothing: no such model"),
    ({"models": ["org/model@v9"]}, "UserError: org/model: no revision 'v9'"),
    ({"models": ["org/pickled"]}, "org/pickled"),
    ({"corpora": [standins.BIO]}, f"UserError: {standins.BIO}: a gated dataset"),
    (
        {"tasks": ["mmlu_astronomy"]},
        "UserError: eval.tasks: lm-eval refuses mmlu_astronomy (BuilderConfig 'astronomy' not found",
    ),
    ({"tasks": ["arc_easy"]}, "UserError: allenai/ai2_arc: no such dataset"),
]


def test_what_cannot_be_fetched_is_one_line(hub, tmp_path):
    done = fetch(hub.env(tmp_path / "home"), tmp_path / "fetched", *(wanted for wanted, _ in REFUSED))
    for (_, message), line in zip(REFUSED, done.stderr.splitlines(), strict=True):
        assert message in line
