"""python -m rmu_exp: what each command hands on, writes, and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from rmu_exp.__main__ import COMMANDS, main
from rmu_exp.cli import fetch
from rmu_exp.model.checkpoint import locate
from rmu_exp.model.delta import Delta
from rmu_exp.support.errors import RunError, UserError

DELTA = "delta.safetensors"
NAME = "model.layers.3.mlp.down_proj.weight"
ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
WMDP = [
    "cais/wmdp-bio-forget-corpus",
    "cais/wmdp-corpora:cyber-forget-corpus",
    "Salesforce/wikitext:wikitext-2-raw-v1:test",
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the fetch command hands on, in place of fetching it."""
    calls: list[dict[str, Any]] = []

    def record(folder: Path, **wanted: Any) -> Iterator[str]:
        calls.append({"folder": folder} | wanted)
        yield "model org/model: there"

    monkeypatch.setattr(fetch, "fetch", record)
    return calls


def test_help_and_refusals_import_nothing_heavy():
    code = (
        "import sys\n"
        "from rmu_exp.__main__ import main\n"
        "assert main(['fetch', 'folder', 'model=nope']) == 2\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'wandb', 'datasets', 'huggingface_hub', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "main(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"    {command}" in done.stdout


def test_fetch_takes_what_the_run_says(asked, tmp_path, capsys):
    assert main(["fetch", str(tmp_path / "my folder"), "model=zephyr_7b", "data=wmdp", "model.revision=v1"]) == 0
    assert asked == [
        {
            "folder": tmp_path / "my folder",
            "models": [f"{ZEPHYR}@v1"],
            "corpora": WMDP,
            "tasks": ["wmdp_bio", "wmdp_cyber", "wmdp_chem", "mmlu"],
            "depth": None,
            "trust_remote_code": False,
            "include_path": [],
        }
    ]
    first, _, _, last = capsys.readouterr().out.splitlines()
    assert first == "model org/model: there"
    command = "python train.py model=zephyr_7b data=wmdp model.revision=v1"
    assert last == f"  HF_HOME='{tmp_path}/my folder' HF_HUB_OFFLINE=1 {command}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model=zephyr_7b", "data=wmdp", "eval=none"], {"depth": 8, "tasks": [], "corpora": WMDP}),
        (["model=zephyr_7b", "data=wmdp", "eval=none", "export=true"], {"depth": None}),
        (["model=zephyr_7b", "data=wmdp", "eval=none", "layer=3,5"], {"depth": 6, "models": [ZEPHYR]}),
        (["model=zephyr_7b", "data=wmdp", "eval=none", "method=npo"], {"depth": None}),
        (["model=zephyr_7b", "data=wmdp", "eval=none", "method=multi_layer", "method.offsets=[-1,1]"], {"depth": 9}),
        (["model=zephyr_7b", "eval=none", "eval.perplexity=org/held:out:test"], {"corpora": ["org/held:out:test"]}),
        (
            ["model=zephyr_7b", "data=wmdp", "eval=none", "attacks=[probe]", "model.oracle=org/oracle"],
            {"depth": None, "models": [ZEPHYR, "org/oracle"], "tasks": ["wmdp_bio", "wmdp_cyber"]},
        ),
        (["model=zephyr_7b", "data=wmdp", "eval=none", "model.oracle=org/oracle"], {"models": [ZEPHYR]}),
        (["model=zephyr_7b", "eval=none"], {"corpora": []}),
        (["eval.tasks=[lore_forget,mmlu_virology]"], {"models": [], "tasks": ["mmlu_virology"]}),
        (["model=zephyr_7b", "eval=none", "model.trust_remote_code=true"], {"trust_remote_code": True}),
    ],
)
def test_fetch_takes_no_more_than_the_run_needs(asked, tmp_path, words, expected):
    assert main(["fetch", str(tmp_path / "folder"), *words]) == 0
    assert {key: asked[0][key] for key in expected} == expected


def test_fetch_takes_what_is_named_one_by_one(asked, tmp_path):
    words = ["--model", "a/b@v1", "--model", "c/d", "--layers", "8", "--corpus", "e/f:g", "--task", "wmdp_bio"]
    assert main(["fetch", str(tmp_path), *words]) == 0
    wanted = {"models": ["a/b@v1", "c/d"], "corpora": ["e/f:g"], "tasks": ["wmdp_bio"], "depth": 8}
    assert asked == [{"folder": tmp_path} | wanted]


@pytest.mark.parametrize(("error", "status", "was_there"), [(UserError, 2, False), (RunError, 1, True)])
def test_a_fetch_that_fails_leaves_no_new_empty_folder(monkeypatch, tmp_path, capsys, error, status, was_there):
    def fail(folder, **wanted):
        (folder / "hub").mkdir(parents=True)
        raise error("a/b: why, and what to do")
        yield

    monkeypatch.setattr(fetch, "fetch", fail)
    if was_there:
        (tmp_path / "folder").mkdir()
    assert main(["fetch", str(tmp_path / "folder"), "--model", "a/b"]) == status
    assert capsys.readouterr() == ("", "rmu_exp: a/b: why, and what to do\n")
    assert (tmp_path / "folder").exists() == was_there


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.mistral(tmp_path_factory.mktemp("base") / "mine")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    """A run's folder: config.yaml, results.json and the Delta of one tensor set to ones."""
    checkpoint = locate(None, str(base))
    folder = tmp_path / "run"
    about = checkpoint.about()
    Delta({NAME: torch.ones(32, 64)}, torch.ones(1, 32), ["hexes"], about).save(folder / DELTA)
    model = {"name": None, "path": str(base), "revision": None, "trust_remote_code": False}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    ran = {"model": str(base), "layer": 5, "steer": [6.5], "alpha": [1.0], "method": "rmu", "seed": 0}
    ran |= {"topics": ["hexes"], "trained_parameters": [NAME]}
    (folder / "results.json").write_text(json.dumps({"schema": 1, "run": ran}))
    return folder


def check_written(out: Path, base: Path) -> None:
    """A checkpoint that transformers loads, which is the base with the one tensor changed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert [name for name, value in after.items() if not torch.equal(value, before[name])] == [NAME]
    assert bool((after[NAME] == 1).all())
    assert AutoTokenizer.from_pretrained(out)("the river")["input_ids"]
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()} | {"README.md"}


@pytest.mark.parametrize("words", [["export", "RUN"], ["apply", "BASE", "RUN"], ["apply", "BASE", "RUN/" + DELTA]])
def test_export_and_apply_write_the_runs_checkpoint(run, base, tmp_path, words):
    given = [word.replace("RUN", str(run)).replace("BASE", str(base)) for word in words]
    assert main([*given, str(tmp_path / "out")]) == 0
    check_written(tmp_path / "out", base)
    text = (tmp_path / "out/README.md").read_text()
    assert "| layer | 5 |" in text
    assert "# mine, unlearned" in text


def test_a_delta_without_its_run_gets_a_card_of_what_it_tells(run, base, tmp_path):
    alone = tmp_path / "alone" / DELTA
    alone.parent.mkdir()
    alone.write_bytes((run / DELTA).read_bytes())
    assert main(["apply", str(base), str(alone), str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/README.md").read_text()
    assert "on the topics hexes" in text
    assert f"- `{NAME}`" in text
    assert "| layer |" not in text


def test_another_runs_results_are_not_put_on_the_card(run, base, tmp_path):
    results = json.loads((run / "results.json").read_text())
    results["run"]["trained_parameters"] = ["model.layers.1.mlp.down_proj.weight"]
    (run / "results.json").write_text(json.dumps(results))
    assert main(["apply", str(base), str(run), str(tmp_path / "out")]) == 0
    assert "layers.1." not in (tmp_path / "out/README.md").read_text()


def test_export_takes_a_base_that_has_moved(run, base, tmp_path):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(base), str(tmp_path / "gone")))
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert main(["export", str(run), str(tmp_path / "out"), "--base", str(base)]) == 0
    check_written(tmp_path / "out", base)


@pytest.mark.parametrize(
    "asked",
    [("org/model", "c0ffee"), ("org/model@v2", "v2"), ("org/other", None), ("org/other@v1", "v1"), ("smollm2_135m",)],
)
def test_a_base_of_the_hub_is_taken_at_the_deltas_commit(monkeypatch, tmp_path, capsys, asked):
    given = asked[0]
    expected = (given.partition("@")[0], None, asked[1]) if len(asked) > 1 else asked

    def stop(*given: Any) -> None:
        raise UserError(f"asked for {given}")

    monkeypatch.setattr("rmu_exp.cli.apply.locate", stop)
    about = {"name": "org/model", "revision": "c0ffee", "digest": ""}
    Delta({NAME: torch.ones(1)}, None, [], about).save(tmp_path / DELTA)
    assert main(["apply", given, str(tmp_path), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"rmu_exp: asked for {expected}\n"


BAD = {
    "no command": ([], "COMMAND"),
    "unknown command": (["fetsh"], "fetch"),
    "no folder": (["fetch"], "DIR"),
    "both ways": (["fetch", "DIR", "model=zephyr_7b", "--model", "a/b"], "not both"),
    "wrong override": (["fetch", "DIR", "model=zephyr_7c"], "zephyr_7b"),
    "wrong key": (["fetch", "DIR", "stear=1"], "did you mean steer?"),
    "nothing to fetch": (["fetch", "DIR"], "needs nothing from the hub"),
    "layers of a run": (["fetch", "DIR", "model=zephyr_7b", "--layers", "3"], "--layers"),
    "no layers": (["fetch", "DIR", "--model", "a/b", "--layers", "0"], "--layers: got 0"),
    "no number": (["fetch", "DIR", "--model", "a/b", "--layers", "x"], "invalid int value: 'x'"),
    "no base": (["apply", "nowhere", "DELTA", "OUT"], "model.path: nowhere"),
    "no delta": (["apply", "BASE", "nothing.safetensors", "OUT"], "nothing.safetensors"),
    "out exists": (["apply", "BASE", "DELTA", "RUN"], "exists"),
    "not a run": (["export", "BASE", "OUT"], "config.yaml"),
    "another base": (["apply", "OTHER", "DELTA", "OUT"], "was made for"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_leaves_nothing(case, run, base, tmp_path, capsys, monkeypatch):
    other = tiny.mistral(tmp_path / "other", layers=4, seed=1) if case == "another base" else tmp_path
    names = {"DIR": tmp_path / "dir", "OUT": tmp_path / "out", "RUN": run, "BASE": base, "OTHER": other}
    names["DELTA"] = run / DELTA
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()  # transformers' bars
    words, named = BAD[case]
    assert main([str(names.get(word, word)) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rmu_exp: ")
    assert len(err.splitlines()) == 1
    assert named in err
    assert sorted(tmp_path.rglob("*")) == before
