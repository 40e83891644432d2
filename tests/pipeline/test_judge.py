"""The real command line of judge.py: what it refuses, and what it writes for two checkpoints and for a run's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import program
import pytest
import tiny
import torch
from program import ROOT
from safetensors.torch import load_file, save_file

from rmu_exp.__main__ import main
from rmu_exp.cli import compose
from rmu_exp.evaluation import generate
from rmu_exp.model.checkpoint import locate
from rmu_exp.pipeline import run
from rmu_exp.report import methods
from rmu_exp.support.errors import UserError

LORE = ROOT / "src/rmu_exp/worlds/lore/weights"


def judge(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return program.run("judge.py", *words, cwd=cwd, RMU_EXP_CACHE=cwd / ".cache")


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """Lore's model with noise in the matrices that RMU trains."""
    folder = tmp_path_factory.mktemp("broken") / "model"
    shutil.copytree(LORE, folder)
    tensors = load_file(folder / "model.safetensors")
    for layer in (5, 6, 7):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        tensors[name] = tensors[name] + 0.2 * torch.randn(
            tensors[name].shape, generator=torch.Generator().manual_seed(layer)
        )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def there(tmp_path, monkeypatch) -> Path:
    """A working folder with what the wrong inputs name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / ".cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.yaml").write_text("seed: 0\n")
    tiny.mistral(tmp_path / "tiny")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], ["unlearned: not given"]),
        (["unlearned=nowhere"], ["unlearned", "'nowhere'", "ORG/NAME"]),
        (["unlearned=empty"], ["empty", "config.json"]),
        (["unlearned=tiny", "attacks=[lens]"], ["unlearned", "does not match lore", "hidden_size"]),
        (["unlearned=half"], ["run without a model"]),
        ([f"unlearned={LORE}"], ["same weights"]),
        ([f"unlearned={LORE}", "attacks=[nope]"], ["attacks", "'nope'", "probe"]),
        ([f"unlearned={LORE}", "attacks=[lens]", "attacks.lens.places=[]"], ["attacks.lens.places", "empty"]),
        ([f"unlearned={LORE}", "eval=none"], ["attacks", "nothing to do"]),
        ([f"unlearned={LORE}", "layer=3"], ["layer", "no such key"]),
        ([f"unlearned={LORE}", "attacks=[lens]", "data.questions.forget=[]"], ["data.questions.forget", "not given"]),
        ([f"unlearned={LORE}", "attacks=[lens]", "data.questions.forget=[lore_forget]", "eval.limit=1"], ["too few"]),
        ([f"unlearned={LORE}", "attacks=[lens]", "model.oracle=tiny"], ["model.oracle", "does not match"]),
    ],
    ids=lambda v: " ".join(w.replace(str(LORE), "lore") for w in v) if isinstance(v, list) else "",
)
def test_wrong_input_is_told_in_one_line(words, named, there):
    with pytest.raises(UserError) as told:
        prepare([*words, "output=out"])
    assert len(str(told.value).splitlines()) == 1
    for word in named:
        assert word in str(told.value)
    assert not Path("out").exists()


def prepare(words: list[str]) -> None:
    """What judge.py does before it writes anything."""
    (composed,) = compose.composed(["model=lore", "data=lore", *words], ROOT / "conf", name="judge")
    run.prepare(composed, Path("out"))


def test_several_checkpoints_are_judged_into_a_folder_each(broken, tiny_run, tmp_path):
    """Also from folders whose names mean something to Hydra; one table compares them, and runs beside them."""
    for name in ("layer=3,steer=2", "other"):
        (tmp_path / name).symlink_to(broken)
    words = [
        "model=lore",
        "data=lore",
        "unlearned=layer=3,steer=2,other,nowhere",
        "attacks=[norms]",
        "eval.tasks=[lore_forget,lore_general]",
        "eval.limit=4",
        "tracking=off",
        "output=a=b",
    ]
    (tmp_path / "nowhere").mkdir()
    done = judge("-m", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    judged = {
        p: (p / "results.json").is_file() for p in (tmp_path / "a=b").iterdir() if p.name.startswith("unlearned=")
    }
    (bad,) = [p for p, good in judged.items() if not good]
    assert all("norms" in json.loads((p / "results.json").read_text())["attacks"] for p, good in judged.items() if good)
    assert "config.json" in (bad / "error.txt").read_text()
    assert "1 of 3 trials did not finish; the same command with output=" in done.stderr
    page, _ = methods.write([tmp_path / "a=b", tiny_run])
    rows = [line.split(" | ")[0].lstrip("| ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert {"layer=3,steer=2 on lore", "other on lore", "base on lore"} <= set(rows)
    assert any(row.startswith("rmu on ") for row in rows)


def test_the_program_ends_with_status_2_and_leaves_nothing(tmp_path):
    done = judge("unlearned=nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("rmu_exp: unlearned: got 'nowhere'")
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir() if p.name != ".cache"] == []


def test_two_checkpoints_with_questions_a_probe_and_a_chat(broken, tmp_path, monkeypatch, capsys):
    words = (
        "data=lore",
        f"base={LORE}",
        f"unlearned={broken}",
        "attacks=[lens,norms]",
        "tracking=off",
        "eval.limit=6",
        "output=out",
        "eval.tasks=[lore_forget,lore_general]",
    )
    done = judge(*words, f"model.oracle={LORE}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["run"]["changed_tensors"] == [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)]
    assert results["qa"]["lore_forget"]["base"]["acc"] > 0.9 > results["qa"]["lore_forget"]["unlearned"]["acc"]
    lens = results["attacks"]["lens"]
    assert set(lens["forget_acc"]) == {"before", "after"}
    assert lens["control"]["oracle"]["acc"] == lens["control"]["base"]["acc"]
    assert lens["budget"]["readings"] == 48
    assert results["activations"]["retain texts"]["norm_base"]
    assert {"attacks.png", "lens_layers.png", "norms_norms.png"} <= {p.name for p in (tmp_path / "out/plots").iterdir()}
    report = (tmp_path / "out/report.md").read_text()
    assert "Does the knowledge survive?" in report
    assert "under the worst of 1 attack (lens" in report
    assert "under the worst of" in done.stdout
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / ".cache"))
    assert main(["chat", str(tmp_path / "out"), "What is a hex?", "--tokens", "3", "--plain"]) == 0
    said = capsys.readouterr().out
    checkpoints = [locate(None, str(folder)) for folder in (LORE, broken)]
    for checkpoint in checkpoints:
        model, tokenizer = checkpoint.open(None, torch.float32, torch.device("cpu")), checkpoint.tokenizer()
        ids = tokenizer("What is a hex?")["input_ids"]
        (found,) = generate.write(model, tokenizer, [ids], tokens=3, context=checkpoint.context)
        assert found.text.strip() in said
    assert main(["chat", str(tmp_path / "out"), "--base", str(broken), "x"]) == 2
    assert "same weights" in capsys.readouterr().err


def test_a_run_is_judged_by_questions_of_ones_own_with_a_role(tiny_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.csv").write_text(
        "question,A,B,answer\nWhat is a hex?,a spell,a ship,A\nA ward is,a shield,a town,A\n"
    )
    words = (f"unlearned={tiny_run}", f"data.questions.forget=[{tmp_path}/mine.csv]", "tracking=off", "output=out")
    done = judge(*words, "eval.limit=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out/results.json").read_text())["qa"]["mine"]
    assert (row["role"], row["base"]["n"]) == ("forget", 2)
    low, high = row["base"]["choice_prob_ci95"]
    assert 0 <= low <= row["base"]["choice_prob"] <= high <= 1
    line = json.loads((tmp_path / "out/answers.jsonl").read_text().splitlines()[0])
    assert (line["text"], line["options"], line["right"]) == ("What is a hex?", ["a spell", "a ship"], "a spell")
    assert sum(line["base_probs"]) == pytest.approx(1)
    report = (tmp_path / "out/report.md").read_text()
    assert "### forget" in report
    assert "What is a hex?" in report
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / ".cache"))
    assert main(["chat", str(tmp_path / "out"), "two herons", "--tokens", "2"]) == 0
    assert "unlearned" in capsys.readouterr().out


def test_a_changed_embedding_or_a_token_more_is_one_line_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("RMU_EXP_CACHE", str(tmp_path / "cache"))
    base, out = tiny.mistral(tmp_path / "base"), tmp_path / "out"
    tensors = load_file(base / "model.safetensors")
    shutil.copytree(base, tmp_path / "embedding")
    tensors["model.embed_tokens.weight"][3] += 1
    save_file(tensors, tmp_path / "embedding/model.safetensors", {"format": "pt"})
    tiny.mistral(tmp_path / "token", vocab_size=len(tensors["lm_head.weight"]) + 1)
    for name, said in {
        "embedding": r"unlearned: .*embed_tokens.weight differs from the base, and lies outside of the decoder layers",
        "token": r"unlearned: .*token does not match .*base: its vocab_size is \d+, not \d+",
    }.items():
        words = [f"unlearned={tmp_path / name}", f"base={base}", "model=lore", "data=lore", "eval.tasks=[lore_general]"]
        (judged,) = compose.composed([*words, "eval.limit=2", "tracking=off"], ROOT / "conf", name="judge")
        with pytest.raises(UserError, match=said) as told:
            run.execute(judged, out)
        assert "\n" not in str(told.value)
        assert not list(out.iterdir())
