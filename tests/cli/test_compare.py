"""``python -m rmu_exp compare``: two real runs, their answers and weights compared with plain arithmetic."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import a_run
import pytest
from safetensors.torch import load_file
from scipy.stats import binomtest

from rmu_exp.__main__ import main


@pytest.fixture(scope="module")
def two(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    other = tmp_path_factory.mktemp("other") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMU_EXP_CACHE", str(tiny_run.parent / "cache"))
        a_run.carry_out([*a_run.words(tiny_run.parent), "steer=60", "eval.limit=4", "seed=1"], other)
    return tiny_run, other


def test_settings_answers_and_weights(two, capsys):
    assert main(["compare", *map(str, two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["steer"] == [[6.0], [60.0]]
    assert found["settings"]["eval.limit"] == [6, 4]
    attack = {"attacks.norms.texts", "attacks.norms.max_length", "attacks"}
    assert set(found["settings"]) == {"steer", "seed", "eval.limit"} | attack
    assert found["provenance"] == {}
    a, b = (load_file(folder / "delta.safetensors") for folder in two)
    name = "model.layers.1.mlp.down_proj.weight"
    assert found["delta"][name] == pytest.approx(float((a[name] - b[name]).norm() / a[name].norm()))
    lines = [[json.loads(x) for x in (f / "answers.jsonl").read_text().splitlines()] for f in two]
    right = [{(x["task"], x["question"]): x["unlearned"] == x["target"] for x in mine} for mine in lines]
    shared = [key for key in right[0] if key in right[1] and key[0].startswith("lore_forget")]
    lost = sum(right[0][k] and not right[1][k] for k in shared)
    gained = sum(right[1][k] and not right[0][k] for k in shared)
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert found["qa"]["lore_forget"]["mcnemar"] == {"lost": lost, "gained": gained, "p": pytest.approx(p)}
    assert found["qa"]["lore_forget"]["shared"] == len(shared) == 8


def test_the_table_on_the_screen(two, capsys):
    before = {f: f.read_bytes() for d in two for f in d.rglob("*") if f.is_file()}
    assert main(["compare", *map(str, two)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for text in ("settings", "steer", "made with: nothing differs", "lore_forget", "lost / gained", "‖B − A‖ / ‖A‖"):
        assert text in out
    assert "lore_forget_hexes" not in out
    assert before == {f: f.read_bytes() for d in two for f in d.rglob("*") if f.is_file()}


def test_a_run_and_its_copy_are_the_same(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run, tmp_path / "copy")
    assert main(["compare", str(tiny_run), str(tmp_path / "copy")]) == 0
    out = capsys.readouterr().out
    assert "settings: nothing differs" in out
    assert "bit for bit" in out


def test_questions_under_the_same_name_that_are_others_are_not_paired(two, tmp_path, capsys):
    shutil.copytree(two[0], tmp_path / "copy")
    file = tmp_path / "copy" / "answers.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["target"] += 1
    file.write_text("\n".join(map(json.dumps, lines)))
    assert main(["compare", str(two[0]), str(tmp_path / "copy"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["qa"]["lore_forget"]
    assert row["shared"] == 0
    assert "mcnemar" not in row


def test_no_run_is_one_line(tiny_run, tmp_path, capsys):
    assert main(["compare", str(tiny_run), str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert str(tmp_path) in err
