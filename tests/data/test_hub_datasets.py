"""Corpora through the hub's protocol, with the real libraries, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import standins
from hub import Hub

READ = """
import json, os, sys
from rmu_exp.data import sources
from rmu_exp.support.errors import RunError, UserError
for case in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    os.environ |= case.pop("env", {})
    try:
        corpus = sources.read(**case)
        answer = {"texts": corpus.texts, "bad": corpus.bad_lines, "dropped": corpus.dropped}
    except (UserError, RunError) as error:
        answer = {type(error).__name__: str(error)}
    print(json.dumps(answer), flush=True)
"""
READER, STRANGER, WRONG = ({"HF_TOKEN": f"hf_{who}"} for who in ("reader", "stranger", "wrong"))
CASES: dict[str, dict[str, Any]] = {
    "cyber": {"source": f"{standins.CORPORA}:{standins.CYBER_CONFIG}"},
    "wikitext": {"source": f"{standins.WIKITEXT}:{standins.WIKITEXT_CONFIG}:test"},
    "split by argument": {"source": f"{standins.WIKITEXT}:{standins.WIKITEXT_CONFIG}", "split": "test", "limit": 2},
    "gated": {"source": standins.BIO, "env": READER},
    "gated, no token": {"source": standins.BIO},
    "gated, another's token": {"source": standins.BIO, "env": STRANGER},
    "wrong token": {"source": "org/old", "env": WRONG},
    "missing": {"source": "org/nothing"},
    "missing, with a token": {"source": "org/nothing", "env": READER},
    "old revision": {"source": "org/old@v1"},
    "new revision": {"source": "org/old"},
    "no such revision": {"source": "org/old@v9"},
    "no such config": {"source": f"{standins.CORPORA}:chem"},
    "no config": {"source": standins.CORPORA},
    "no such split": {"source": f"{standins.CORPORA}:{standins.CYBER_CONFIG}:test"},
    "no column": {"source": f"{standins.WMDP}:wmdp-bio:test"},
    "jsonl": {"source": "org/lines"},
    "null": {"source": "org/null"},
    "null skipped": {"source": "org/null", "on_bad_line": "skip"},
    "damaged": {"source": "org/damaged"},
    "no data": {"source": "org/none"},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    made = tmp_path_factory.mktemp("repositories")
    with Hub() as hub:
        for name, folder in (standins.corpora(made) | standins.question_sets(made)).items():
            hub.add(name, folder, kind="dataset", gated=name == standins.BIO)
        for revision in ("v1", "main"):
            rows = standins.texts([f"Buttons of {revision}."])
            folder = standins.write(made / revision, {"default": {"train": rows}})
            hub.add("org/old", folder, kind="dataset", revision=revision)
        lines = made / "lines"
        lines.mkdir()
        (lines / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
        hub.add("org/lines", lines, kind="dataset")
        nulls: list[dict[str, Any]] = [{"text": "one"}, {"text": None}]
        hub.add("org/null", standins.write(made / "null", {"default": {"train": nulls}}), kind="dataset")
        damaged = standins.write(made / "damaged", {"default": {"train": standins.texts(["one"])}})
        file = next(damaged.rglob("*.parquet"))
        file.write_bytes(file.read_bytes()[:-20])
        hub.add("org/damaged", damaged, kind="dataset")
        (made / "none").mkdir()
        (made / "none" / "README.md").write_text("# Nothing\n")
        hub.add("org/none", made / "none", kind="dataset")
        hub.tokens = {"hf_reader": {standins.BIO}, "hf_stranger": set()}
        yield hub


def read(env: dict[str, str], *cases: dict[str, Any]) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", READ, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any("\n" in text for a in answers for key, text in a.items() if key.endswith("Error"))
    return answers


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def answers(hub: Hub, home: Path) -> dict[str, dict[str, Any]]:
    """What each of CASES gives, asked in one process."""
    return dict(zip(CASES, read(hub.env(home), *CASES.values()), strict=True))


def test_published_corpora_give_their_texts_in_order(answers):
    assert answers["cyber"]["texts"] == standins.cyber()
    assert answers["gated"]["texts"] == [paper["text"] for paper in standins.papers()]
    kept = [record for record in standins.wikitext() if len(record) > 0]
    assert answers["wikitext"] == {"texts": kept, "bad": 0, "dropped": len(standins.wikitext()) - len(kept)}
    assert answers["split by argument"]["texts"] == kept[:2]


def test_other_layouts_and_revisions(answers):
    assert answers["jsonl"]["texts"] == ["one", "two"]
    assert answers["old revision"]["texts"] == ["Buttons of v1."]
    assert answers["new revision"]["texts"] == ["Buttons of main."]
    assert answers["null skipped"] == {"texts": ["one"], "bad": 1, "dropped": 0}


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("gated, no token", ["gated", f"https://huggingface.co/datasets/{standins.BIO}", "hf auth login"]),
        ("gated, another's token", ["token in use", f"huggingface.co/datasets/{standins.BIO}", "hf auth login"]),
        ("wrong token", ["org/old", "refuses the token", "hf auth login", "HF_TOKEN"]),
        ("missing", ["org/nothing", "no such dataset"]),
        ("missing, with a token", ["org/nothing", "no such dataset"]),
        ("no such revision", ["org/old", "no revision 'v9'"]),
        ("no such config", ["'chem' not found", standins.CYBER_CONFIG]),
        ("no config", ["Config name is missing", standins.CYBER_CONFIG]),
        ("no such split", ["Unknown split", "test", "train"]),
        ("no column", ["no column 'text'", "question, choices, answer"]),
        ("null", ["org/null, row 2", "data.on_bad_line=skip"]),
        ("damaged", ["org/damaged", "cannot be loaded"]),
        ("no data", ["org/none", "any data files"]),
    ],
)
def test_what_cannot_be_read_is_one_line(answers, case, parts):
    assert set(answers[case]) == {"UserError"}
    assert [part for part in parts if part not in answers[case]["UserError"]] == []


def test_a_second_run_needs_no_hub(hub, home, answers):
    asked = len(hub.requests)
    cases = [CASES[name] for name in ("cyber", "wikitext", "gated", "new revision", "old revision")]
    again = read(hub.env(home, offline=True), *cases)
    assert again[:3] == [answers["cyber"], answers["wikitext"], answers["gated"]]
    assert again[3] == answers["new revision"]
    assert "only the newest revision" in again[4]["UserError"]  # never another revision's texts
    missing = read(hub.env(home, offline=True), {"source": "org/nothing"}, {"source": f"{standins.CORPORA}:chem"})
    assert "switched off" in missing[0]["UserError"]
    assert "rmu_exp fetch" in missing[0]["UserError"]
    assert "config 'chem'" in missing[1]["UserError"]
    assert len(hub.requests) == asked


def test_a_download_that_breaks_off_is_never_taken_for_a_whole_one(hub, tmp_path):
    hub.fail(".parquet", at=100)
    try:
        (broken,) = read(hub.env(tmp_path), CASES["cyber"])
        offline = read(hub.env(tmp_path, offline=True), CASES["cyber"])
    finally:
        hub.faults.clear()
    assert "broke off" in broken["RunError"]
    assert set(offline[0]) == {"UserError"}
    (whole,) = read(hub.env(tmp_path), CASES["cyber"])
    assert whole["texts"] == standins.cyber()


def test_a_stall_is_outlived(hub, tmp_path):
    hub.fail(".parquet", at=100, stall=4, times=1)
    (whole,) = read(hub.env(tmp_path), CASES["cyber"])
    assert hub.faults.pop().times == 0
    assert whole["texts"] == standins.cyber()


def test_without_a_network_the_refusal_is_quick(hub, tmp_path):
    env = hub.env(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    (refused,) = read(env, CASES["cyber"])
    assert "cannot be reached" in refused["RunError"]
    assert "HF_HUB_OFFLINE=1" in refused["RunError"]
